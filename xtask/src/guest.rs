//! Builds `lab-guest`, the static binary that is PID 1 of every guest.

use crate::event::{Event, Events};
use crate::failure::Exit;
use crate::process::Task;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The guest is built for the GNU target, linked statically: glibc's libc.a comes with every C compiler package.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds `lab-guest` in `root` (the workspace) and returns its path.
///
/// # Errors
/// The compiler's last lines, when it does not build.
pub fn build(root: &Path, events: Events<'_>) -> Result<PathBuf> {
    let stage = "build lab-guest".to_owned();
    let start = Instant::now();
    events.hear(&Event::StageStarted { stage: stage.clone() });
    let target_dir = root.join("target/guest");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root);
    cargo.args(["build", "--release", "--package", "mount-storms", "--bin", "lab-guest", "--target", TARGET]);
    cargo.arg("--target-dir").arg(&target_dir);
    // Given with an explicit target, the flags reach the guest alone and not the build scripts and macros of the host.
    cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
    cargo.env_remove("RUSTFLAGS");
    Task::new(cargo)
        .limit(Duration::from_secs(1200))
        .on_failure(Exit::Unavailable, "mend the guest (tests/), then run the same command again")
        .run()?;
    events.hear(&Event::StageFinished { stage, result: String::new(), elapsed: start.elapsed() });
    Ok(target_dir.join(TARGET).join("release/lab-guest"))
}

/// How many trials the suite of a built `lab-guest` has.
///
/// # Errors
/// It does not run.
pub fn trials(guest: &Path) -> Result<u64> {
    let mut list = Command::new(guest);
    list.arg("list");
    let names = Task::new(list).limit(Duration::from_secs(20)).run()?;
    Ok(names.lines().count() as u64)
}
