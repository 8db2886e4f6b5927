//! `profile --each`: what each patch of a series does, by counts and by throughput. Evidence costs no virtual time, so that both come from
//! the same boots, of the kernels that a bench times.

use super::evidence::Account;
use super::symbols::Symbols;
use super::{Look, kernels_of, or_keep, storm};
use crate::cache::Cache;
use crate::event::Events;
use crate::failure::Exit;
use crate::flags::ProfileFlags;
use crate::kernel::{Kernel, Workshop};
use crate::machine::{self, Evidence, Fallback, MachineKind, Setting, Topology};
use crate::process::check_interrupt;
use crate::results::{new_dated_dir, write_atomically};
use crate::side_by_side::{host_cpus, side_by_side};
use crate::{guest, setup, stats, warning};
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

/// A prefix of the series, on few and on many CPUs: an account for each boot.
struct Step {
    kernel: Kernel,
    few: Vec<Account>,
    many: Vec<Account>,
}

/// One boot to be made.
struct Planned {
    /// Which prefix.
    step: usize,
    /// On few CPUs, or on those of the flags.
    few: bool,
    seed: u64,
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
        steps.push(Step { kernel, few: Vec::new(), many: Vec::new() });
    }
    let kernels: Vec<Kernel> = steps.iter().map(|step| step.kernel.clone()).collect();
    // Each boot is the same beside others and alone.
    let look = |planned: &Planned, events: Events<'_>| {
        account(&kernels[planned.step], flags, planned, root, &cache, &guest, events)
    };
    let all = side_by_side(planned(steps.len(), flags), host_cpus(), look, &mut *events, |planned, account, _| {
        let step = &mut steps[planned.step];
        if planned.few { &mut step.few } else { &mut step.many }.push(account?);
        Ok(())
    });
    // One boot that ends badly does not take with it what the others showed.
    let boots = flags.boots as usize;
    steps.retain(|step| (step.few.len(), step.many.len()) == (boots, boots));
    if steps.is_empty() {
        return all.map(|()| Exit::Success);
    }
    let dir = new_dated_dir(&flags.results.join("waterfall"), &format!("{}-{}-cpus", flags.kernel, flags.cpus))?;
    let mut table = table(&steps, flags.cpus);
    if steps.len() < kernels.len() {
        table +=
            &format!("\n**Not all:** {} of {} prefixes; the others were not measured.\n", steps.len(), kernels.len());
    }
    let of = kernels_of(&steps.iter().map(|step| &step.kernel).collect::<Vec<_>>(), root);
    write_atomically(&dir.join("report.md"), &report(flags, &of, &table))?;
    print!("{table}");
    println!("report: {}", dir.join("report.md").display());
    all.map(|()| Exit::Success)
}

fn planned(steps: usize, flags: &ProfileFlags) -> Vec<Planned> {
    let seeds = || (0..flags.boots).map(|boot| flags.seed + boot);
    let of_step =
        |step| [true, false].into_iter().flat_map(move |few| seeds().map(move |seed| Planned { step, few, seed }));
    (0..steps).flat_map(of_step).collect()
}

fn account(
    kernel: &Kernel,
    flags: &ProfileFlags,
    planned: &Planned,
    root: &Path,
    cache: &Cache,
    guest: &Path,
    events: Events<'_>,
) -> Result<Account> {
    check_interrupt("the profile")?;
    let Planned { few, seed, .. } = *planned;
    let cpus = if few { FEW } else { flags.cpus };
    let topology = Topology::load("smoke")?.with_cpus(cpus)?;
    let setting = Setting { root, cache, kernel: Some(kernel), guest, fallback: Fallback::Simulated, model: None };
    let machine = machine::open(&MachineKind::Simulated, &topology, &setting, &mut *events)?.machine;
    let symbols = Symbols::read(&kernel.vmlinux)?;
    let dir = tempfile::tempdir().context("a folder for one boot")?;
    let evidence = Evidence::new(dir.path(), &symbols.for_simulator(), None)?;
    let look = Look { guest, machine: machine.as_ref(), seed, dir: dir.path() };
    or_keep(look.account(kernel, &storm(flags, cpus), &evidence, &symbols, events), dir).map(|(account, _)| account)
}

/// A row for each prefix, named by its last patch.
fn table(steps: &[Step], cpus: u32) -> String {
    let heads: String = COUNTS.iter().map(|(head, _)| format!(" {head} |")).collect();
    let mut text =
        format!("| patches | the last of them | containers/s, {FEW} CPUs | {cpus} CPUs |{heads}\n|---:|---|---:|---:|");
    text += &format!("{}\n", "---:|".repeat(COUNTS.len()));
    for Step { kernel, few, many } in steps {
        let count = kernel.series.len();
        let last = kernel.series.last().map_or("(mainline)", String::as_str);
        let counts: String = COUNTS.iter().map(|(_, name)| format!(" {:.1} |", per_container(many, name))).collect();
        text += &format!("| {count} | {last} | {} | {} |{counts}\n", rates(few), rates(many));
    }
    text
}

/// Containers per second: the mean, and of several boots the least and the most.
fn rates(accounts: &[Account]) -> String {
    let rate = |account: &Account| f64::from(account.containers) * 1e9 / account.virtual_ns.max(1) as f64;
    let rates: Vec<f64> = accounts.iter().map(rate).collect();
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let most = rates.iter().copied().fold(0.0, f64::max);
    match rates.len() {
        0 | 1 => format!("{most:.0}"),
        _ => format!("{:.0} ({least:.0} .. {most:.0})", stats::mean(&rates)),
    }
}

/// Mean over boots.
fn per_container(accounts: &[Account], name: &str) -> f64 {
    let of_one = |account: &Account| {
        account.counts.get(name).copied().unwrap_or(0) as f64 / f64::from(account.containers.max(1))
    };
    stats::mean(&accounts.iter().map(of_one).collect::<Vec<_>>())
}

fn report(flags: &ProfileFlags, kernels: &str, table: &str) -> String {
    let storm = crate::compare::name(&storm(flags, flags.cpus));
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let boots = match flags.boots {
        1 => format!("One boot for each number of CPUs, seed {}", flags.seed),
        boots => format!(
            "{boots} boots for each number of CPUs, seeds {} to {}: means, and of throughput the least and the most",
            flags.seed,
            flags.seed + boots - 1
        ),
    };
    format!(
        "# What each patch does (simulated): {storm}\n\n* Command: `cargo xtask {command}`\n* Host: {}\n* Kernels: kconfig {}\n{kernels}* {boots}; \
         counts are per container, on {} CPUs. A tick is a nanosecond of virtual time.\n\n{table}",
        warning::host_in_words(),
        KCONFIG.join("+"),
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
        let first = Step { kernel: Kernel::default(), few: vec![account(1_000_000)], many: vec![account(4_000_000)] };
        let second = Step { kernel, few: vec![account(500_000)], many: vec![account(1_000_000), account(500_000)] };
        let text = table(&[first, second], 64);
        assert!(text.contains("| 0 | (mainline) | 2000 | 500 | 0.0 |"), "{text}");
        assert!(text.contains("| 2 | two | 4000 | 3000 (2000 .. 4000) | 0.0 |") && text.contains("| 42.0 |"), "{text}");
    }
}
