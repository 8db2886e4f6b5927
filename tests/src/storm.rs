//! The storm: prepare, iterate, clean up. This file owns threads, warm-up and the clock; workloads own the calls.
//!
//! The clock runs from the barrier that releases all threads to the end of the last start: a started container stays mounted, as it does
//! under containerd. Its oracles look at it after the clock has stopped, in the same run, and only then is it unmounted. So every
//! timed container is checked, and no check is timed. Rootfs passes are threads of this process, not processes per pod.

use crate::check::{self, Checks};
use crate::events::Events;
use crate::metrics::Calls;
use crate::mountinfo;
use crate::protocol::{GuestEvent, Sample, StormJob, StormPoint};
use crate::storage::Storage;
use crate::topology::{Container, Layout};
use crate::workload::{Starter, call};
use anyhow::{Context, Result, anyhow};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Runs all points of a job, one after the other, below `base`.
///
/// # Errors
/// A call that must not fail did; the point and the call are named.
pub fn run(job: &StormJob, seed: u64, base: &Path, events: &Events) -> Result<()> {
    let per_point = u64::from(job.warmup_iterations + job.iterations);
    let total = per_point * job.points.len() as u64;
    for (index, point) in job.points.iter().enumerate() {
        let storage = Storage::prepare(base, point.storage, point.propagation)?;
        let layout = Layout::prepare(storage.path(), point.layers, seed)?;
        for turn in 0..per_point {
            let done = index as u64 * per_point + turn;
            let heartbeat = events.heartbeat(GuestEvent::Progress { done, total, unit: "iterations".into() });
            let sample = iterate(point, &layout, turn as u32).with_context(|| format!("storm {point:?}"))?;
            drop(heartbeat);
            if let Some(iteration) = (turn as u32).checked_sub(job.warmup_iterations) {
                events.say(&GuestEvent::Sample(Sample { iteration, ..sample }));
            }
        }
        storage.remove()?;
    }
    Ok(())
}

/// One iteration: all containers started, checked, removed.
fn iterate(point: &StormPoint, layout: &Layout, iteration: u32) -> Result<Sample> {
    let containers =
        (0..point.containers).map(|number| Container::prepare(layout, number)).collect::<Result<Vec<_>>>()?;
    let before = mountinfo::of_this_process()?;
    let (elapsed_ns, mut calls, mut checks) = start_all(point, layout, &containers)?;
    let expected = layout.expected();
    containers.iter().for_each(|container| check::container(&mut checks, container, &expected));
    remove_all(&mut calls, &containers)?;
    check::mount_table(&mut checks, &before, &mountinfo::of_this_process()?);
    let oracle = checks.finish();
    let elapsed_ns = oracle.failures.is_empty().then_some(elapsed_ns);
    Ok(Sample { point: point.clone(), iteration, elapsed_ns, calls: calls.latencies()?, oracle })
}

/// Starts all containers on the point's threads; returns the wall time in ns, from the barrier to the last thread's end.
fn start_all(point: &StormPoint, layout: &Layout, containers: &[Container]) -> Result<(u64, Calls, Checks)> {
    let next = AtomicUsize::new(0);
    let barrier = Barrier::new(point.threads as usize + 1);
    std::thread::scope(|scope| {
        let work = || {
            let mut starter = Starter { layout, profile: point.profile, calls: Calls::default() };
            barrier.wait();
            let read = start_some(&mut starter, point, containers, &next);
            barrier.wait();
            read.map(|read| (starter.calls, read))
        };
        let threads: Vec<_> = (0..point.threads).map(|_| scope.spawn(work)).collect();
        barrier.wait();
        let start = Instant::now();
        barrier.wait();
        let elapsed_ns = start.elapsed().as_nanos() as u64;
        let (mut calls, mut checks) = (Calls::default(), Checks::default());
        for thread in threads {
            let (of_thread, read) = thread.join().map_err(|_| anyhow!("a storm thread panicked"))??;
            calls.merge(of_thread);
            note_inspections(&mut checks, layout, &read);
        }
        Ok((elapsed_ns, calls, checks))
    })
}

/// One thread: takes containers until none is left. Returns what its inspections read, to be judged after the clock.
fn start_some(
    starter: &mut Starter<'_>,
    point: &StormPoint,
    containers: &[Container],
    next: &AtomicUsize,
) -> Result<Vec<Vec<u8>>> {
    let mut read = Vec::new();
    while let Some(container) = containers.get(next.fetch_add(1, Ordering::Relaxed)) {
        for _ in 0..point.inspection_passes {
            read.push(starter.inspect(container)?);
        }
        starter.start(container)?;
    }
    Ok(read)
}

fn note_inspections(checks: &mut Checks, layout: &Layout, read: &[Vec<u8>]) {
    let expected = layout.expected();
    let passwd = expected.iter().find(|file| file.path == "etc/passwd");
    let content = passwd.map_or("", |file| &file.content);
    read.iter().for_each(|found| checks.note("inspection_read", check::passwd(found, content)));
}

fn remove_all(calls: &mut Calls, containers: &[Container]) -> Result<()> {
    for container in containers {
        let result = call::umount_retrying(calls, "umount_rootfs", &container.rootfs);
        result.with_context(|| format!("umount2 {}", container.rootfs.display()))?;
        container.remove()?;
    }
    Ok(())
}
