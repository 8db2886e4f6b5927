//! `profile --each`: what each patch of a series does, by counts and by throughput. Evidence costs no virtual time, so that both come from
//! the same boots, of the kernels that a bench times.

use super::evidence::Account;
use super::symbols::Symbols;
use super::{Look, storm};
use crate::cache::Cache;
use crate::event::Events;
use crate::failure::Exit;
use crate::flags::ProfileFlags;
use crate::kernel::{Kernel, Workshop};
use crate::machine::{self, Evidence, Fallback, MachineKind, Setting, Topology};
use crate::results::{new_dated_dir, write_atomically};
use crate::{guest, setup, warning};
use anyhow::{Context, Result};
use std::path::Path;

/// The kconfig fragments of the kernels.
const KCONFIG: [&str; 2] = ["base", "bench"];

/// CPUs of a machine with little contention, beside that of `--cpus`.
const FEW: u32 = 8;

/// What is told of each prefix: heading, and name of the count.
const COUNTS: [(&str, &str); 7] = [
    ("`namespace_sem` exclusive", "namespace_sem_exclusive_acquisitions"),
    ("shared", "namespace_sem_shared_acquisitions"),
    ("instructions exclusive", "namespace_sem_exclusive_instructions"),
    ("instructions shared", "namespace_sem_shared_instructions"),
    ("`mount_lock` increments", "mount_lock_increments"),
    ("ticks odd", "mount_lock_odd_ticks"),
    ("expedited grace periods", "expedited_grace_periods"),
];

/// A prefix of the series, on few and on many CPUs.
struct Step {
    kernel: Kernel,
    few: Account,
    many: Account,
}

/// Runs the command; writes the table into a folder of the results, and prints it.
///
/// # Errors
/// As [`super::profile`].
pub fn waterfall(flags: &ProfileFlags, root: &Path, events: Events<'_>) -> Result<Exit> {
    setup::ensure_for(&[flags.storage], &flags.setup, events)?;
    let cache = Cache::lock()?;
    let workshop = Workshop { root, cache: &cache, source: flags.source.source.as_deref() };
    let guest = guest::build(root, events)?;
    let mut steps = Vec::new();
    for name in workshop.prefixes(&flags.kernel)? {
        let kernel = workshop.prepare(&name, &KCONFIG, &mut *events)?;
        let look = |cpus, events: Events<'_>| account(&kernel, flags, cpus, root, &cache, &guest, events);
        let (few, many) = (look(FEW, &mut *events)?, look(flags.cpus, &mut *events)?);
        steps.push(Step { kernel, few, many });
    }
    let dir = new_dated_dir(&flags.results.join("waterfall"), &format!("{}-{}-cpus", flags.kernel, flags.cpus))?;
    let table = table(&steps, flags.cpus);
    write_atomically(&dir.join("report.md"), &report(flags, &table))?;
    print!("{table}");
    println!("report: {}", dir.join("report.md").display());
    Ok(Exit::Success)
}

fn account(
    kernel: &Kernel,
    flags: &ProfileFlags,
    cpus: u32,
    root: &Path,
    cache: &Cache,
    guest: &Path,
    events: Events<'_>,
) -> Result<Account> {
    let topology = Topology::load("smoke")?.with_cpus(cpus)?;
    let setting = Setting { root, cache, kernel: Some(kernel), guest, fallback: Fallback::Simulated, model: None };
    let machine = machine::open(&MachineKind::Simulated, &topology, &setting, &mut *events)?.machine;
    let symbols = Symbols::read(&kernel.vmlinux)?;
    let dir = tempfile::tempdir().context("a folder for one boot")?;
    let evidence = Evidence::new(dir.path(), &symbols.for_simulator(), None)?;
    let look = Look { guest, machine: machine.as_ref(), seed: flags.seed, dir: dir.path() };
    look.account(kernel, &storm(flags, cpus), &evidence, &symbols, events)
}

/// A row for each prefix, named by its last patch.
fn table(steps: &[Step], cpus: u32) -> String {
    let heads: String = COUNTS.iter().map(|(head, _)| format!(" {head} |")).collect();
    let mut text =
        format!("| patches | the last of them | containers/s, {FEW} CPUs | {cpus} CPUs |{heads}\n|---:|---|---:|---:|");
    text += &format!("{}\n", "---:|".repeat(COUNTS.len()));
    for (count, Step { kernel, few, many }) in steps.iter().enumerate() {
        let last = kernel.series.last().map_or("(mainline)", String::as_str);
        let counts: String = COUNTS.iter().map(|(_, name)| format!(" {} |", per_container(many, name))).collect();
        text += &format!("| {count} | {last} | {:.0} | {:.0} |{counts}\n", rate(few), rate(many));
    }
    text
}

fn rate(account: &Account) -> f64 {
    f64::from(account.containers) * 1e9 / account.virtual_ns.max(1) as f64
}

fn per_container(account: &Account, name: &str) -> String {
    let total = account.counts.get(name).copied().unwrap_or(0);
    format!("{:.1}", total as f64 / f64::from(account.containers.max(1)))
}

fn report(flags: &ProfileFlags, table: &str) -> String {
    let storm = crate::compare::name(&storm(flags, flags.cpus));
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    format!(
        "# What each patch does (simulated): {storm}\n\n* Command: `cargo xtask {command}`\n* Host: {}\n* Kernels: kconfig {}\n* One boot for each \
         number of CPUs, seed {}; counts are per container, on {} CPUs. A tick is a nanosecond of virtual time.\n\n{table}",
        warning::host_in_words(),
        KCONFIG.join("+"),
        flags.seed,
        flags.cpus,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(virtual_ns: u64) -> Account {
        let counts = [("mount_lock_increments".to_owned(), 84)].into();
        Account { kernel: "x".into(), containers: 2, virtual_ns, awake_cpus: 1.0, counts, waits: Default::default() }
    }

    #[test]
    fn a_row_tells_rate_and_counts_of_a_prefix() {
        let kernel = Kernel { series: vec!["one".into(), "two".into()], ..Kernel::default() };
        let first = Step { kernel: Kernel::default(), few: account(1_000_000), many: account(4_000_000) };
        let second = Step { kernel, few: account(500_000), many: account(1_000_000) };
        let text = table(&[first, second], 64);
        assert!(text.contains("| 0 | (mainline) | 2000 | 500 | 0.0 |"), "{text}");
        assert!(text.contains("| 1 | two | 4000 | 2000 | 0.0 |") && text.contains("| 42.0 |"), "{text}");
    }
}
