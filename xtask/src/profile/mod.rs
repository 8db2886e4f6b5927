//! `profile`: where two kernels spend a storm's time, and what they do under their locks, on the simulated machine. Costs no virtual time
//! (`selfcheck` proves it), but uses kernels with frame pointers, so that its times are not those of a bench.

mod evidence;
mod stacks;
mod symbols;
mod waterfall;

use crate::bench::commit_of;
use crate::cache::Cache;
use crate::event::{Event, Events};
use crate::failure::{Exit, Failure};
use crate::flags::ProfileFlags;
use crate::kernel::{Kernel, Workshop};
use crate::machine::{self, Boot, Evidence, Fallback, Limits, Machine, MachineKind, Region, Setting, Topology};
use crate::measure::boot_any;
use crate::results::{new_dated_dir, plain, write_atomically};
use crate::{guest, setup, warning};
use anyhow::{Context, Result};
use evidence::Account;
use mount_storms::protocol::{GuestEvent, Job, Manner, PROTOCOL, READER_PERIOD_US, StormJob, StormPoint, Work};
use stacks::Folded;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

pub use symbols::Symbols;

/// The kconfig fragments of profiled kernels.
const KCONFIG: [&str; 2] = ["base", "profile"];

/// Functions that the report names.
const TOP: usize = 15;

/// Limits of one boot.
const LIMITS: Limits =
    Limits { hello: Duration::from_secs(300), silence: Duration::from_secs(600), total: Duration::from_secs(3600) };

/// One kernel, profiled.
struct Profiled {
    account: Account,
    folded: Folded,
}

/// Runs the command; writes flame graphs, folded stacks and the account into a folder of the results, prints the account.
///
/// # Errors
/// A kernel does not build, a boot ends badly, its oracle failed, or lockstep was lost.
pub fn profile(flags: &ProfileFlags, root: &Path, events: Events<'_>) -> Result<Exit> {
    if !matches!(flags.machine.as_str(), "simulated" | "auto") {
        let message = format!("--machine {}: only the simulated machine can be looked into", flags.machine);
        return Err(Failure::error(Exit::Usage, message));
    }
    setup::ensure_for(&[flags.storage], &flags.setup, events)?;
    if flags.each {
        return waterfall::waterfall(flags, root, events);
    }
    let topology = Topology::load("smoke")?.with_cpus(flags.cpus)?;
    let cache = Cache::lock()?;
    let workshop = Workshop { root, cache: &cache, source: flags.source.source.as_deref() };
    let names = if flags.kernel == flags.baseline { vec![&flags.kernel] } else { vec![&flags.baseline, &flags.kernel] };
    let kernels =
        names.iter().map(|name| workshop.prepare(name, &KCONFIG, &mut *events)).collect::<Result<Vec<_>>>()?;
    let guest = guest::build(root, events)?;
    let setting = Setting {
        root,
        cache: &cache,
        kernel: kernels.first(),
        guest: &guest,
        fallback: Fallback::Simulated,
        model: None,
    };
    let machine = machine::open(&MachineKind::Simulated, &topology, &setting, &mut *events)?.machine;
    let mut profiled = Vec::new();
    for kernel in &kernels {
        profiled.push(one(kernel, flags, &guest, machine.as_ref(), &mut *events)?);
    }
    let dir = new_dated_dir(&flags.results.join("profile"), &format!("{}-{}-cpus", flags.kernel, flags.cpus))?;
    let kernels = kernels_of(&kernels.iter().collect::<Vec<_>>(), root);
    write(&dir, flags, machine.as_ref(), &profiled, &kernels)?;
    print!("{}", evidence::table(&profiled.iter().map(|one| one.account.clone()).collect::<Vec<_>>()));
    println!("report: {}", dir.join("report.md").display());
    Ok(Exit::Success)
}

/// One storm of one kernel, looked into.
fn one(
    kernel: &Kernel,
    flags: &ProfileFlags,
    guest: &Path,
    machine: &dyn Machine,
    events: Events<'_>,
) -> Result<Profiled> {
    let symbols = Symbols::read(&kernel.vmlinux)?;
    let dir = tempfile::tempdir()?;
    let evidence = Evidence::new(dir.path(), &symbols.for_simulator(), Some(flags.period_ns))?;
    let look = Look { guest, machine, seed: flags.seed, dir: dir.path() };
    let (account, dir) =
        or_keep(look.account(kernel, &storm(flags, flags.cpus), &evidence, &symbols, &mut *events), dir)?;
    let folded = stacks::named(&evidence.stacks()?, &symbols)?;
    events.hear(&Event::Note(format!("{}: {} samples", kernel.name, folded.values().sum::<u64>())));
    drop(dir);
    Ok(Profiled { account, folded })
}

/// A result with the folder that it comes from. An error names a console in there: the folder stays then.
fn or_keep<T>(made: Result<T>, dir: TempDir) -> Result<(T, TempDir)> {
    match made {
        Ok(made) => Ok((made, dir)),
        Err(error) => {
            let _ = dir.keep();
            Err(error)
        }
    }
}

/// The kernels of a report, each with its key, and the mountlab that made it.
fn kernels_of(kernels: &[&Kernel], root: &Path) -> String {
    let keys: Vec<String> = kernels.iter().map(|kernel| format!("{} {}", kernel.name, kernel.key)).collect();
    format!("* mountlab {}; keys of the kernels: {}\n", commit_of(root), keys.join(", "))
}

/// How to look into a storm.
struct Look<'a> {
    guest: &'a Path,
    machine: &'a dyn Machine,
    seed: u64,
    dir: &'a Path,
}

impl Look<'_> {
    /// Boots a kernel, runs one storm, and accounts for it.
    fn account(
        &self,
        kernel: &Kernel,
        point: &StormPoint,
        evidence: &Evidence,
        symbols: &Symbols,
        events: Events<'_>,
    ) -> Result<Account> {
        let storm = StormJob {
            points: vec![point.clone()],
            iterations: 1,
            warmup_iterations: 0,
            manner: Manner::MOUNTS_ALONE,
            readers: Vec::new(),
            reader_period_us: READER_PERIOD_US,
            surroundings: Default::default(),
        };
        let job = Job { protocol: PROTOCOL, seed: self.seed, work: Work::Storm(storm) };
        let boot = Boot {
            kernel: Some(kernel),
            guest: self.guest,
            job: &job,
            dir: self.dir,
            limits: LIMITS,
            machine_seed: self.seed,
            evidence: Some(evidence),
        };
        let name = format!("profile {}, {} CPUs", kernel.name, point.cpus);
        let log = boot_any(self.machine, &boot, &name, &mut *events)?;
        log.failure().map_or(Ok(()), Err)?;
        let failed = |event: &GuestEvent| match event {
            GuestEvent::Sample(sample) => sample.oracle.failures.first().cloned(),
            _ => None,
        };
        let regions = log.summary.context("a simulated boot that ended well has a summary")?.regions;
        if let Some(why) = log.events.iter().find_map(failed).or_else(|| regions.iter().find_map(Region::lost)) {
            return Err(Failure::error(Exit::Oracle, format!("no profile of {}: {why}", kernel.name)));
        }
        let region = regions.first().context("the storm marked no region")?;
        Account::of(&kernel.name, point.containers, region, symbols)
    }
}

fn storm(flags: &ProfileFlags, cpus: u32) -> StormPoint {
    StormPoint {
        profile: flags.profile.into(),
        storage: flags.storage.into(),
        propagation: flags.propagation.into(),
        cpus,
        threads: cpus,
        containers: flags.containers.unwrap_or(flags.cpus),
        layers: flags.layers,
        inspection_passes: 1,
    }
}

fn write(dir: &Path, flags: &ProfileFlags, machine: &dyn Machine, profiled: &[Profiled], kernels: &str) -> Result<()> {
    let storm = crate::compare::name(&storm(flags, flags.cpus));
    let subtitle = format!("{storm} (simulated); a sample for each {} ns that a CPU is awake", flags.period_ns);
    for Profiled { account, folded } in profiled {
        let (kernel, text) = (plain(&account.kernel), stacks::text(folded));
        write_atomically(&dir.join(format!("{kernel}.folded")), &text)?;
        write_atomically(&dir.join(format!("{kernel}.svg")), &stacks::flame(&account.kernel, &subtitle, &text)?)?;
    }
    if let [baseline, candidate] = profiled {
        let title = format!("{} against {}: red grew, blue shrank", candidate.account.kernel, baseline.account.kernel);
        let lines = stacks::difference(&baseline.folded, &candidate.folded);
        write_atomically(&dir.join("difference.svg"), &stacks::flame(&title, &subtitle, &lines)?)?;
    }
    let accounts: Vec<Account> = profiled.iter().map(|one| one.account.clone()).collect();
    write_atomically(&dir.join("evidence.json"), &(serde_json::to_string_pretty(&accounts)? + "\n"))?;
    write_atomically(&dir.join("report.md"), &report(&storm, machine, profiled, &accounts, kernels))
}

fn report(storm: &str, machine: &dyn Machine, profiled: &[Profiled], accounts: &[Account], kernels: &str) -> String {
    let info = machine.info();
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let mut text = format!(
        "# Profile (simulated): {storm}\n\n* Command: `cargo xtask {command}`\n* Machine: {}, {}, {} CPUs\n* Host: {}\n* Kernels: kconfig {}\n{kernels}\n\
         A tick is a nanosecond of virtual time, in which a CPU executes one instruction or waits.\n\n## Under the mount locks\n\n{}",
        info.kind,
        info.version,
        info.cpus,
        warning::host_in_words(),
        KCONFIG.join("+"),
        evidence::table(accounts),
    );
    for Profiled { account, folded } in profiled {
        let (kernel, file) = (&account.kernel, plain(&account.kernel));
        let top = stacks::innermost(folded).into_iter().take(TOP);
        let rows: String = top.map(|(name, share)| format!("| {name} | {:.1} % |\n", share * 100.0)).collect();
        text += &format!(
            "\n## {kernel}: where its CPUs are\n\n[Flame graph]({file}.svg), [folded stacks]({file}.folded)\n\n| function | samples |\n|---|---:|\n{rows}"
        );
    }
    if profiled.len() == 2 {
        text += "\n## Difference\n\n[Differential flame graph](difference.svg)\n";
    }
    text
}
