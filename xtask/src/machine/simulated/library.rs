//! Builds `libsimulator.so`, which is loaded into QEMU.

use crate::event::Events;
use crate::failure::Exit;
use crate::process::Task;
use crate::stage::Stage;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Builds the simulator in `root` (the workspace) and returns its path.
///
/// # Errors
/// The compiler's last lines, when it does not build.
pub fn build(root: &Path, events: Events<'_>) -> Result<PathBuf> {
    let stage = Stage::start(events, "build the simulator");
    let target_dir = root.join("target/simulator");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args(["build", "--release", "--package", "simulator", "--target-dir"]).arg(&target_dir);
    Task::new(cargo)
        .limit(Duration::from_secs(1200))
        .on_failure(Exit::Unavailable, "mend the simulator (simulator/), then run the same command again")
        .run()?;
    stage.finish("");
    Ok(target_dir.join("release/libsimulator.so"))
}
