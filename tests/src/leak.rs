//! What the kernel keeps after a storm: memory and objects that grow with each mount and are not given back.
//!
//! Two iterations of one storm must leave the same behind. The first one warms caches (folders of the overlays, slabs); each later one is held
//! against it. What the kernel frees late (RCU, work queues) is waited for.

use crate::check::Verdicts;
use crate::requirement::has_quarantine;
use crate::storage::Devices;
use anyhow::{Context, Result};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Name of the oracle.
pub const LEAK: &str = "leak";

/// How long the kernel may take to free what it frees late.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// How often to look in that time.
const SETTLE_POLL: Duration = Duration::from_millis(20);

/// Looks in a row that find no less.
const STEADY_LOOKS: u32 = 10;

/// What the kernel holds at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// `struct mount`s, where /proc/slabinfo or sysfs tells (CONFIG_SLUB_DEBUG).
    pub mounts: Option<u64>,
    /// Dentries that are in use: /proc/sys/fs/dentry-state, nr_dentry less nr_unused.
    pub dentries: u64,
    /// Per-CPU memory, KiB: /proc/meminfo, Percpu. Each mount has its counters there.
    pub percpu_kib: u64,
    /// Slabs that cannot be reclaimed, KiB: /proc/meminfo, SUnreclaim. Mounts, superblocks, namespaces.
    pub slab_kib: u64,
    /// The lowest mount id that is free: the kernel gives it to the next mount (mnt_alloc_id(), fs/namespace.c).
    #[serde(default)]
    pub mount_id: u64,
}

/// By how much a footprint may differ from an earlier one of the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Objects that lie freed in per-CPU slabs and count as in use.
    pub mounts: u64,
    /// What else may grow; nothing where others allocate as well.
    pub memory: Option<MemoryBound>,
}

/// By how much memory may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryBound {
    /// Dentries in use.
    pub dentries: u64,
    /// KiB.
    pub percpu_kib: u64,
    /// KiB.
    pub slab_kib: u64,
    /// Mount ids.
    pub mount_ids: u64,
}

/// What one look of the oracle was about, for whoever wants to see more than its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// After the first iteration.
    pub since: Footprint,
    /// After this one: the first time that it was within the bound, or at the limit of the wait.
    pub now: Footprint,
    /// By how much it may be more.
    pub bound: Bound,
}

impl Footprint {
    /// The footprint now.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn now() -> Result<Footprint> {
        let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
        let state = fs::read_to_string("/proc/sys/fs/dentry-state").context("cannot read /proc/sys/fs/dentry-state")?;
        let field = |name| kib(&meminfo, name).with_context(|| format!("/proc/meminfo has no {name}"));
        Ok(Footprint {
            mounts: mounts(),
            dentries: dentries_in_use(&state).with_context(|| format!("dentry-state reads {state:?}"))?,
            percpu_kib: field("Percpu")?,
            slab_kib: field("SUnreclaim")?,
            mount_id: lowest_free_mount_id()?,
        })
    }

    /// Of each part the smaller one.
    fn and_less(self, other: Footprint) -> Footprint {
        Footprint {
            mounts: self.mounts.zip(other.mounts).map(|(a, b)| a.min(b)),
            dentries: self.dentries.min(other.dentries),
            percpu_kib: self.percpu_kib.min(other.percpu_kib),
            slab_kib: self.slab_kib.min(other.slab_kib),
            mount_id: self.mount_id.min(other.mount_id),
        }
    }

    fn growth(self, since: Footprint) -> Footprint {
        Footprint {
            mounts: self.mounts.zip(since.mounts).map(|(now, then)| now.saturating_sub(then)),
            dentries: self.dentries.saturating_sub(since.dentries),
            percpu_kib: self.percpu_kib.saturating_sub(since.percpu_kib),
            slab_kib: self.slab_kib.saturating_sub(since.slab_kib),
            mount_id: self.mount_id.saturating_sub(since.mount_id),
        }
    }

    fn is_within(self, bound: Bound) -> bool {
        let memory = |bound: MemoryBound| {
            self.dentries <= bound.dentries
                && self.percpu_kib <= bound.percpu_kib
                && self.slab_kib <= bound.slab_kib
                && self.mount_id <= bound.mount_ids
        };
        self.mounts.is_none_or(|mounts| mounts <= bound.mounts) && bound.memory.is_none_or(memory)
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mounts = self.mounts.map_or("mounts unknown".to_owned(), |mounts| format!("{mounts} mounts"));
        let Footprint { dentries, percpu_kib, slab_kib, mount_id, .. } = self;
        write!(
            f,
            "{mounts}, {dentries} dentries, {percpu_kib} KiB per-CPU, {slab_kib} KiB of slabs, mount id {mount_id}"
        )
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} mounts", self.mounts)?;
        let Some(memory) = self.memory else { return write!(f, " more") };
        let MemoryBound { dentries, percpu_kib, slab_kib, mount_ids } = memory;
        write!(
            f,
            ", {dentries} dentries, {percpu_kib} KiB per-CPU, {slab_kib} KiB of slabs, {mount_ids} mount ids more"
        )
    }
}

impl Bound {
    /// For a machine with so many CPUs on which nothing else runs. Each CPU keeps some freed objects of each kind, and the per-CPU allocator
    /// some empty pages of each CPU and one empty chunk (PCPU_EMPTY_POP_PAGES_HIGH, mm/percpu.c).
    pub fn of_cpus(cpus: u64) -> Bound {
        let memory =
            MemoryBound { dentries: 64, percpu_kib: 256 + 64 * cpus, slab_kib: 1024 + 256 * cpus, mount_ids: 64 };
        Bound { mounts: 256 * cpus, memory: Some(memory) }
    }

    /// With what KASAN's quarantine may keep besides: a 32nd of all memory and 1 MiB for each CPU (QUARANTINE_FRACTION and
    /// QUARANTINE_PERCPU_SIZE, mm/kasan/quarantine.c), all of it mounts of more than 256 bytes at worst. Per-CPU memory, dentries in use and
    /// mount ids are not kept, so a mount that leaks is seen by these.
    fn and_quarantine(self, memory_kib: u64, cpus: u64) -> Bound {
        let kept_kib = memory_kib / 32 + 1024 * cpus;
        let memory = self.memory.map(|memory| MemoryBound { slab_kib: memory.slab_kib + kept_kib, ..memory });
        Bound { mounts: self.mounts + 4 * kept_kib, memory }
    }

    /// For this machine. On a running host others allocate as well, but few of them mount: only mounts are held against a bound there.
    pub fn of_this_machine(devices: Devices) -> Bound {
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
        let mut bound = Bound::of_cpus(cpus);
        if has_quarantine() {
            let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
            bound = bound.and_quarantine(kib(&meminfo, "MemTotal").unwrap_or(0), cpus);
        }
        match devices {
            Devices::Lab => bound,
            Devices::Host => Bound { memory: None, ..bound },
        }
    }
}

/// Watches over the iterations of one storm.
#[derive(Debug)]
pub struct LeakWatch {
    bound: Bound,
    warm: Option<Footprint>,
    last: Option<Look>,
}

impl LeakWatch {
    /// For storms on this machine.
    pub fn new(bound: Bound) -> LeakWatch {
        LeakWatch { bound, warm: None, last: None }
    }

    /// The last look; nothing before the second iteration is over.
    pub fn last(&self) -> Option<Look> {
        self.last
    }

    /// An iteration is over. The first one is what others are held against.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn iteration_over(&mut self, verdicts: &mut Verdicts) -> Result<()> {
        match self.warm {
            None => self.warm = Some(steady()?),
            Some(since) => {
                let look = Look { since, now: settled(since, self.bound)?, bound: self.bound };
                verdicts.add(LEAK, judge(since, look.now, look.bound));
                self.last = Some(look);
            }
        }
        Ok(())
    }
}

/// The footprint as soon as it shrinks no more: what is held against it shall not hide in what the kernel frees late.
///
/// # Errors
/// /proc is not mounted.
pub fn steady() -> Result<Footprint> {
    let (start, mut least, mut unchanged) = (Instant::now(), Footprint::now()?, 0);
    while unchanged < STEADY_LOOKS && start.elapsed() < SETTLE_LIMIT {
        std::thread::sleep(SETTLE_POLL);
        let next = least.and_less(Footprint::now()?);
        unchanged = if next == least { unchanged + 1 } else { 0 };
        least = next;
    }
    Ok(least)
}

/// The footprint as soon as it is within its bound, or at the limit.
///
/// # Errors
/// /proc is not mounted.
pub fn settled(since: Footprint, bound: Bound) -> Result<Footprint> {
    let start = Instant::now();
    loop {
        let now = Footprint::now()?;
        if now.growth(since).is_within(bound) || start.elapsed() > SETTLE_LIMIT {
            return Ok(now);
        }
        std::thread::sleep(SETTLE_POLL);
    }
}

/// Holds if the kernel keeps no more than it did, but for the bound.
///
/// # Errors
/// The growth, in a sentence.
pub fn judge(since: Footprint, now: Footprint, bound: Bound) -> Result<(), String> {
    let growth = now.growth(since);
    if growth.is_within(bound) {
        return Ok(());
    }
    Err(format!("the kernel keeps more than after the storm before ({growth} more; now {now}; bound: {bound})"))
}

/// Of a mount that is made for this alone, and closed again.
fn lowest_free_mount_id() -> Result<u64> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = open_tree(CWD, "/proc", flags).context("open_tree(/proc, OPEN_TREE_CLONE)")?;
    let path = format!("/proc/self/fdinfo/{}", clone.as_raw_fd());
    let info = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    mount_id_of(&info).with_context(|| format!("{path} names no mount id"))
}

/// Documentation/filesystems/proc.rst, 3.8: "mnt_id:", the id that mountinfo shows.
fn mount_id_of(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// In use of `mnt_cache`, from whichever of both shows it.
fn mounts() -> Option<u64> {
    let slabinfo = fs::read_to_string("/proc/slabinfo").ok();
    slabinfo.as_deref().and_then(mounts_of_slabinfo).or_else(|| {
        let objects = fs::read_to_string("/sys/kernel/slab/mnt_cache/objects").ok()?;
        objects.split_whitespace().next()?.parse().ok()
    })
}

/// Second column: objects in use.
fn mounts_of_slabinfo(slabinfo: &str) -> Option<u64> {
    let line = slabinfo.lines().find_map(|line| line.strip_prefix("mnt_cache "))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Documentation/admin-guide/sysctl/fs.rst: nr_dentry, nr_unused, ...
fn dentries_in_use(state: &str) -> Option<u64> {
    let mut numbers = state.split_whitespace().map(str::parse::<u64>);
    let (all, unused) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(all.saturating_sub(unused))
}

fn kib(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WARM: Footprint =
        Footprint { mounts: Some(40), dentries: 900, percpu_kib: 1200, slab_kib: 9000, mount_id: 60 };

    #[test]
    fn each_part_of_a_footprint_can_fail() {
        let memory = MemoryBound { dentries: 10, percpu_kib: 10, slab_kib: 10, mount_ids: 10 };
        let bound = Bound { mounts: 10, memory: Some(memory) };
        assert_eq!(judge(WARM, WARM, bound), Ok(()));
        // Less than before is no leak.
        assert_eq!(judge(WARM, Footprint { mounts: None, ..Footprint::default() }, bound), Ok(()));
        for grown in [
            Footprint { mounts: Some(51), ..WARM },
            Footprint { dentries: 911, ..WARM },
            Footprint { percpu_kib: 1211, ..WARM },
            Footprint { slab_kib: 9011, ..WARM },
            Footprint { mount_id: 71, ..WARM },
        ] {
            assert!(judge(WARM, grown, bound).unwrap_err().contains("11"), "{grown}");
        }
    }

    #[test]
    fn a_host_that_others_use_has_a_bound_of_mounts_alone() {
        let shared = Bound { mounts: 10, memory: None };
        assert_eq!(judge(WARM, Footprint { slab_kib: 90_000, ..WARM }, shared), Ok(()));
        assert!(
            judge(WARM, Footprint { mounts: Some(51), ..WARM }, shared)
                .unwrap_err()
                .ends_with("bound: 10 mounts more)")
        );
    }

    #[test]
    fn a_tenth_of_a_hundred_thousand_mounts_that_leak_is_seen() {
        // A struct mount has 320 bytes or more.
        let leaked = 10_000;
        let grown = Footprint { mounts: None, slab_kib: WARM.slab_kib + leaked * 320 / 1024, ..WARM };
        assert!(judge(WARM, grown, Bound::of_cpus(2)).is_err());
        let counted = Footprint { mounts: Some(40 + leaked), ..WARM };
        assert!(judge(WARM, counted, Bound::of_cpus(32)).is_err());
    }

    #[test]
    fn a_quarantine_hides_no_mount_that_leaks() {
        let bound = Bound::of_cpus(8).and_quarantine(2 << 20, 8);
        // What a storm on mainline under KASAN was seen to leave in quarantine, on 8 CPUs with 2 GiB.
        let kept = Footprint { mounts: Some(404), slab_kib: WARM.slab_kib + 13_548, ..WARM };
        assert_eq!(judge(WARM, kept, bound), Ok(()));
        assert!(judge(WARM, kept, Bound::of_cpus(8)).is_err());
        assert!(judge(WARM, Footprint { mount_id: WARM.mount_id + 65, ..kept }, bound).is_err());
        assert!(judge(WARM, Footprint { percpu_kib: WARM.percpu_kib + 1000, ..kept }, bound).is_err());
    }

    #[test]
    fn figures_are_found_where_the_kernel_writes_them() {
        assert_eq!(dentries_in_use("1200\t300\t45\t0\t100\t0\n"), Some(900));
        assert_eq!(dentries_in_use("1200\n"), None);
        assert_eq!(kib("Percpu:  1200 kB\nSUnreclaim:     9000 kB\n", "SUnreclaim"), Some(9000));
        assert_eq!(kib("Percpu:  1200 kB\n", "SUnreclaim"), None);
        assert_eq!(mount_id_of("pos:\t0\nflags:\t012000000\nmnt_id:\t60\nino:\t1\n"), Some(60));
        let slabinfo = "slabinfo - version: 2.1\nmnt_cache   40   48  320   12    1 : tunables 0 0 0\n";
        assert_eq!(mounts_of_slabinfo(slabinfo), Some(40));
    }
}
