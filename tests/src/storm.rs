//! The harness of storms: owns threads, start barrier, warm-up and clock, and asks the oracles before it gives out a number.
//!
//! An iteration starts all containers (timed), checks the roots that came of it (untimed: they are still mounted), unmounts them
//! (untimed, its calls logged), and compares the mount table with the one before. Its time runs from the first thread that passed
//! the barrier to the last that ended; an oracle that failed withholds it.

use crate::check::{Verdicts, check_mount_table};
use crate::descriptors;
use crate::events::Events;
use crate::heap;
use crate::leak::{Bound, LeakWatch};
use crate::ledger::{Entries, Ledger, Tables};
use crate::metrics::{Beat, CallLog, latencies};
use crate::mount_tree::{self, Mount};
use crate::namespace_view::unique_id_at;
use crate::peers::Peer;
use crate::phase::{Marks, Phase, Stage, Work, run_phase};
use crate::protocol::{GuestEvent, LedgerKind, Sample, StormJob, StormPoint};
use crate::reader::{self, Readers};
use crate::storage::{Devices, Ground};
use crate::workload::{self, Workload};
use anyhow::{Context, Result, ensure};
use rustix::mount::{UnmountFlags, unmount};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// What ended a job of storms before its end.
#[derive(Debug)]
pub enum Stopped {
    /// Nothing was stormed yet: the job is wrong, or the machine lacks something.
    Preparing(anyhow::Error),
    /// A call of the storm failed, or what it left behind was in the way.
    Storming(anyhow::Error),
}

impl Stopped {
    /// What failed.
    pub fn error(self) -> anyhow::Error {
        match self {
            Stopped::Preparing(error) | Stopped::Storming(error) => error,
        }
    }
}

/// Runs all storms of a job and sends a sample per timed iteration.
///
/// # Errors
/// The storm that could not be run, and the call that failed.
pub fn run(job: &StormJob, seed: u64, devices: Devices, events: &Events) -> Result<(), Stopped> {
    let has_work = || {
        ensure!(!job.points.is_empty() && job.iterations > 0, "the job has no storm, or no iteration, to run");
        descriptors::make_room()
    };
    has_work().map_err(Stopped::Preparing)?;
    heap::keep();
    let per_point = u64::from(job.warmup_iterations) + u64::from(job.iterations);
    let mut progress = Progress { events, done: 0, total: per_point * job.points.len() as u64 };
    for point in &job.points {
        let ready = Ready::of(point, job, seed, devices).with_context(|| described(point));
        let stormed = ready.map_err(Stopped::Preparing)?.storm(point, job, devices, &mut progress);
        stormed.with_context(|| described(point)).map_err(Stopped::Storming)?;
    }
    Ok(())
}

/// What a storm happens on.
struct Ready {
    workload: Box<dyn Workload>,
    peers: Vec<Peer>,
    ground: Ground,
}

impl Ready {
    fn of(point: &StormPoint, job: &StormJob, seed: u64, devices: Devices) -> Result<Ready> {
        ensure!(
            point.threads > 0 && point.containers > 0 && point.layers > 0,
            "a storm needs threads, containers and layers"
        );
        let ground = Ground::mount(point.storage, point.propagation, devices)?;
        let surroundings = job.surroundings;
        let peers =
            (0..surroundings.peer_namespaces).map(|_| Peer::unshare(ground.path())).collect::<Result<Vec<_>>>()?;
        let recorded = surroundings.ledger == LedgerKind::Full;
        let workload = workload::of_point(point, seed, job.manner, recorded, ground.path());
        workload.prepare()?;
        Ok(Ready { workload, peers, ground })
    }

    fn storm(self, point: &StormPoint, job: &StormJob, devices: Devices, progress: &mut Progress<'_>) -> Result<()> {
        let Ready { workload, peers, ground } = self;
        progress.send();
        let mut storm = Storm {
            point,
            workload: &*workload,
            verdicts: Verdicts::default(),
            busy: 0,
            leaked: 0,
            may_leak: job.manner.descriptors_inherited,
            readers: Readers { who: &job.readers, period: Duration::from_micros(u64::from(job.reader_period_us)) },
            mount_table: &mount_tree::read,
            ledger: Ledger::open(job.surroundings.ledger, point.propagation, &peers)?,
            leaks: Some(LeakWatch::new(Bound::of_this_machine(devices))),
        };
        for _ in 0..job.warmup_iterations {
            // What an oracle finds now counts for the first timed iteration.
            storm.iteration(None, progress)?;
            progress.advance();
        }
        for iteration in 0..job.iterations {
            let measured = storm.iteration(Some(iteration), progress)?;
            progress.events.send(&GuestEvent::Sample(storm.judged(measured)));
            progress.advance();
        }
        if storm.busy > 0 {
            progress.events.note(format!("{}: {} umounts were busy and made again", described(point), storm.busy));
        }
        if storm.leaked > 0 {
            progress.events.note(format!(
                "{}: {} mounts leaked, as this containerd does",
                described(point),
                storm.leaked
            ));
        }
        drop(storm);
        drop(workload);
        // Their copies of the storm's mount hold its file system.
        drop(peers);
        if let Some(device) = ground.unmount()? {
            let device = device.display();
            progress.events.note(format!("{}: {device} was free as soon as it was unmounted", described(point)));
        }
        Ok(())
    }
}

/// Takes down what containerd would have left behind for good; returns what it was. Not part of the storm.
fn take_away_leaked<'a>(leaked: impl Iterator<Item = &'a PathBuf>) -> Result<Vec<u64>> {
    let mut ids = Vec::new();
    for target in leaked {
        ids.push(unique_id_at(target)?);
        unmount(target, UnmountFlags::DETACH).with_context(|| format!("umount2({}, MNT_DETACH)", target.display()))?;
        fs::remove_dir(target)?;
        // The pass's folder goes with the last of its layers.
        if let Some(parent) = target.parent() {
            let _ = fs::remove_dir(parent);
        }
    }
    Ok(ids)
}

/// A layer that stays mounted because it is busy is no work done, so that a kernel on which nobody can hold one must not find it busy.
fn check_leaked(leaked: &[u64]) -> Result<(), String> {
    match leaked {
        [] => Ok(()),
        [first, ..] => Err(format!("{} layers were busy, which nobody held: mount {first}", leaked.len())),
    }
}

/// A storm in words.
pub fn described(point: &StormPoint) -> String {
    let (threads, containers, layers) = (point.threads, point.containers, point.layers);
    let names = format!("{:?} on {:?}, {:?} parent", point.profile, point.storage, point.propagation).to_lowercase();
    format!("{names}, {threads} threads, {containers} containers, {layers} layers")
}

struct Storm<'a> {
    point: &'a StormPoint,
    workload: &'a dyn Workload,
    verdicts: Verdicts,
    busy: u64,
    leaked: u64,
    /// Somebody may hold a layer for a moment while it is unmounted: who inherited its descriptor.
    may_leak: bool,
    readers: Readers<'a>,
    mount_table: &'a dyn Fn() -> Result<Vec<Mount>>,
    ledger: Option<Ledger<'a>>,
    leaks: Option<LeakWatch>,
}

impl Storm<'_> {
    /// One iteration, by its number if it is no warm-up. What it measured is not judged yet.
    fn iteration(&mut self, timed: Option<u32>, progress: &Progress<'_>) -> Result<Sample> {
        let before = (self.mount_table)()?;
        let tables = self.ledger.as_ref().map(Ledger::tables).transpose()?;
        let beats: Vec<Beat> = (0..self.point.threads).map(|_| Beat::default()).collect();
        // Readers have no part in a warm-up.
        let who = if timed.is_some() { self.readers.who } else { &[] };
        let readers = Readers { who, ..self.readers };
        let start = |stage: &Stage| {
            let marks = if timed.is_some() { Marks::Region(stage) } else { Marks::None };
            self.on_all(&beats, marks, progress, |unit, log, verdicts| self.workload.iterate(unit, log, verdicts))
        };
        let mut verdicts = Verdicts::default();
        let (started, read) = match &self.ledger {
            None => reader::around(readers, start)?,
            Some(ledger) => ledger.during(&mut verdicts, || reader::around(readers, start))?,
        };
        self.check_roots(&mut verdicts, tables.as_ref(), &started)?;
        let checked = self.on_all(&beats, Marks::None, progress, |unit, _, verdicts| {
            self.workload.check(unit, verdicts);
            Ok(())
        })?;
        let stopped = self.on_all(&beats, Marks::None, progress, |unit, log, _| self.workload.cleanup(unit, log))?;
        let leaked = take_away_leaked(started.logs.iter().flat_map(CallLog::leaked))?;
        self.leaked += leaked.len() as u64;
        if !self.may_leak {
            verdicts.add("busy", check_leaked(&leaked));
        }
        check_mount_table(&mut verdicts, &before, &(self.mount_table)()?);
        let elapsed_ns = u64::try_from(started.elapsed.as_nanos())?;
        let logs: Vec<CallLog<'_>> = started.logs.into_iter().chain(stopped.logs).collect();
        self.close_books(&mut verdicts, tables.as_ref(), &logs, leaked)?;
        self.verdicts.merge(verdicts);
        self.verdicts.merge(started.verdicts);
        self.verdicts.merge(checked.verdicts);
        self.busy += logs.iter().map(CallLog::busy).sum::<u64>();
        let (point, calls) = (self.point.clone(), latencies(&logs)?);
        let leak = self.leaks.as_ref().and_then(LeakWatch::last).map(Box::new);
        let (iteration, oracle) = (timed.unwrap_or_default(), Default::default());
        Ok(Sample { point, iteration, elapsed_ns: Some(elapsed_ns), calls, oracle, leak, readers: read })
    }

    /// Between start and stop there is a root for each container, and what this containerd leaks.
    fn check_roots(&self, verdicts: &mut Verdicts, before: Option<&Tables>, started: &Phase<'_>) -> Result<()> {
        let (Some(ledger), Some(before)) = (&self.ledger, before) else { return Ok(()) };
        let leaked: usize = started.logs.iter().map(|log| log.leaked().len()).sum();
        ledger.check_roots(verdicts, before, self.workload.roots() + leaked)
    }

    /// What holds once all is taken down.
    fn close_books(
        &mut self,
        verdicts: &mut Verdicts,
        before: Option<&Tables>,
        logs: &[CallLog<'_>],
        leaked: Vec<u64>,
    ) -> Result<()> {
        if let (Some(ledger), Some(before)) = (&mut self.ledger, before) {
            let mut entries = Entries { attached: Vec::new(), detached: leaked };
            logs.iter().for_each(|log| entries.append(log.entries().clone()));
            ledger.close(verdicts, before, &entries)?;
        }
        self.leaks.as_mut().map_or(Ok(()), |leaks| leaks.iteration_over(verdicts))
    }

    /// The sample with what all oracles saw since the last; without its number if one failed.
    fn judged(&mut self, sample: Sample) -> Sample {
        let oracle = std::mem::take(&mut self.verdicts).into_oracle();
        let elapsed_ns = sample.elapsed_ns.filter(|_| oracle.failures.is_empty());
        Sample { elapsed_ns, oracle, ..sample }
    }

    fn on_all<'b>(
        &self,
        beats: &'b [Beat],
        marks: Marks<'_>,
        progress: &Progress<'_>,
        work: impl Work,
    ) -> Result<Phase<'b>> {
        let mut beating = Heartbeat { beats, progress, last: 0 };
        run_phase(beats, self.point.containers, &work, marks, &mut || beating.tick())
    }
}

/// Sends progress as long as calls are made, and falls silent when none returns.
struct Heartbeat<'a> {
    beats: &'a [Beat],
    progress: &'a Progress<'a>,
    last: u64,
}

impl Heartbeat<'_> {
    fn tick(&mut self) {
        let now = self.beats.iter().map(Beat::count).sum();
        if now != std::mem::replace(&mut self.last, now) {
            self.progress.send();
        }
    }
}

struct Progress<'a> {
    events: &'a Events,
    done: u64,
    total: u64,
}

impl Progress<'_> {
    fn send(&self) {
        let (done, total) = (self.done, self.total);
        self.events.send(&GuestEvent::Progress { done, total, unit: "iterations".into() });
    }

    fn advance(&mut self) {
        self.done += 1;
        self.send();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::CallKind;
    use crate::protocol::{Profile, Propagation, Storage};
    use std::cell::Cell;

    fn point() -> StormPoint {
        StormPoint {
            profile: Profile::Detach,
            storage: Storage::Tmpfs,
            propagation: Propagation::Shared,
            cpus: 2,
            threads: 3,
            containers: 20,
            layers: 2,
            inspection_passes: 1,
        }
    }

    /// A load that does nothing; its oracle fails for `odd`.
    struct Idle {
        odd: Option<u32>,
    }

    impl Workload for Idle {
        fn prepare(&self) -> Result<()> {
            Ok(())
        }
        fn iterate(&self, _: u32, _: &mut CallLog<'_>, _: &mut Verdicts) -> Result<()> {
            Ok(())
        }
        fn check(&self, unit: u32, verdicts: &mut Verdicts) {
            verdicts.add("even", if self.odd == Some(unit) { Err(format!("{unit} is odd")) } else { Ok(()) });
        }
        fn cleanup(&self, _: u32, _: &mut CallLog<'_>) -> Result<()> {
            Ok(())
        }
        fn roots(&self) -> usize {
            0
        }
    }

    /// Two iterations of `workload`, of which the first is warm-up.
    fn sample_of(workload: &Idle, mount_table: &dyn Fn() -> Result<Vec<Mount>>) -> Sample {
        let dir = tempfile::tempdir().unwrap();
        let events = Events::to_file(&dir.path().join("events")).unwrap();
        let progress = Progress { events: &events, done: 0, total: 1 };
        let point = point();
        let mut storm = Storm {
            point: &point,
            workload,
            verdicts: Verdicts::default(),
            busy: 0,
            leaked: 0,
            may_leak: false,
            readers: Readers { who: &[], period: Duration::ZERO },
            mount_table,
            ledger: None,
            leaks: None,
        };
        storm.iteration(None, &progress).unwrap();
        let measured = storm.iteration(Some(0), &progress).unwrap();
        storm.judged(measured)
    }

    #[test]
    fn a_storm_whose_oracles_hold_has_a_number() {
        let sample = sample_of(&Idle { odd: None }, &|| Ok(Vec::new()));
        assert!(sample.elapsed_ns.is_some());
        assert_eq!((sample.oracle.checks["even"], sample.oracle.checks["mount_table"]), (40, 2));
    }

    #[test]
    fn a_failed_oracle_withholds_the_number() {
        let sample = sample_of(&Idle { odd: Some(7) }, &|| Ok(Vec::new()));
        assert_eq!(sample.elapsed_ns, None);
        // The warm-up's counts as well.
        assert_eq!(sample.oracle.failures, ["7 is odd", "7 is odd"]);
    }

    #[test]
    fn a_layer_that_was_busy_without_a_holder_is_a_failure() {
        assert_eq!(check_leaked(&[]), Ok(()));
        assert_eq!(check_leaked(&[7, 8]).unwrap_err(), "2 layers were busy, which nobody held: mount 7");
    }

    #[test]
    fn a_mount_left_behind_withholds_the_number() {
        let tables = Cell::new(0);
        let growing = || {
            tables.set(tables.get() + 1);
            let line = |id| format!("{id} 1 0:2 / /tmp/{id} rw - tmpfs storm rw\n");
            mount_tree::parse(&(0..tables.get()).map(line).collect::<String>())
        };
        let sample = sample_of(&Idle { odd: None }, &growing);
        assert_eq!(sample.elapsed_ns, None);
        assert_eq!(sample.oracle.failures[0], "after the storm the tmpfs mount 1 at /tmp/1 is left behind");
    }

    #[test]
    fn a_heart_beats_only_while_calls_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let events = Events::to_file(&path).unwrap();
        let progress = Progress { events: &events, done: 1, total: 9 };
        let beats = [Beat::default(), Beat::default()];
        let mut heart = Heartbeat { beats: &beats, progress: &progress, last: 0 };
        let lines = || std::fs::read_to_string(&path).unwrap().lines().count();
        heart.tick();
        assert_eq!(lines(), 0);
        CallLog::new(&beats[1]).time(CallKind::Umount, || Ok::<_, ()>(())).unwrap();
        heart.tick();
        heart.tick();
        assert_eq!(lines(), 1);
    }

    #[test]
    fn a_storm_is_described_by_all_that_tells_it_from_others() {
        assert_eq!(described(&point()), "detach on tmpfs, shared parent, 3 threads, 20 containers, 2 layers");
    }
}
