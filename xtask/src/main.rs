//! `cargo xtask`: mountlab's driver.

mod compare;
mod console;
mod event;
mod failure;
mod kernel;
mod machine;
mod process;
mod progress;
mod results;

fn main() {}
