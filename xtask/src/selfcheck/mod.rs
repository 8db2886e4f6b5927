//! `selfcheck`: may the simulated machine be believed? Loads with known answers, the same boot again, a busy host, other windows.

mod checks;

use crate::cache::Cache;
use crate::event::{Event, Events};
use crate::failure::{Exit, Failure};
use crate::flags::SelfcheckFlags;
use crate::kernel::{Kernel, Workshop};
use crate::machine::{self, Boot, Evidence, Fallback, Limits, Machine, MachineKind, Model, Region, Setting, Topology};
use crate::measure::boot_any;
use crate::profile::Symbols;
use crate::results::write_atomically;
use crate::{guest, setup, warning};
use anyhow::{Context, Result};
use checks::{Check, Quantum};
use mount_storms::protocol::{
    Job, Load, LoadJob, Manner, PROTOCOL, Profile, Propagation, READER_PERIOD_US, Storage, StormJob, StormPoint, Work,
};
use serde::Serialize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The kconfig fragments of the kernel that is booted: the timed one.
const KCONFIG: [&str; 2] = ["base", "bench"];

/// CPUs of the machine that runs the loads: as many as the claims are made for.
const LOAD_CPUS: u32 = 64;

/// CPUs of the machine that runs the storms: enough for every lock to be contended, few enough for many boots.
const STORM_CPUS: u32 = 16;

/// Boots that must come out the same.
const EQUAL_BOOTS: u64 = 5;

/// Windows whose effect is measured, in instructions, and seeds for each.
const QUANTA: [u64; 5] = [50, 100, 500, 1000, 2000];
const SEEDS: u64 = 6;

/// Time between two samples of a CPU, when the storm is looked into.
const PERIOD_NS: u64 = 10_000;

/// Limits of one boot: a busy host may take some times as long.
const LIMITS: Limits =
    Limits { hello: Duration::from_secs(300), silence: Duration::from_secs(300), total: Duration::from_secs(1200) };

/// What was found, as it is written down.
#[derive(Debug, Serialize)]
struct Findings {
    host: String,
    machine: String,
    kernel: String,
    checks: Vec<Check>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    quanta: Vec<Quantum>,
}

/// What boots are made with.
struct Lab<'a> {
    setting: Setting<'a>,
    kernel: &'a Kernel,
    guest: &'a Path,
}

/// One boot to make.
struct Order {
    seed: u64,
    work: Work,
    looked_into: bool,
}

impl Order {
    /// The storm with this seed.
    fn storm(seed: u64) -> Order {
        Order { seed, work: storm_work(), looked_into: false }
    }
}

/// Runs the command: makes the boots, prints what was found, and writes it into the results folder if it was asked for.
///
/// # Errors
/// A boot that cannot be made or ends badly. A check that does not hold is no error: it makes the exit code 1.
pub fn selfcheck(flags: &SelfcheckFlags, root: &Path, events: Events<'_>) -> Result<Exit> {
    setup::ensure(&flags.setup, events)?;
    let cache = Cache::lock()?;
    let workshop = Workshop { root, cache: &cache, source: flags.source.source.as_deref() };
    let findings = find(&workshop, flags.full, events)?;
    print!("{}", checks::table(&findings.checks));
    print!("{}", checks::quanta_table(&findings.quanta));
    if let Some(results) = &flags.results {
        std::fs::create_dir_all(results)?;
        write_atomically(&results.join("selfcheck.json"), &(serde_json::to_string_pretty(&findings)? + "\n"))?;
        write_atomically(&results.join("selfcheck.md"), &markdown(&findings))?;
        println!("report: {}", results.join("selfcheck.md").display());
    }
    Ok(if findings.checks.iter().all(|check| check.held) { Exit::Success } else { Exit::Regression })
}

/// The checks that `test` makes besides; how many held and how many did not.
///
/// # Errors
/// As [`selfcheck`].
pub fn quick(workshop: &Workshop<'_>, events: Events<'_>) -> Result<(u64, u64)> {
    let findings = find(workshop, false, events)?;
    print!("{}", checks::table(&findings.checks));
    let held = findings.checks.iter().filter(|check| check.held).count() as u64;
    Ok((held, findings.checks.len() as u64 - held))
}

fn find(workshop: &Workshop<'_>, full: bool, events: Events<'_>) -> Result<Findings> {
    let kernel = workshop.prepare("mainline", &KCONFIG, events)?;
    let guest = guest::build(workshop.root, events)?;
    let (root, cache) = (workshop.root, workshop.cache);
    let setting =
        Setting { root, cache, kernel: Some(&kernel), guest: &guest, fallback: Fallback::Simulated, model: None };
    let lab = Lab { setting, kernel: &kernel, guest: &guest };
    let mut checks = lab.known_answers(&mut *events)?;
    checks.extend(lab.same_boots(&mut *events)?);
    let quanta = if full { lab.quanta(&mut *events)? } else { Vec::new() };
    let machine = lab.machine(LOAD_CPUS, None, events)?;
    let info = machine.info();
    Ok(Findings {
        host: warning::host_in_words(),
        machine: format!("{}, {}", info.kind, info.version),
        kernel: format!("Linux {}, {}", kernel.base, kernel.kconfig.join("+")),
        checks,
        quanta,
    })
}

impl Lab<'_> {
    /// Loads whose times are known, on a quiet host and on a busy one.
    fn known_answers(&self, events: Events<'_>) -> Result<Vec<Check>> {
        let loads = checks::loads(LOAD_CPUS);
        let order = Order { seed: 1, work: load_work(&loads), looked_into: false };
        let machine = self.machine(LOAD_CPUS, None, &mut *events)?;
        let quiet = self.boot(machine.as_ref(), &order, "loads", &mut *events)?;
        let busy = while_busy(|| self.boot(machine.as_ref(), &order, "loads, host busy", &mut *events))?;
        let mut found = checks::of_loads(&loads, &quiet)?;
        found.push(checks::equal("the same loads while every CPU of the host is busy", 0.01, &[quiet, busy]));
        Ok(found)
    }

    /// A storm of one seed, booted again and again, and once more while it is looked into.
    fn same_boots(&self, events: Events<'_>) -> Result<Vec<Check>> {
        let machine = self.machine(STORM_CPUS, None, &mut *events)?;
        let mut regions = Vec::new();
        for number in 1..=EQUAL_BOOTS {
            let name = format!("storm, boot {number} of {EQUAL_BOOTS}");
            regions.push(self.boot(machine.as_ref(), &Order::storm(1), &name, &mut *events)?);
        }
        let name = format!("{EQUAL_BOOTS} boots of one kernel and seed, a storm on {STORM_CPUS} CPUs");
        let same = checks::equal(&name, 0.01, &regions);
        let order = Order { looked_into: true, ..Order::storm(1) };
        let looked_into = self.boot(machine.as_ref(), &order, "storm, looked into", &mut *events)?;
        let plain = regions.swap_remove(0);
        let free = checks::equal("evidence and stacks cost no virtual time", 0.0, &[plain, looked_into.clone()]);
        Ok(vec![same, free, checks::proven(&looked_into)])
    }

    /// The same storm with windows of different length, some seeds each.
    fn quanta(&self, events: Events<'_>) -> Result<Vec<Quantum>> {
        let mut quanta = Vec::new();
        for quantum in QUANTA {
            let machine = self.machine(STORM_CPUS, Some(quantum), &mut *events)?;
            let mut times = Vec::new();
            for seed in 1..=SEEDS {
                let name = format!("window of {quantum} instructions, seed {seed} of {SEEDS}");
                let regions = self.boot(machine.as_ref(), &Order::storm(seed), &name, &mut *events)?;
                times.extend(regions.iter().map(|region| region.virtual_ns as f64));
            }
            quanta.push(Quantum::of(quantum, &times));
        }
        Ok(quanta)
    }

    /// A machine with so many CPUs, and with another window if told so.
    fn machine(&self, cpus: u32, quantum_insns: Option<u64>, events: Events<'_>) -> Result<Box<dyn Machine>> {
        let mut model = Model::load()?;
        model.quantum_insns = quantum_insns.unwrap_or(model.quantum_insns);
        let setting = Setting { model: Some(model), ..self.setting };
        let topology = Topology::load("smoke")?.with_cpus(cpus)?;
        Ok(machine::open(&MachineKind::Simulated, &topology, &setting, events)?.machine)
    }

    /// The regions of one boot.
    fn boot(&self, machine: &dyn Machine, order: &Order, name: &str, events: Events<'_>) -> Result<Vec<Region>> {
        let dir = tempfile::tempdir_in(self.setting.cache.dir())?;
        let symbols = if order.looked_into { Some(Symbols::read(&self.kernel.vmlinux)?) } else { None };
        let evidence = symbols.map(|symbols| Evidence::new(dir.path(), &symbols.for_simulator(), Some(PERIOD_NS)));
        let evidence = evidence.transpose()?;
        let job = Job { protocol: PROTOCOL, seed: order.seed, work: order.work.clone() };
        let boot = Boot {
            kernel: Some(self.kernel),
            guest: self.guest,
            job: &job,
            dir: dir.path(),
            limits: LIMITS,
            machine_seed: order.seed,
            evidence: evidence.as_ref(),
        };
        let log = boot_any(machine, &boot, name, &mut *events)?;
        log.failure().map_or(Ok(()), Err)?;
        let regions = log.summary.context("a simulated boot that ended well has a summary")?.regions;
        if let Some(lost) = regions.iter().find_map(Region::lost) {
            events.hear(&Event::Warning(format!("{name}: {lost}")));
            return Err(Failure::error(Exit::Oracle, format!("{name}: {lost}")));
        }
        Ok(regions)
    }
}

fn load_work(loads: &[Load]) -> Work {
    Work::Load(LoadJob { loads: loads.to_vec() })
}

fn storm_work() -> Work {
    let point = StormPoint {
        profile: Profile::Detach,
        storage: Storage::Tmpfs,
        propagation: Propagation::Shared,
        cpus: STORM_CPUS,
        threads: STORM_CPUS,
        containers: STORM_CPUS,
        layers: 10,
        inspection_passes: 1,
    };
    Work::Storm(StormJob {
        points: vec![point],
        iterations: 1,
        warmup_iterations: 0,
        manner: Manner::MOUNTS_ALONE,
        readers: Vec::new(),
        reader_period_us: READER_PERIOD_US,
        surroundings: Default::default(),
    })
}

/// Keeps every CPU of the host busy meanwhile, with twice as many threads as there are.
fn while_busy<T>(work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    let threads = 2 * std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::black_box(0);
                }
            });
        }
        let result = work();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

fn markdown(findings: &Findings) -> String {
    let Findings { host, machine, kernel, checks, quanta } = findings;
    format!(
        "# May the simulated machine be believed?\n\nGenerated by `cargo xtask selfcheck --full --results results/selfcheck`; do not edit.\n\n\
         * Machine: {machine}\n* Kernel: {kernel}\n* Host: {host}\n\n```\n{}{}```\n",
        checks::table(checks),
        checks::quanta_table(quanta)
    )
}
