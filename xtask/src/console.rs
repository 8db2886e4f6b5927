//! What a kernel's console says about its health. The policy is data, shared with the guest (tests/splat-policy.toml).

pub use mount_storms::splat::{judge_console as judge, panic_line};
