//! `boot`: a prompt in a guest.

use crate::cache::Cache;
use crate::event::Events;
use crate::failure::{Exit, Failure};
use crate::flags::BootFlags;
use crate::kernel::Workshop;
use crate::{bench, guest, machine, setup};
use anyhow::Result;
use std::path::Path;

/// Boots the kernel under tcg with the console on this terminal; ends with the guest.
///
/// # Errors
/// Another machine was asked for, the kernel does not build, or QEMU does not start.
pub fn boot(flags: &BootFlags, root: &Path, events: Events<'_>) -> Result<Exit> {
    if !matches!(flags.machine.machine.as_str(), "auto" | "tcg") {
        let message = format!("--machine {}: the prompt is in a guest under tcg, nowhere else", flags.machine.machine);
        return Err(Failure::error(Exit::Usage, message));
    }
    setup::ensure(&flags.setup, events)?;
    let cache = Cache::lock()?;
    let workshop = Workshop { root, cache: &cache, source: flags.source.source.as_deref() };
    let guest = guest::build(root, events)?;
    let kernel = workshop.prepare(&flags.kernel, &["base", &flags.kconfig], events)?;
    let scratch = tempfile::tempdir_in(cache.dir())?;
    let status = machine::interactive(
        &bench::topology(&flags.machine, flags.machine.one_cpus()?)?,
        &kernel,
        &guest,
        scratch.path(),
    )?;
    if status.success() {
        return Ok(Exit::Success);
    }
    Err(Failure::error(Exit::MachineDied, format!("QEMU {}", crate::process::status_words(status))))
}
