//! containerd-shaped mount storms, the oracles that check them, and what a mount test needs.

pub mod call;
pub mod idmap;
pub mod kmsg;
pub mod loop_disk;
pub mod mountinfo;
pub mod protocol;
pub mod requirement;
pub mod scratch;
pub mod second_namespace;
pub mod splat;
pub mod sys;
pub mod trial;
