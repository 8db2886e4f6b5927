//! Loads with known answers, by which the simulated machine is held to account: each is a measured region of its own.

use crate::events::Events;
use crate::phase::{Line, Marks, Stage};
use crate::protocol::{GuestEvent, Load, LoadJob, LoadResult};
use crate::sys;
use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What a thread of a load does, given its number.
type Shift<'a> = dyn Fn(u32) + Sync + 'a;

/// Runs all loads of a job, one after the other, and sends a result for each.
///
/// # Errors
/// A load without threads, or a thread that cannot be bound to its CPU.
pub fn run(job: &LoadJob, events: &Events) -> Result<()> {
    for load in &job.loads {
        let elapsed = run_one(load).with_context(|| format!("{load:?}"))?;
        let result = LoadResult { load: *load, elapsed_ns: u64::try_from(elapsed.as_nanos())? };
        events.send(&GuestEvent::Load(result));
    }
    Ok(())
}

fn run_one(load: &Load) -> Result<Duration> {
    match *load {
        Load::Spinners { threads, insns } => together(threads, &|_| sys::spin_insns(insns)),
        Load::Spinlock { threads, section_insns, sections } => {
            let lock = Spinlock::default();
            let left = AtomicU32::new(sections);
            together(threads, &|_| while lock.section(&left, section_insns) {})
        }
        Load::QueuedLock { threads, section_insns, sections } => {
            let lock = QueuedLock::new(threads);
            let left = AtomicU32::new(sections);
            together(threads, &|me| while lock.section(me, &left, section_insns) {})
        }
        Load::Handover { rounds } => handover(rounds),
    }
}

/// A test-and-test-and-set lock: the simplest that spins as the kernel's do, looking at a word and pausing.
#[derive(Default)]
#[repr(align(64))]
struct Spinlock(AtomicBool);

impl Spinlock {
    /// Passes one critical section if one is left, and says whether it was.
    fn section(&self, left: &AtomicU32, insns: u64) -> bool {
        while self.0.swap(true, Ordering::Acquire) {
            while self.0.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        }
        let passed = pass(left, insns);
        self.0.store(false, Ordering::Release);
        passed
    }
}

/// One section if one is left, under a lock; says whether it was.
fn pass(left: &AtomicU32, insns: u64) -> bool {
    let count = left.load(Ordering::Relaxed);
    if count > 0 {
        left.store(count - 1, Ordering::Relaxed);
        sys::spin_insns(insns);
    }
    count > 0
}

/// A lock with a queue before it (Mellor-Crummey and Scott, "Algorithms for Scalable Synchronization on Shared-Memory Multiprocessors", 1991),
/// whose head waits for the lock itself, as that of the kernel's qspinlock does. Places are threads by their number, and 0 is nobody.
struct QueuedLock {
    held: AtomicBool,
    tail: AtomicU32,
    places: Vec<Place>,
}

#[derive(Default)]
#[repr(align(64))]
struct Place {
    is_head: AtomicBool,
    next: AtomicU32,
}

impl QueuedLock {
    fn new(threads: u32) -> QueuedLock {
        let places = (0..=threads).map(|_| Place::default()).collect();
        QueuedLock { held: AtomicBool::new(false), tail: AtomicU32::new(0), places }
    }

    fn section(&self, thread: u32, left: &AtomicU32, insns: u64) -> bool {
        self.lock(thread + 1);
        let passed = pass(left, insns);
        self.held.store(false, Ordering::Release);
        passed
    }

    fn lock(&self, me: u32) {
        let place = &self.places[me as usize];
        place.is_head.store(false, Ordering::Relaxed);
        place.next.store(0, Ordering::Relaxed);
        let before = self.tail.swap(me, Ordering::AcqRel);
        if before != 0 {
            self.places[before as usize].next.store(me, Ordering::Release);
            while !place.is_head.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
        }
        while self.held.load(Ordering::Acquire) {
            std::hint::spin_loop();
        }
        // Only the head of the queue comes here.
        self.held.store(true, Ordering::Relaxed);
        if self.tail.compare_exchange(me, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            return;
        }
        let mut next = place.next.load(Ordering::Acquire);
        while next == 0 {
            std::hint::spin_loop();
            next = place.next.load(Ordering::Acquire);
        }
        self.places[next as usize].is_head.store(true, Ordering::Release);
    }
}

/// Two threads on two CPUs that wake each other in turn: each wake-up is a futex(2) call, an interrupt, and a CPU that leaves its idle loop.
fn handover(rounds: u32) -> Result<Duration> {
    let turn = AtomicU32::new(0);
    together(2, &|me| {
        for round in 0..rounds {
            let mine = 2 * round + me;
            while turn.load(Ordering::Acquire) != mine {
                sys::futex_wait(&turn, mine.wrapping_sub(1));
            }
            turn.store(mine + 1, Ordering::Release);
            sys::futex_wake(&turn);
        }
    })
}

/// Runs `shift` on so many threads at once, each bound to the CPU of its number; the time from the start of the first to the end of the last.
fn together(threads: u32, shift: &Shift<'_>) -> Result<Duration> {
    ensure!(threads > 0, "a load needs a thread");
    let stage = Stage::default();
    let line = Line::new(threads as usize, Marks::Region(&stage));
    let times = std::thread::scope(|scope| {
        let start = |index: u32| {
            let line = &line;
            scope.spawn(move || -> Result<(Instant, Instant)> {
                // The line is kept even by a thread that cannot be bound: others wait at it.
                let bound = bind(index);
                let running = line.start();
                let start = Instant::now();
                shift(index);
                let end = Instant::now();
                drop(running);
                bound.map(|()| (start, end))
            })
        };
        let handles: Vec<_> = (0..threads).map(start).collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, Result<(Instant, Instant)>>| {
            handle.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
        };
        handles.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let start = times.iter().map(|time| time.0).min().context("no thread ran")?;
    let end = times.iter().map(|time| time.1).max().context("no thread ran")?;
    Ok(end - start)
}

fn bind(index: u32) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(index as usize)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("there is no CPU {index} for thread {index}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_load_comes_to_its_end() {
        for load in [
            Load::Spinners { threads: 2, insns: 10_000 },
            Load::Spinlock { threads: 2, section_insns: 100, sections: 50 },
            Load::QueuedLock { threads: 2, section_insns: 100, sections: 50 },
            Load::Handover { rounds: 20 },
        ] {
            assert!(run_one(&load).unwrap() > Duration::ZERO, "{load:?}");
        }
    }

    #[test]
    fn a_lock_lets_so_many_through_and_no_more() {
        let (lock, left) = (Spinlock::default(), AtomicU32::new(3));
        let passed = (0..5).filter(|_| lock.section(&left, 10)).count();
        assert_eq!(passed, 3);
    }

    #[test]
    fn a_queued_lock_lets_one_in_at_a_time_and_so_many_in_all() {
        let (lock, left) = (QueuedLock::new(2), AtomicU32::new(2000));
        let passed = std::thread::scope(|scope| {
            // `pass` counts down in two steps: what two threads did at once would be counted once.
            let shift = |me| (0..).take_while(|_| lock.section(me, &left, 10)).count();
            let threads: Vec<_> = (0..2).map(|me| scope.spawn(move || shift(me))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        assert_eq!(passed, 2000);
    }

    #[test]
    fn a_thread_without_a_cpu_is_an_error() {
        let error = run_one(&Load::Spinners { threads: 1023, insns: 1 }).unwrap_err();
        assert!(format!("{error:#}").contains("there is no CPU"), "{error:#}");
    }
}
