//! The loads of a storm, in the form of will-it-scale's: prepare, iterate, cleanup. The harness in `storm` owns threads, clock
//! and warm-up; a workload knows nothing of them.

mod calls;
mod common;
mod container_start;
mod detach;
mod fds;
mod kernel;
mod overlay;
mod pass;
mod paths;
mod rdonly;
mod recorded;
mod recursive;
#[cfg(test)]
mod trace;

pub use kernel::Linux;
pub use pass::Pass;
pub use recorded::on_linux;

use crate::check::Verdicts;
use crate::metrics::CallLog;
use crate::protocol::{Manner, Profile, StormPoint};
use anyhow::Result;
use std::path::Path;

/// A load made of equal units that can run side by side; for containerd's profiles a unit is one container start.
pub trait Workload: Sync {
    /// Makes what all units need. Once, untimed.
    ///
    /// # Errors
    /// What is missing.
    fn prepare(&self) -> Result<()>;

    /// One unit. Timed. Checks only what the load reads anyway.
    ///
    /// # Errors
    /// The call that failed.
    fn iterate(&self, unit: u32, log: &mut CallLog<'_>, verdicts: &mut Verdicts) -> Result<()>;

    /// Checks what `iterate` has made. Untimed, after all units are done.
    fn check(&self, unit: u32, verdicts: &mut Verdicts);

    /// Takes down what `iterate` has made. Not part of the storm's time; its calls are logged.
    ///
    /// # Errors
    /// The call that failed.
    fn cleanup(&self, unit: u32, log: &mut CallLog<'_>) -> Result<()>;

    /// Mounts that all units together have made by the time that they are checked, and not taken down.
    fn roots(&self) -> usize;
}

/// The load of this storm, in the mount at `root`; each mount is written down if it is `recorded`.
pub fn of_point(point: &StormPoint, seed: u64, manner: Manner, recorded: bool, root: &Path) -> Box<dyn Workload> {
    match point.profile {
        Profile::Paths => Box::new(paths::Paths::new(point, seed, root)),
        _ => Box::new(container_start::ContainerStart::new(point, seed, manner, recorded, root)),
    }
}
