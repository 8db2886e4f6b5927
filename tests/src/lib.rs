//! containerd-shaped mount storms, the oracles that check them, and what a mount test needs.

pub mod check;
pub mod events;
pub mod guest;
pub mod metrics;
pub mod mount_tree;
mod prompt;
pub mod protocol;
mod storage;
pub mod storm;
pub mod sys;
pub mod topology;
pub mod workload;
