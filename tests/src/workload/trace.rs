//! The calls that each profile makes, against golden sequences: no root, no mount.

use super::Pass;
use super::calls::unmount_all;
use super::kernel::Kernel;
use crate::metrics::{Beat, CallKind, CallLog};
use crate::protocol::Profile;
use crate::sys::MountAttr;
use crate::user_ns::IdMap;
use anyhow::Result;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// A kernel that writes down what it is asked, and knows only what is mounted where.
#[derive(Default)]
struct Trace {
    state: Mutex<State>,
    /// umount2(2) finds the mount busy so often first.
    busy: Mutex<u32>,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    mounted: Vec<PathBuf>,
    /// Names of descriptors.
    names: Vec<(i32, String)>,
    trees: u32,
}

impl Trace {
    fn line(&self, line: String) {
        self.state.lock().unwrap().lines.push(line);
    }

    fn lines(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().lines)
    }

    fn open(&self, name: String) -> OwnedFd {
        let fd = OwnedFd::from(File::open("/dev/null").unwrap());
        self.state.lock().unwrap().names.push((fd.as_raw_fd(), name));
        fd
    }

    fn name(&self, fd: i32) -> String {
        let state = self.state.lock().unwrap();
        state.names.iter().rfind(|(number, _)| *number == fd).map_or("?".into(), |(_, name)| name.clone())
    }

    fn tree(&self) -> OwnedFd {
        let number = {
            let mut state = self.state.lock().unwrap();
            state.trees += 1;
            state.trees
        };
        self.open(format!("tree{number}"))
    }
}

impl Kernel for Trace {
    fn user_ns(&self, map: IdMap, descriptors_inherited: bool) -> Result<OwnedFd> {
        let map = format!("{map:?}").replace("IdMap { first: ", "0 ").replace(" }", " 65536");
        self.line(format!(
            "clone(CLONE_NEWUSER{}) map {map} = userns",
            if descriptors_inherited { "" } else { "|CLONE_FILES" }
        ));
        Ok(self.open("userns".into()))
    }

    fn mkdir(&self, path: &Path) -> io::Result<()> {
        self.line(format!("mkdir({}, 0700)", path.display()));
        Ok(())
    }

    fn rmdir(&self, path: &Path) -> io::Result<()> {
        self.line(format!("rmdir({})", path.display()));
        Ok(())
    }

    fn open_tree(&self, path: &Path, flags: OpenTreeFlags) -> Result<OwnedFd, Errno> {
        let names: Vec<&str> = flags.iter_names().map(|(name, _)| name).collect();
        let tree = self.tree();
        self.line(format!("open_tree({}, {}) = {}", path.display(), names.join("|"), self.name(tree.as_raw_fd())));
        Ok(tree)
    }

    fn mount_setattr(&self, tree: &OwnedFd, flags: u32, attr: &MountAttr) -> io::Result<()> {
        let MountAttr { attr_set, attr_clr, propagation, userns_fd } = attr;
        let (tree, user_ns) = (self.name(tree.as_raw_fd()), self.name(*userns_fd as i32));
        self.line(format!(
            "mount_setattr({tree}, \"\", {flags:#x}, {{attr_set {attr_set:#x}, attr_clr {attr_clr:#x}, propagation {propagation:#x}, {user_ns}}})"
        ));
        Ok(())
    }

    fn move_mount(&self, tree: &OwnedFd, target: &Path) -> Result<(), Errno> {
        let tree = self.name(tree.as_raw_fd());
        self.line(format!("move_mount({tree}, \"\", {}, MOVE_MOUNT_F_EMPTY_PATH)", target.display()));
        self.state.lock().unwrap().mounted.push(target.to_owned());
        Ok(())
    }

    fn mount_overlay(&self, target: &Path, options: &str) -> io::Result<()> {
        self.line(format!("mount(overlay, {}, overlay, 0, {options})", target.display()));
        self.state.lock().unwrap().mounted.push(target.to_owned());
        Ok(())
    }

    fn umount2(&self, target: &Path, flags: UnmountFlags) -> Result<(), Errno> {
        let flags = if flags == UnmountFlags::DETACH { "MNT_DETACH" } else { "0" };
        let result = {
            let (mut state, mut busy) = (self.state.lock().unwrap(), self.busy.lock().unwrap());
            match state.mounted.iter().position(|mounted| mounted == target) {
                None => Err(Errno::INVAL),
                Some(_) if *busy > 0 => {
                    *busy -= 1;
                    Err(Errno::BUSY)
                }
                Some(at) => {
                    state.mounted.remove(at);
                    Ok(())
                }
            }
        };
        let said = match result {
            Ok(()) => "",
            Err(Errno::BUSY) => " = EBUSY",
            Err(_) => " = EINVAL",
        };
        self.line(format!("umount2({}, {flags}){said}", target.display()));
        result
    }

    fn fsopen_overlay(&self) -> Result<OwnedFd, Errno> {
        self.line("fsopen(overlay, FSOPEN_CLOEXEC) = fs".into());
        Ok(self.open("fs".into()))
    }

    fn fsconfig_string(&self, _fs: &OwnedFd, key: &str, value: &str) -> Result<(), Errno> {
        self.line(format!("fsconfig(fs, FSCONFIG_SET_STRING, {key}, {value})"));
        Ok(())
    }

    fn fsconfig_fd(&self, _fs: &OwnedFd, key: &str, value: &OwnedFd) -> Result<(), Errno> {
        self.line(format!("fsconfig(fs, FSCONFIG_SET_FD, {key}, {})", self.name(value.as_raw_fd())));
        Ok(())
    }

    fn fsconfig_create(&self, _fs: &OwnedFd) -> Result<(), Errno> {
        self.line("fsconfig(fs, FSCONFIG_CMD_CREATE)".into());
        Ok(())
    }

    fn fsmount(&self, _fs: &OwnedFd) -> Result<OwnedFd, Errno> {
        self.line("fsmount(fs, FSMOUNT_CLOEXEC, 0) = mount".into());
        Ok(self.open("mount".into()))
    }

    fn close(&self, fd: OwnedFd) {
        self.line(format!("close({})", self.name(fd.as_raw_fd())));
    }

    fn mount_points(&self) -> Result<Vec<PathBuf>> {
        self.line("read(/proc/self/mountinfo)".into());
        Ok(self.state.lock().unwrap().mounted.clone())
    }

    fn sleep(&self, time: Duration) {
        self.line(format!("nanosleep({time:?})"));
    }
}

fn pass(profile: Profile, layers: u32, inspection: bool) -> Pass {
    let mut lower: Vec<PathBuf> = (1..=layers).rev().map(|layer| format!("/s/snapshots/{layer}/fs").into()).collect();
    let own = layers + 1;
    if inspection {
        lower.insert(0, format!("/s/snapshots/{own}/fs").into());
    }
    let upper =
        (!inspection).then(|| (format!("/s/snapshots/{own}/fs").into(), format!("/s/snapshots/{own}/work").into()));
    Pass {
        profile,
        map: IdMap::of_container(0),
        descriptors_inherited: true,
        temporary: "/s/T".into(),
        layers: lower,
        upper,
        recorded: false,
        target: if inspection { "/s/inspection".into() } else { "/s/rootfs".into() },
    }
}

/// The calls of one container start with one inspection pass.
fn start(profile: Profile, layers: u32) -> Vec<String> {
    let trace = Trace::default();
    let beat = Beat::default();
    let mut log = CallLog::new(&beat);
    if profile != Profile::Recursive {
        pass(profile, layers, true).run(&trace, &mut log).unwrap();
        unmount_all(&trace, Path::new("/s/inspection"), CallKind::UmountRootfs, &mut log).unwrap();
    }
    pass(profile, layers, false).run(&trace, &mut log).unwrap();
    trace.lines()
}

fn golden(profile: Profile, text: &str) {
    let lines = start(profile, 2).join("\n") + "\n";
    assert_eq!(lines, text, "{profile:?} makes other calls than its golden sequence (tests/fixtures/calls):\n{lines}");
}

#[test]
fn detach_makes_its_golden_calls() {
    golden(Profile::Detach, include_str!("../../fixtures/calls/detach.txt"));
}

#[test]
fn rdonly_makes_its_golden_calls() {
    golden(Profile::Rdonly, include_str!("../../fixtures/calls/rdonly.txt"));
}

#[test]
fn common_makes_its_golden_calls() {
    golden(Profile::Common, include_str!("../../fixtures/calls/common.txt"));
}

#[test]
fn recursive_makes_its_golden_calls() {
    golden(Profile::Recursive, include_str!("../../fixtures/calls/recursive.txt"));
}

#[test]
fn fds_makes_its_golden_calls() {
    golden(Profile::Fds, include_str!("../../fixtures/calls/fds.txt"));
}

/// Attaches and detaches that succeeded, overlays included; and these with open_tree and mount_setattr.
fn counts(profile: Profile, layers: u32) -> (usize, usize) {
    let lines = start(profile, layers);
    let count = |begins: &[&str]| {
        let done = |line: &&String| begins.iter().any(|begin| line.starts_with(begin)) && !line.ends_with("EINVAL");
        lines.iter().filter(done).count()
    };
    let attached = count(&["move_mount(", "mount(", "umount2("]);
    (attached, attached + count(&["open_tree(", "mount_setattr("]))
}

/// The published counts, for 50 layers and one inspection pass (containerd issue 12048 and pull request 12092).
#[test]
fn a_start_of_fifty_layers_makes_the_published_number_of_calls() {
    assert_eq!(counts(Profile::Detach, 50), (205, 407));
    assert_eq!(counts(Profile::Rdonly, 50), (205, 407));
    assert_eq!(counts(Profile::Common, 50), (7, 11));
    assert_eq!(counts(Profile::Recursive, 50), (3, 5));
}

/// 100 containers of 50 layers, as published: 100 * 2 * (1 + 50 + 50). The formula counts two passes of as many layers as the image has, and
/// no unmount of an overlay.
#[test]
fn the_published_20_200_comes_out() {
    let trace = Trace::default();
    let beat = Beat::default();
    let mut log = CallLog::new(&beat);
    for _ in 0..100 {
        for _ in 0..2 {
            pass(Profile::Detach, 50, false).run(&trace, &mut log).unwrap();
        }
    }
    let begins = ["move_mount(", "mount(", "umount2("];
    let calls = trace.lines().iter().filter(|line| begins.iter().any(|begin| line.starts_with(begin))).count();
    assert_eq!(calls, 20_200);
}

#[test]
fn a_busy_layer_is_tried_again_by_common_and_leaked_by_rdonly() {
    let run = |profile| {
        let trace = Trace { busy: Mutex::new(1), ..Trace::default() };
        let beat = Beat::default();
        let mut log = CallLog::new(&beat);
        pass(profile, 2, false).run(&trace, &mut log).unwrap();
        (trace.lines(), log.leaked().to_vec())
    };
    let (lines, leaked) = run(Profile::Common);
    let at = lines.iter().position(|line| line == "umount2(/s/T, 0) = EBUSY").unwrap();
    assert_eq!(lines[at + 1..at + 3], ["nanosleep(50ms)", "umount2(/s/T, 0)"]);
    assert!(leaked.is_empty());
    let (lines, leaked) = run(Profile::Rdonly);
    assert!(
        !lines.iter().any(|line| line.starts_with("nanosleep") || line == "rmdir(/s/T)" || line == "rmdir(/s/T/0)")
    );
    assert_eq!(leaked, [PathBuf::from("/s/T/0")]);
}
