//! containerd-shaped mount storms, the oracles that check them, and what a mount test needs.

pub mod check;
pub mod events;
pub mod layout;
pub mod metrics;
pub mod mount_tree;
pub mod phase;
pub mod protocol;
pub mod storage;
pub mod storm;
pub mod sys;
pub mod topology;
pub mod user_ns;
pub mod workload;
