//! containerd-shaped mount storms, the oracles that check them, and what a mount test needs.

pub mod call;
pub mod check;
pub mod events;
pub mod idmap;
pub mod kmsg;
pub mod layout;
pub mod load;
pub mod loop_disk;
pub mod metrics;
pub mod mount_tree;
pub mod mountinfo;
pub mod phase;
pub mod protocol;
pub mod reader;
pub mod requirement;
pub mod scratch;
pub mod second_namespace;
pub mod shim;
pub mod splat;
pub mod storage;
pub mod storm;
pub mod sys;
pub mod topology;
pub mod trial;
pub mod user_ns;
pub mod workload;
