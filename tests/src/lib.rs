//! containerd-shaped mount storms, the oracles that check them, and what a mount test needs.

pub mod protocol;
pub mod sys;
