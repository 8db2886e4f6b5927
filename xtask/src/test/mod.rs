//! `test`: first what needs no guest (unit tests, lints, series), then the suite in guests on mainline and the candidate.

mod guests;
mod totals;

pub use guests::patience;
pub use totals::Totals;

use crate::cache::Cache;
use crate::event::{Event, Events};
use crate::failure::{Exit, Failure, exit_code};
use crate::flags::TestFlags;
use crate::kernel::Workshop;
use crate::machine::{self, MachineKind};
use crate::process::Task;
use crate::{bench, setup};
use anyhow::Result;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Runs everything; prints one line per part and the totals last, alone on their line.
///
/// # Errors
/// A part that could not be run at all. A part that ran and failed is counted, and makes the exit code 1.
pub fn test(flags: &TestFlags, root: &Path, events: Events<'_>) -> Result<Exit> {
    let kind = MachineKind::parse(&flags.machine.machine)?;
    refuse_host(&kind)?;
    setup::ensure(&flags.setup, events)?;
    let cache = Cache::lock()?;
    let workshop = Workshop { root, cache: &cache, source: flags.source.source.as_deref() };
    let names: Vec<&str> = std::iter::once("mainline").chain(flags.kernel.iter().map(String::as_str)).collect();
    workshop.check_names(&names, &["base", &flags.lane])?;
    machine::check(&kind)?;
    let topology = bench::topology(&flags.machine, flags.machine.one_cpus()?)?;
    let mut totals = Totals::default();
    if !flags.guests_only {
        totals.add(lints(root, events)?);
        totals.add(unit_tests(root, events)?);
        totals.add(series(&workshop, events));
    }
    if !flags.no_guests {
        totals.add(guests::guests(flags, &workshop, &kind, &topology, events)?);
    }
    if !flags.no_guests && !flags.guests_only {
        totals.add(selfcheck(&workshop, events)?);
    }
    println!("{totals}");
    Ok(if totals.failed == 0 { Exit::Success } else { Exit::Regression })
}

/// The host runs one kernel, and which is not ours to say: it can be told apart from no other, and none is mainline.
pub fn refuse_host(kind: &MachineKind) -> Result<()> {
    match kind {
        MachineKind::Host => {
            let message = "--machine host: the suite tests chosen kernels, in guests\nnext: leave --machine out";
            Err(Failure::error(Exit::Usage, message))
        }
        _ => Ok(()),
    }
}

/// Runs a part that is one command: passed or failed as a whole.
fn part(name: &str, command: Command, events: Events<'_>) -> Result<(Totals, String)> {
    events.hear(&Event::StageStarted { stage: name.to_owned() });
    let task =
        Task::new(command).limit(Duration::from_secs(1800)).on_failure(Exit::Regression, "mend it, then run it alone");
    match task.run() {
        Ok(output) => {
            println!("{name}: passed");
            Ok((Totals { passed: 1, ..Totals::default() }, output))
        }
        Err(error) if crate::process::interrupted() => Err(error),
        Err(error) => {
            println!("{name}: FAILED\n{error:#}");
            Ok((Totals { failed: 1, ..Totals::default() }, format!("{error:#}")))
        }
    }
}

fn cargo(root: &Path, args: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args(args);
    cargo
}

fn lints(root: &Path, events: Events<'_>) -> Result<Totals> {
    let (mut totals, _) = part("cargo fmt", cargo(root, &["fmt", "--all", "--check"]), events)?;
    let clippy = cargo(root, &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]);
    totals.add(part("cargo clippy", clippy, events)?.0);
    Ok(totals)
}

/// Runs `cargo test`; its own counts replace the one of the part when it says them.
fn unit_tests(root: &Path, events: Events<'_>) -> Result<Totals> {
    let (whole, output) = part("cargo test", cargo(root, &["test", "--workspace", "--no-fail-fast"]), events)?;
    let counted = totals::of_cargo_test(&output);
    println!("cargo test: {counted}");
    // A crash before any count (a test binary that does not build) must not pass as "0 failed".
    Ok(if counted == Totals::default() || (whole.failed > 0 && counted.failed == 0) { whole } else { counted })
}

/// Checks the patches as `kernel check` does.
fn series(workshop: &Workshop<'_>, events: Events<'_>) -> Totals {
    events.hear(&Event::StageStarted { stage: "kernel check".into() });
    match workshop.check(events) {
        Ok(summary) => {
            println!("kernel check: {summary}");
            Totals { passed: 1, ..Totals::default() }
        }
        Err(error) => {
            println!("kernel check: FAILED\n{error:#}");
            Totals { failed: 1, ..Totals::default() }
        }
    }
}

/// Holds the simulated machine to its known answers; skipped, and said so, where no QEMU for it can be had.
fn selfcheck(workshop: &Workshop<'_>, events: Events<'_>) -> Result<Totals> {
    match machine::find_simulator(workshop.cache, &mut *events) {
        Err(error) if exit_code(&error) == Exit::Unavailable => {
            println!("selfcheck: skipped: {error:#}");
            return Ok(Totals { skipped: 1, ..Totals::default() });
        }
        found => found?,
    }
    let (passed, failed) = crate::selfcheck::quick(workshop, events)?;
    println!("selfcheck: {passed} held, {failed} did not");
    Ok(Totals { passed, failed, skipped: 0 })
}
