//! Threads that start together and share a queue of units, and the clock over them.

use crate::check::Verdicts;
use crate::heap;
use crate::metrics::{Beat, CallLog};
use crate::sys;
use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Barrier, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a waiting harness looks for signs of life; half of what the protocol promises the host.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What each thread does with each unit it takes.
pub trait Work: Fn(u32, &mut CallLog<'_>, &mut Verdicts) -> Result<()> + Sync {}
impl<F: Fn(u32, &mut CallLog<'_>, &mut Verdicts) -> Result<()> + Sync> Work for F {}

/// What came of one pass of all threads over all units.
#[derive(Debug)]
pub struct Phase<'a> {
    /// From the first thread's start to the last one's end.
    pub elapsed: Duration,
    /// Each thread's calls.
    pub logs: Vec<CallLog<'a>>,
    /// What all threads checked.
    pub verdicts: Verdicts,
}

/// What one thread has to show.
struct Shift<'a> {
    start: Instant,
    end: Instant,
    log: CallLog<'a>,
    verdicts: Verdicts,
    result: Result<()>,
}

/// Gives `units` to a thread for each of `beats`, which all start together and take the next unit when they have done one. An error
/// ends the phase as soon as each thread has finished its unit. `tick` is called every [`HEARTBEAT`].
///
/// # Errors
/// The first error of a thread's work.
pub fn run_phase<'a>(
    beats: &'a [Beat],
    units: u32,
    work: &dyn Work,
    marks: Marks<'_>,
    tick: &mut dyn FnMut(),
) -> Result<Phase<'a>> {
    let queue = Queue { next: AtomicU32::new(0), units, stopped: AtomicBool::new(false) };
    let line = Line::new(beats.len(), marks);
    let shifts = std::thread::scope(|scope| {
        let (sender, receiver) = channel();
        for beat in beats {
            let (sender, queue, line) = (sender.clone(), &queue, &line);
            // Nobody to receive it means that the phase is over by a panic, which the scope reports.
            scope.spawn(move || sender.send(work_shift(beat, queue, line, work)).is_ok());
        }
        drop(sender);
        collect(&receiver, tick)
    });
    summed(shifts)
}

/// How far a measured phase is, for those who look on: threads are made before it and end after it, which is no part of it.
#[derive(Debug, Default)]
pub struct Stage(AtomicU8);

/// Where a [`Stage`] may be; in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Nothing is done yet.
    Quiet,
    /// Threads are made.
    Preparing,
    /// All threads are past the start line, and one at least is not done.
    Running,
    /// All threads are done, or nothing came of it.
    Over,
}

impl Stage {
    const MOMENTS: [Moment; 4] = [Moment::Quiet, Moment::Preparing, Moment::Running, Moment::Over];

    /// Where it is.
    pub fn now(&self) -> Moment {
        Stage::MOMENTS[usize::from(self.0.load(Ordering::Acquire))]
    }

    /// Goes on to `moment`.
    pub fn reach(&self, moment: Moment) {
        self.0.store(moment as u8, Ordering::Release);
    }
}

/// Whether a phase is measured.
#[derive(Clone, Copy, Debug)]
pub enum Marks<'a> {
    /// It is: the first thread past the start line marks its begin, the last one to be done its end, for the simulated machine and on
    /// this stage.
    Region(&'a Stage),
    /// It is not.
    None,
}

/// Where all threads start together, and by which the last one knows that it is.
pub struct Line<'a> {
    barrier: Barrier,
    running: AtomicUsize,
    ended: Mutex<bool>,
    end: Condvar,
    marks: Marks<'a>,
}

/// A thread between start and end of its work, also if that ends in a panic.
pub struct Running<'a>(&'a Line<'a>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            if let Marks::Region(stage) = self.0.marks {
                sys::region_end();
                stage.reach(Moment::Over);
            }
            *self.0.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.0.end.notify_all();
        }
    }
}

impl<'a> Line<'a> {
    /// For so many threads.
    pub fn new(threads: usize, marks: Marks<'a>) -> Line<'a> {
        Line {
            barrier: Barrier::new(threads),
            running: AtomicUsize::new(threads),
            ended: Mutex::new(false),
            end: Condvar::new(),
            marks,
        }
    }

    /// Waits until all are here. This thread is done when what it gets is dropped.
    pub fn start(&'a self) -> Running<'a> {
        if self.barrier.wait().is_leader()
            && let Marks::Region(stage) = self.marks
        {
            sys::region_begin();
            stage.reach(Moment::Running);
        }
        Running(self)
    }

    /// Waits until all are done: a thread's end takes its stack apart, in the memory of those that still run.
    pub fn leave(&self) {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.end.wait_while(ended, |ended| !*ended));
    }
}

fn work_shift<'a>(beat: &'a Beat, queue: &Queue, line: &Line<'_>, work: &dyn Work) -> Shift<'a> {
    let (mut log, mut verdicts) = (CallLog::new(beat), Verdicts::default());
    heap::warm();
    let running = line.start();
    let start = Instant::now();
    let mut result = Ok(());
    while let Some(unit) = queue.take() {
        if let Err(error) = work(unit, &mut log, &mut verdicts) {
            queue.stop();
            result = Err(error.context(format!("container {unit}")));
            break;
        }
    }
    let end = Instant::now();
    drop(running);
    line.leave();
    Shift { start, end, log, verdicts, result }
}

/// Waits for all threads. A thread that hangs in the kernel cannot be ended from here: no beat is sent then, and the host, which
/// hears nothing, ends the machine.
fn collect<'a>(receiver: &Receiver<Shift<'a>>, tick: &mut dyn FnMut()) -> Vec<Shift<'a>> {
    let mut shifts = Vec::new();
    loop {
        match receiver.recv_timeout(HEARTBEAT) {
            Ok(shift) => shifts.push(shift),
            Err(RecvTimeoutError::Timeout) => tick(),
            Err(RecvTimeoutError::Disconnected) => return shifts,
        }
    }
}

fn summed(shifts: Vec<Shift<'_>>) -> Result<Phase<'_>> {
    let start = shifts.iter().map(|shift| shift.start).min().context("no thread came to its end")?;
    let end = shifts.iter().map(|shift| shift.end).max().context("no thread came to its end")?;
    let mut phase = Phase { elapsed: end - start, logs: Vec::new(), verdicts: Verdicts::default() };
    for shift in shifts {
        shift.result?;
        phase.logs.push(shift.log);
        phase.verdicts.merge(shift.verdicts);
    }
    Ok(phase)
}

/// The units still to be done.
struct Queue {
    next: AtomicU32,
    units: u32,
    stopped: AtomicBool,
}

impl Queue {
    fn take(&self) -> Option<u32> {
        let unit = self.next.fetch_add(1, Ordering::Relaxed);
        (unit < self.units && !self.stopped.load(Ordering::Relaxed)).then_some(unit)
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::CallKind;
    use anyhow::ensure;
    use std::collections::BTreeSet;

    fn beats(threads: usize) -> Vec<Beat> {
        (0..threads).map(|_| Beat::default()).collect()
    }

    #[test]
    fn each_unit_is_done_once() {
        let (beats, units) = (beats(3), Mutex::new(Vec::new()));
        let work = |unit: u32, log: &mut CallLog<'_>, verdicts: &mut Verdicts| {
            verdicts.add("seen", Ok(()));
            log.time(CallKind::Umount, || {
                units.lock().unwrap().push(unit);
                Ok(())
            })
        };
        let phase = run_phase(&beats, 20, &work, Marks::None, &mut || {}).unwrap();
        let units = units.into_inner().unwrap();
        assert_eq!(units.len(), 20);
        assert_eq!(units.into_iter().collect::<BTreeSet<_>>(), (0..20).collect());
        assert_eq!(phase.logs.len(), 3);
        assert_eq!(phase.verdicts.into_oracle().checks["seen"], 20);
        assert_eq!(beats.iter().map(Beat::count).sum::<u64>(), 20);
    }

    #[test]
    fn the_time_is_that_of_the_slowest_thread() {
        let beats = beats(2);
        let nap = |unit: u32, _: &mut CallLog<'_>, _: &mut Verdicts| {
            std::thread::sleep(Duration::from_millis(u64::from(unit) * 30));
            Ok(())
        };
        let phase = run_phase(&beats, 2, &nap, Marks::None, &mut || {}).unwrap();
        assert!(phase.elapsed >= Duration::from_millis(30), "{:?}", phase.elapsed);
    }

    #[test]
    fn who_looks_on_sees_a_phase_run_only_while_its_threads_work() {
        let (beats, stage) = (beats(2), Stage::default());
        assert_eq!(stage.now(), Moment::Quiet);
        stage.reach(Moment::Preparing);
        let seen = Mutex::new(Vec::new());
        let look = |_: u32, _: &mut CallLog<'_>, _: &mut Verdicts| {
            // The thread that opens the line may be behind the others by a moment.
            std::thread::sleep(Duration::from_millis(5));
            seen.lock().unwrap().push(stage.now());
            Ok(())
        };
        run_phase(&beats, 4, &look, Marks::Region(&stage), &mut || {}).unwrap();
        assert_eq!(seen.into_inner().unwrap(), [Moment::Running; 4]);
        assert_eq!(stage.now(), Moment::Over);
    }

    #[test]
    fn an_error_ends_the_phase_and_names_the_container() {
        let (beats, done) = (beats(1), AtomicU32::new(0));
        let work = |unit: u32, _: &mut CallLog<'_>, _: &mut Verdicts| {
            done.fetch_add(1, Ordering::Relaxed);
            ensure!(unit < 4, "umount2(/x, 0): EBUSY");
            Ok(())
        };
        let error = run_phase(&beats, 1000, &work, Marks::None, &mut || {}).unwrap_err();
        assert_eq!(format!("{error:#}"), "container 4: umount2(/x, 0): EBUSY");
        assert_eq!(done.into_inner(), 5);
    }
}
