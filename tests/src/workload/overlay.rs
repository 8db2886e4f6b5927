//! mount(2) of an overlay as containerd makes it, with its answer to options that do not fit into a page.

use super::kernel::Kernel;
use crate::metrics::{CallKind, CallLog};
use anyhow::{Context, Result, ensure};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// containerd keeps this much of the page free (core/mount/mount_linux.go: "512 is a buffer during pagesize check").
const PAGE_RESERVE: usize = 512;

/// An overlay to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Writable layer and its work folder; without them the overlay is read-only.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// The layers below it, topmost first.
    pub lower_dirs: Vec<PathBuf>,
}

/// How an overlay is passed to mount(2).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Arguments {
    /// Folder that the options' paths are relative to; `None` when they are absolute.
    chdir: Option<PathBuf>,
    options: String,
}

/// Mounts `overlay` at `target`.
///
/// # Errors
/// mount(2) failed, or the options fit into no page.
pub fn mount_overlay(kernel: &dyn Kernel, overlay: &Overlay, target: &Path, log: &mut CallLog<'_>) -> Result<()> {
    let arguments = arguments(overlay, page_size())?;
    let mount = || kernel.mount_overlay(target, &arguments.options);
    let mounted = log.time(CallKind::OverlayMount, || match &arguments.chdir {
        None => mount(),
        Some(folder) => in_folder(folder, mount),
    });
    mounted.with_context(|| format!("mount(overlay at {}, {:?})", target.display(), arguments.options))
}

/// containerd's order of options, lowerdir last; relative to the layers' common folder when they are too long otherwise.
fn arguments(overlay: &Overlay, page_size: usize) -> Result<Arguments> {
    let absolute = options(overlay, &overlay.lower_dirs);
    if absolute.len() < page_size - PAGE_RESERVE {
        return Ok(Arguments { chdir: None, options: absolute });
    }
    let folder = common_folder(&overlay.lower_dirs).context("the layers have no folder in common")?;
    let relative: Vec<PathBuf> =
        overlay.lower_dirs.iter().map(|dir| Ok(dir.strip_prefix(&folder)?.to_owned())).collect::<Result<_>>()?;
    let options = options(overlay, &relative);
    // mount(2) takes one page of options and cuts the rest off (copy_mount_options, fs/namespace.c).
    ensure!(options.len() < page_size, "{} layers need {} bytes of mount options", relative.len(), options.len());
    Ok(Arguments { chdir: Some(folder), options })
}

fn options(overlay: &Overlay, lower_dirs: &[PathBuf]) -> String {
    let lower_dirs: Vec<_> = lower_dirs.iter().map(|dir| dir.to_string_lossy()).collect();
    let lower = format!("index=off,lowerdir={}", lower_dirs.join(":"));
    match &overlay.upper {
        Some((upper, work)) => format!("workdir={},upperdir={},{lower}", work.display(), upper.display()),
        None => lower,
    }
}

/// The deepest folder that all of `paths` lie in; none for no paths.
pub fn common_folder(paths: &[PathBuf]) -> Option<PathBuf> {
    let (first, others) = paths.split_first()?;
    first.ancestors().skip(1).find(|folder| others.iter().all(|path| path.starts_with(folder))).map(Path::to_owned)
}

/// Runs `call` with `folder` as working directory, as containerd does: in a thread that shares it with no other and then ends.
fn in_folder(folder: &Path, call: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    let in_own_thread = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
        std::env::set_current_dir(folder)?;
        call()
    };
    std::thread::scope(|scope| {
        scope.spawn(in_own_thread).join().unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    })
}

fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(rustix::param::page_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(layers: usize) -> Overlay {
        let lower_dirs =
            (0..layers).map(|n| PathBuf::from(format!("/tmp/storm/tmpmounts/ovl-idmapped7-0/{n}"))).collect();
        Overlay { upper: Some(("/s/9/fs".into(), "/s/9/work".into())), lower_dirs }
    }

    #[test]
    fn options_are_in_containerds_order() {
        let with_upper = arguments(&overlay(2), 4096).unwrap();
        let lower = "index=off,lowerdir=/tmp/storm/tmpmounts/ovl-idmapped7-0/0:/tmp/storm/tmpmounts/ovl-idmapped7-0/1";
        assert_eq!(with_upper.options, format!("workdir=/s/9/work,upperdir=/s/9/fs,{lower}"));
        assert_eq!(with_upper.chdir, None);
        assert_eq!(arguments(&Overlay { upper: None, ..overlay(2) }, 4096).unwrap().options, lower);
    }

    #[test]
    fn options_near_a_page_become_relative() {
        let long = arguments(&overlay(100), 4096).unwrap();
        assert_eq!(long.chdir, Some("/tmp/storm/tmpmounts/ovl-idmapped7-0".into()));
        assert!(long.options.contains(",lowerdir=0:1:2:") && long.options.ends_with(":98:99"), "{}", long.options);
    }

    #[test]
    fn the_switch_to_relative_paths_is_where_containerd_has_it() {
        let length = arguments(&overlay(3), 4096).unwrap().options.len();
        assert!(arguments(&overlay(3), length + PAGE_RESERVE + 1).unwrap().chdir.is_none());
        assert!(arguments(&overlay(3), length + PAGE_RESERVE).unwrap().chdir.is_some());
    }

    #[test]
    fn options_beyond_a_page_are_an_error() {
        let error = arguments(&overlay(2000), 4096).unwrap_err().to_string();
        assert!(error.starts_with("2000 layers need"), "{error}");
    }

    #[test]
    fn the_common_folder_is_the_deepest() {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(common_folder(&paths(&["/s/1/fs", "/s/12/fs"])), Some("/s".into()));
        assert_eq!(common_folder(&paths(&["/s/1/fs"])), Some("/s/1".into()));
        assert_eq!(common_folder(&paths(&["/s/1/fs", "/t/1/fs"])), Some("/".into()));
        assert_eq!(common_folder(&[]), None);
    }
}
