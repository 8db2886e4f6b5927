//! A machine that plays a scripted guest: for tests of everything that comes after a machine. It writes the same two files as a
//! real one, and the same watcher reads them.

use super::mock_model::Model;
use super::topology::Topology;
use super::watch::{Running, console_path, events_path, watch};
use super::{Boot, BootLog, Limits, Machine, MachineInfo};
use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use mount_storms::protocol::{GuestEvent, Outcome, PROTOCOL, SuiteJob, TrialResult, Work};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A scripted guest that is silent stays silent: no need to wait longer for it.
const SILENCE: Duration = Duration::from_secs(1);

/// Steps that are played between two polls of the watcher.
const STEPS_PER_POLL: usize = 8;

/// What goes wrong in a scripted boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Panic,
    Hang,
    Die,
    Splat,
    Oracle,
    Trial,
}

/// A script: `FAULT[@BOOT]` and `KERNEL=FACTOR`, separated by commas. "die@3,patched=0.8": the fourth boot of this process dies half-way, and
/// storms on the kernel `patched` take 0.8 times as long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Script {
    fault: Option<Fault>,
    /// In which boot of this process, from 0; in all if `None`.
    at: Option<u32>,
    factors: BTreeMap<String, f64>,
}

impl Script {
    /// Reads what follows `mock:`.
    ///
    /// # Errors
    /// Usage, naming the word that is not understood.
    pub fn parse(text: &str) -> Result<Script> {
        let mut script = Script::default();
        for word in text.split(',') {
            script.add(word).ok_or_else(|| unknown(word))?;
        }
        Ok(script)
    }

    fn add(&mut self, word: &str) -> Option<()> {
        if let Some((kernel, factor)) = word.split_once('=') {
            let factor = factor.parse().ok().filter(|factor: &f64| factor.is_finite() && *factor > 0.0)?;
            self.factors.insert(kernel.to_owned(), factor);
            return Some(());
        }
        let (fault, at) = word.split_once('@').map_or((word, None), |(fault, at)| (fault, Some(at)));
        self.at = at.map(str::parse).transpose().ok()?;
        self.fault = Some(match fault {
            "panic" => Fault::Panic,
            "hang" => Fault::Hang,
            "die" => Fault::Die,
            "splat" => Fault::Splat,
            "oracle" => Fault::Oracle,
            "trial" => Fault::Trial,
            _ => return None,
        });
        Some(())
    }

    fn fault_in(&self, boot: u32) -> Option<Fault> {
        self.fault.filter(|_| self.at.is_none_or(|at| at == boot))
    }
}

fn unknown(word: &str) -> anyhow::Error {
    let known = "panic, hang, die, splat, oracle, trial (each with an optional @BOOT), KERNEL=FACTOR";
    Failure::error(Exit::Usage, format!("the mock machine's script does not know '{word}'; it knows: {known}"))
}

/// The machine.
pub struct Mock {
    script: Script,
    boots: AtomicU32,
    info: MachineInfo,
}

impl Mock {
    /// A mock of this shape.
    pub fn new(script: Script, topology: &Topology) -> Mock {
        let info = MachineInfo {
            kind: "mock".into(),
            version: "scripted".into(),
            cpus: topology.cpus(),
            memory_mib: topology.memory.guest_mib,
            topology: topology.name.clone(),
            // Its times come from a formula.
            simulated: true,
        };
        Mock { script, boots: AtomicU32::new(0), info }
    }

    fn steps(&self, boot: &Boot<'_>, fault: Option<Fault>) -> Vec<Step> {
        let mut steps = vec![Step::Console("<6>[    0.000000] a scripted kernel"), Step::Event(self.hello(boot))];
        steps.extend(self.work(boot, fault).into_iter().map(Step::Event));
        steps.push(Step::Event(GuestEvent::Done));
        with_fault(steps, fault)
    }

    fn hello(&self, boot: &Boot<'_>) -> GuestEvent {
        let kernel_release = boot.kernel.map_or("mock", |kernel| &kernel.release).to_owned();
        let memory_kib = self.info.memory_mib * 1024;
        GuestEvent::Hello { protocol: PROTOCOL, kernel_release, cpus: self.info.cpus, memory_kib }
    }

    fn work(&self, boot: &Boot<'_>, fault: Option<Fault>) -> Vec<GuestEvent> {
        match &boot.job.work {
            Work::Hello | Work::Shell | Work::Load(_) => Vec::new(),
            Work::Suite(suite) => trials(suite, fault == Some(Fault::Trial)),
            Work::Storm(storm) => {
                let name = boot.kernel.map_or("host", |kernel| &kernel.name);
                let factor = self.script.factors.get(name).copied().unwrap_or(1.0);
                let mut model = Model::new(boot.job.seed, name, boot.dir, factor);
                model.storm(storm, fault == Some(Fault::Oracle))
            }
        }
    }
}

impl Machine for Mock {
    fn info(&self) -> &MachineInfo {
        &self.info
    }

    fn boot(&self, boot: &Boot<'_>, on_event: &mut dyn FnMut(&GuestEvent)) -> Result<BootLog> {
        let number = self.boots.fetch_add(1, Ordering::Relaxed);
        let steps = self.steps(boot, self.script.fault_in(number));
        let mut player = Player::new(boot, steps)?;
        let limits = Limits { silence: boot.limits.silence.min(SILENCE), ..boot.limits };
        watch(&mut player, &Boot { limits, ..*boot }, on_event)
    }
}

fn trials(suite: &SuiteJob, one_fails: bool) -> Vec<GuestEvent> {
    let failed = Outcome::Failed { why: "the script wants it".into() };
    let skipped = Outcome::Skipped { why: "a scripted guest has no such thing".into() };
    let last = if one_fails { failed } else { Outcome::Passed };
    let all = [
        ("mock::a_trial_passes", Outcome::Passed),
        ("mock::a_trial_is_skipped", skipped),
        ("mock::the_last_trial", last),
    ];
    let filter = suite.filter.as_deref().unwrap_or_default();
    let chosen = all.into_iter().filter(|(name, _)| name.contains(filter));
    chosen.map(|(name, outcome)| GuestEvent::Trial(TrialResult { name: name.into(), outcome, elapsed_ms: 1 })).collect()
}

/// One thing that a scripted guest does.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Event(GuestEvent),
    Console(&'static str),
    /// Half a line on the event channel: what a killed machine leaves.
    HalfLine,
    Silence,
}

/// Puts a fault into the middle of a script. All but a splat end it there; failed oracles and trials are in the events already.
fn with_fault(mut steps: Vec<Step>, fault: Option<Fault>) -> Vec<Step> {
    // After the hello at least: a fault before it would be one of booting.
    let middle = (steps.len() / 2).max(2);
    let tail = match fault {
        None | Some(Fault::Oracle | Fault::Trial) => return steps,
        Some(Fault::Splat) => {
            steps.insert(
                middle,
                Step::Console("<4>[    1.000000] WARNING: fs/namespace.c:1 at attach_mnt+0x1/0x2, CPU#0: mock/1"),
            );
            return steps;
        }
        Some(Fault::Panic) => Step::Console("<0>[    1.000000] Kernel panic - not syncing: scripted"),
        Some(Fault::Hang) => Step::Silence,
        Some(Fault::Die) => Step::HalfLine,
    };
    steps.truncate(middle);
    steps.push(tail);
    steps
}

/// Plays the steps, a few at each poll.
struct Player {
    steps: VecDeque<Step>,
    events: File,
    console: File,
}

impl Player {
    fn new(boot: &Boot<'_>, steps: Vec<Step>) -> Result<Player> {
        let create = |path: std::path::PathBuf| {
            let file = OpenOptions::new().create(true).append(true).open(&path);
            file.with_context(|| format!("cannot write {}", path.display()))
        };
        let (events, console) = (create(events_path(boot.dir))?, create(console_path(boot.dir))?);
        Ok(Player { steps: steps.into(), events, console })
    }

    fn play(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Event(event) => writeln!(self.events, "{}", serde_json::to_string(event)?)?,
            Step::Console(line) => writeln!(self.console, "{line}")?,
            Step::HalfLine => write!(self.events, "{{\"event\":\"sam")?,
            Step::Silence => {}
        }
        Ok(())
    }
}

impl Running for Player {
    fn ended(&mut self) -> Result<Option<String>> {
        for _ in 0..STEPS_PER_POLL {
            match self.steps.pop_front() {
                None => return Ok(Some("the scripted machine came to its end".into())),
                Some(Step::Silence) => self.steps.push_front(Step::Silence),
                Some(step) => self.play(&step)?,
            }
        }
        Ok(None)
    }

    fn stop(&mut self) {
        self.steps.clear();
    }
}

#[cfg(test)]
#[path = "mock_tests.rs"]
mod tests;
