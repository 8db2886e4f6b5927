//! `cargo xtask`: mountlab's driver.

mod compare;
mod failure;
mod kernel;
mod machine;
mod process;
mod results;

fn main() {}
