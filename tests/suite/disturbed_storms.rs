//! Storms that are disturbed: workers killed, no room for mounts or files, layers that vanish. The host of the storm recovers as containerd does
//! when it starts again, nothing stays behind, and the next storm is whole.

use super::trials;
use anyhow::{Context, Result, bail, ensure};
use mount_storms::call::{Refused, Verdict, named, same};
use mount_storms::check::Verdicts;
use mount_storms::layout::Layout;
use mount_storms::leak::{self, Bound, Footprint};
use mount_storms::loop_disk::LoopDisk;
use mount_storms::metrics::{Beat, CallLog};
use mount_storms::mountinfo;
use mount_storms::namespace_view::View;
use mount_storms::protocol::{Manner, Profile, Propagation, Storage, StormPoint, UserNamespaces};
use mount_storms::recovery::{recover, unmount_when_let_go};
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use mount_storms::second_namespace::SecondNamespace;
use mount_storms::shim::Shim;
use mount_storms::storage::{self, BUSY_LIMIT, Devices};
use mount_storms::user_ns::IdMap;
use mount_storms::workload::{self, Pass, Workload};
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::mount::OpenTreeFlags;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

trials!("disturbed_storms":
    a_storm_whose_workers_are_killed_leaves_nothing_behind,
    a_killed_worker_takes_its_own_namespace_along_and_no_other,
    a_storm_in_a_full_namespace_leaves_nothing_behind,
    a_storm_on_a_full_tmpfs_leaves_nothing_behind,
    a_storm_whose_layers_vanish_leaves_nothing_behind,
    storms_that_are_killed_again_and_again_do_not_leak,
    mounts_that_are_kept_are_seen_as_a_leak,
);

const CONTAINERS: u32 = 3;
const LAYERS: u32 = 6;
/// Storms that are killed until one was in the middle of its work.
const ROUNDS: usize = 40;
const MOUNT_MAX: &str = "/proc/sys/fs/mount-max";

/// Where a storm happens: a shared tmpfs with layers on it.
struct Ground<'a> {
    s: &'a Scratch,
    layout: Layout,
    workload: Box<dyn Workload>,
    before: BTreeSet<u64>,
}

impl Ground<'_> {
    fn make(s: &Scratch) -> Result<Ground<'_>> {
        requirement::idmapped_mounts()?;
        requirement::overlayfs()?;
        requirement::statmount()?;
        s.tmpfs("storm")?;
        s.make("storm", MsFlags::MS_SHARED)?;
        let root = s.path("storm");
        let manner = Manner { descriptors_inherited: true, shims: false, user_namespaces: UserNamespaces::PerPass };
        let workload = workload::of_point(&point(), 1, manner, false, &root);
        workload.prepare()?;
        Ok(Ground { s, layout: Layout::new(&root, LAYERS), workload, before: View::OWN.ids()? })
    }

    /// All containers, by two threads; what went wrong, in words.
    fn storm(&self) -> Vec<String> {
        let next = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let thread = || {
                let (beat, mut errors) = (Beat::default(), Vec::new());
                loop {
                    let container = next.fetch_add(1, Ordering::Relaxed);
                    if container >= CONTAINERS {
                        return errors;
                    }
                    let mut log = CallLog::new(&beat);
                    let started = self.workload.iterate(container, &mut log, &mut Verdicts::default());
                    errors.extend(started.err().map(|error| format!("{error:#}")));
                }
            };
            let threads = [scope.spawn(thread), scope.spawn(thread)];
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap_or_else(|_| vec!["a thread panicked".into()]))
                .collect()
        })
    }

    fn recover(&self) -> Result<usize> {
        recover(&self.s.path("storm"), &self.layout.tmpmounts())
    }

    /// Nothing is left, and a storm that nobody disturbs is whole; then the file system is free.
    fn proven_whole(self) -> Verdict {
        self.recover()?;
        same("unique mount ids after recovery", &View::OWN.ids()?, &self.before)?;
        same("what went wrong in an undisturbed storm", self.storm(), Vec::<String>::new())?;
        let mut verdicts = Verdicts::default();
        (0..CONTAINERS).for_each(|container| self.workload.check(container, &mut verdicts));
        same("failed checks", verdicts.into_oracle().failures, Vec::<String>::new())?;
        self.recover()?;
        let path = self.s.path("storm");
        let number = storage::anonymous_number(&path)?;
        unmount_when_let_go(&path)?;
        // Elsewhere others mount meanwhile.
        if requirement::own_kernel().is_ok() {
            storage::superblock_is_gone(&path, number, BUSY_LIMIT)?;
        }
        Ok(())
    }

    /// A rootfs pass as a shim makes it.
    fn pass(&self, container: u32) -> Pass {
        Pass {
            profile: Profile::Detach,
            map: IdMap::of_container(container),
            descriptors_inherited: true,
            temporary: self.layout.idmapped(container, 0),
            layers: self.layout.lower_dirs(),
            upper: Some((self.layout.upper(container), self.layout.work(container))),
            target: self.layout.rootfs(container),
            recorded: false,
        }
    }

    /// A shim per container makes its root, and is killed in the middle of it, `after` so long. Says how many were.
    fn killed_storm(&self, after: Duration) -> Result<u32> {
        let shims = (0..CONTAINERS).map(|_| Shim::start(None)).collect::<Result<Vec<Shim>>>()?;
        let killed = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for (container, shim) in (0..).zip(&shims) {
                let killed = &killed;
                scope.spawn(move || {
                    let beat = Beat::default();
                    if shim.run(&self.pass(container), &mut CallLog::new(&beat)).is_err() {
                        killed.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for (turn, shim) in (1..).zip(&shims) {
                std::thread::sleep(after * turn / CONTAINERS);
                kill(Pid::from_raw(shim.pid() as i32), Signal::SIGKILL)?;
            }
            anyhow::Ok(())
        })?;
        Ok(killed.into_inner())
    }
}

fn point() -> StormPoint {
    StormPoint {
        profile: Profile::Detach,
        storage: Storage::Tmpfs,
        propagation: Propagation::Shared,
        cpus: 0,
        threads: 2,
        containers: CONTAINERS,
        layers: LAYERS,
        inspection_passes: 1,
    }
}

/// Times after which the last pass is killed: from its first calls on an emulated CPU to its end on a fast one.
fn moments() -> impl Iterator<Item = Duration> + Clone {
    [1, 4, 16, 64].into_iter().map(Duration::from_millis)
}

fn a_storm_whose_workers_are_killed_leaves_nothing_behind(s: &Scratch) -> Verdict {
    let ground = Ground::make(s)?;
    let (mut killed, mut left) = (0, 0);
    for (round, moment) in (0..ROUNDS).zip(moments().cycle()) {
        killed += ground.killed_storm(moment)?;
        left += ground.recover()?;
        same("unique mount ids after recovery", &View::OWN.ids()?, &ground.before)?;
        if left > 0 && round + 1 >= moments().count() {
            break;
        }
    }
    ensure!(killed > 0, "no worker was killed before it was done");
    ensure!(left > 0, "no killed worker left a mount behind: none was in the middle of its work");
    ground.proven_whole()
}

fn a_killed_worker_takes_its_own_namespace_along_and_no_other(s: &Scratch) -> Verdict {
    requirement::ext4_on_loop()?;
    let ground = Ground::make(s)?;
    let disk = LoopDisk::with_ext4(s)?;
    let second = SecondNamespace::copy()?;
    let worker = second.inside(|| {
        s.mount(disk.path(), "ext4", "own", "")?;
        Shim::start(None)
    })?;
    // From here on the worker alone is in its namespace.
    drop(second);
    same("mounts at own, outside the worker's namespace", s.mounts_at("own")?, 0)?;
    disk.claim().refused_with(Errno::EBUSY)?;
    kill(Pid::from_raw(worker.pid() as i32), Signal::SIGKILL)?;
    drop(worker);
    disk.claim()?;
    same("unique mount ids", &View::OWN.ids()?, &ground.before)?;
    ground.proven_whole()
}

/// fs.mount-max set to so many mounts more than there are; back to what it was when dropped.
struct MountMax(String);

impl MountMax {
    fn leaving_room_for(mounts: usize) -> Result<MountMax> {
        requirement::own_kernel()?;
        requirement::mount_max()?;
        let before = fs::read_to_string(MOUNT_MAX)?;
        fs::write(MOUNT_MAX, (mountinfo::of_this_process()?.len() + mounts).to_string())?;
        Ok(MountMax(before))
    }
}

impl Drop for MountMax {
    fn drop(&mut self) {
        let _ = fs::write(MOUNT_MAX, &self.0);
    }
}

fn a_storm_in_a_full_namespace_leaves_nothing_behind(s: &Scratch) -> Verdict {
    let ground = Ground::make(s)?;
    for room in [1, 3, LAYERS as usize, LAYERS as usize + 1] {
        let limit = MountMax::leaving_room_for(room)?;
        failed_with(&ground.storm(), &["ENOSPC", "No space left"])?;
        drop(limit);
        ground.recover()?;
        same("unique mount ids after recovery", &View::OWN.ids()?, &ground.before)?;
    }
    ground.proven_whole()
}

/// Something failed, and nothing for any other reason than these.
fn failed_with(errors: &[String], reasons: &[&str]) -> Verdict {
    ensure!(!errors.is_empty(), "the storm was not disturbed: nothing failed");
    match errors.iter().find(|error| !reasons.iter().any(|reason| error.contains(reason))) {
        Some(other) => bail!("a container failed for another reason than {reasons:?}: {other}"),
        None => Ok(()),
    }
}

fn a_storm_on_a_full_tmpfs_leaves_nothing_behind(s: &Scratch) -> Verdict {
    let ground = Ground::make(s)?;
    let used = rustix::fs::statvfs(s.path("storm"))?;
    let inodes = used.f_files - used.f_ffree;
    let remount = |options: &str| {
        let call = format!("mount(storm, MS_REMOUNT, {options})");
        named(call, nix::mount::mount(None::<&str>, &s.path("storm"), None::<&str>, MsFlags::MS_REMOUNT, Some(options)))
    };
    for room in [1, 5, 9] {
        remount(&format!("nr_inodes={}", inodes + room))?;
        failed_with(&ground.storm(), &["ENOSPC", "No space left"])?;
        // A limit of 0 would be none, and none cannot be limited again (shmem_reconfigure, mm/shmem.c).
        remount(&format!("nr_inodes={}", used.f_files))?;
        ground.recover()?;
        same("unique mount ids after recovery", &View::OWN.ids()?, &ground.before)?;
    }
    // Roots can be mounted on a full disk; what is written into them is refused.
    let used = rustix::fs::statvfs(s.path("storm"))?;
    remount(&format!("size={}", (used.f_blocks - used.f_bfree) * used.f_frsize + (64 << 10)))?;
    let filled = named("write(storm/filler)", fs::write(s.path("storm/filler"), vec![0; 128 << 10]));
    filled.refused_with(Errno::ENOSPC)?;
    same("what went wrong in a storm that writes nothing", ground.storm(), Vec::<String>::new())?;
    let file = ground.layout.rootfs(0).join("new");
    named("write(rootfs/new)", fs::write(file, vec![0; 128 << 10])).refused_with(Errno::ENOSPC)?;
    remount("size=16m")?;
    fs::remove_file(s.path("storm/filler"))?;
    ground.proven_whole()
}

fn a_storm_whose_layers_vanish_leaves_nothing_behind(s: &Scratch) -> Verdict {
    requirement::two_cpus()?;
    let ground = Ground::make(s)?;
    // One layer that is gone from the beginning, and then all of them, which come and go while the storm runs.
    let (first, away) = (ground.layout.layer(3), s.path("storm/away"));
    fs::rename(&first, &away)?;
    failed_with(&ground.storm(), &["ENOENT", "No such file"])?;
    fs::rename(&away, &first)?;
    ground.recover()?;
    same("unique mount ids after recovery", &View::OWN.ids()?, &ground.before)?;
    for _ in 0..4 {
        let errors = while_layers_vanish(&ground, &away)?;
        // A layer that moves away between open_tree(2) and the overlay's mount(2) may be seen as gone or as what it was.
        ensure!(errors.iter().all(|error| error.contains("No such file") || error.contains("Stale")), "{errors:?}");
        ground.recover()?;
        same("unique mount ids after recovery", &View::OWN.ids()?, &ground.before)?;
    }
    ground.proven_whole()
}

fn while_layers_vanish(ground: &Ground<'_>, away: &PathBuf) -> Result<Vec<String>> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let vanishing = scope.spawn(|| -> Verdict {
            for layer in (0..LAYERS).cycle() {
                let path = ground.layout.layer(layer);
                fs::rename(&path, away)?;
                std::thread::yield_now();
                fs::rename(away, &path)?;
                if over.load(Ordering::Acquire) {
                    break;
                }
            }
            Ok(())
        });
        let errors = ground.storm();
        over.store(true, Ordering::Release);
        vanishing.join().map_err(|_| anyhow::anyhow!("the thread that moves layers panicked"))??;
        Ok(errors)
    })
}

fn storms_that_are_killed_again_and_again_do_not_leak(s: &Scratch) -> Verdict {
    // Elsewhere others allocate and free meanwhile.
    requirement::own_kernel()?;
    let ground = Ground::make(s)?;
    let round = || -> Verdict {
        for moment in moments().skip(1).take(2) {
            ground.killed_storm(moment)?;
            ground.recover()?;
        }
        Ok(())
    };
    round()?;
    let (warm, bound) = (leak::steady()?, Bound::of_this_machine(Devices::Lab));
    (0..2).try_for_each(|_| round())?;
    leak::judge(warm, leak::settled(warm, bound)?, bound).map_err(anyhow::Error::msg)?;
    ground.proven_whole()
}

fn mounts_that_are_kept_are_seen_as_a_leak(s: &Scratch) -> Verdict {
    requirement::own_kernel()?;
    a_single_one_keeps_its_superblock(s)?;
    requirement::freed_memory_is_free()?;
    let bound = Bound::of_this_machine(Devices::Lab);
    // A struct mount has 320 bytes or more: twice the bound of all slabs.
    let kept = bound.memory.context("a machine of ours has a bound")?.slab_kib * 1024 / 320 * 2;
    s.tmpfs("disk")?;
    s.tmpfs("kept")?;
    (0..kept).try_for_each(|n| s.dir(&format!("kept/{n}")).map(drop))?;
    let before = Footprint::now()?;
    (0..kept).try_for_each(|n| s.bind("disk", &format!("kept/{n}")))?;
    let seen = leak::judge(before, Footprint::now()?, bound);
    ensure!(seen.is_err(), "{kept} mounts more are not seen");
    s.umount_lazily("kept")?;
    leak::judge(before, leak::settled(before, bound)?, bound).map_err(anyhow::Error::msg).context("after they are gone")
}

/// What no bound sees: one mount of "disk", which nobody does.
fn a_single_one_keeps_its_superblock(s: &Scratch) -> Verdict {
    s.tmpfs("disk")?;
    let disk = s.path("disk");
    let number = storage::anonymous_number(&disk)?;
    let kept = s.open_tree("disk", OpenTreeFlags::OPEN_TREE_CLONE)?;
    s.umount("disk")?;
    ensure!(storage::superblock_is_gone(&disk, number, Duration::ZERO).is_err(), "a mount that is kept is not seen");
    drop(kept);
    storage::superblock_is_gone(&disk, number, BUSY_LIMIT)
}
