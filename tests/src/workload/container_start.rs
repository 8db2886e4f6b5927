//! A container start: inspection passes, then the pass that makes the container's root.
//!
//! containerd itself makes the inspection passes, as threads of one process; the root is mounted by the pod's shim, a process of its own
//! (see [`crate::shim`]), unless the storm asks for threads alone. The root stays mounted until all containers have started, as it would on a
//! real host. So it can be checked file by file after the clock has stopped: the very mounts that were timed, at no cost in the timed region.
//! An inspection's overlay lives only within the timed region; there the two files that containerd reads anyway are checked, which adds one
//! fstat(2) to each.

use super::Workload;
use super::calls::{unmount_all, unmount_when_free};
use super::kernel::{Kernel, Linux};
use super::on_linux;
use super::pass::{Pass, make_folder, remove_folder};
use crate::check::{Verdicts, check_busy, check_files};
use crate::layout::Layout;
use crate::metrics::{CallKind, CallLog};
use crate::protocol::{Manner, Profile, StormPoint, UserNamespaces};
use crate::shim::Shim;
use crate::topology::{GROUP, LayerFile, PASSWD, layer_files, merged_view, write_layers};
use crate::user_ns::{self, IdMap};
use anyhow::{Context, Result};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// containerd's container starts on one image.
pub struct ContainerStart {
    point: StormPoint,
    manner: Manner,
    recorded: bool,
    layout: Layout,
    files: Vec<LayerFile>,
    view: Vec<LayerFile>,
    user_databases: Vec<LayerFile>,
    layers: Vec<PathBuf>,
    /// A shim for each container, if there are any; made by `prepare`.
    shims: OnceLock<Vec<Shim>>,
    /// A user namespace for each container, if they are made before the clock; made by `prepare`.
    user_namespaces: OnceLock<Vec<OwnedFd>>,
}

impl ContainerStart {
    /// The starts of `point` in the mount at `root`.
    pub fn new(point: &StormPoint, seed: u64, manner: Manner, recorded: bool, root: &Path) -> ContainerStart {
        let layout = Layout::new(root, point.layers);
        let files = layer_files(seed, point.layers);
        let view = merged_view(&files);
        let user_databases =
            view.iter().filter(|file| [PASSWD, GROUP].contains(&file.path.as_str())).cloned().collect();
        let layers = layout.lower_dirs();
        ContainerStart {
            point: point.clone(),
            manner,
            recorded,
            layout,
            files,
            view,
            user_databases,
            layers,
            shims: OnceLock::new(),
            user_namespaces: OnceLock::new(),
        }
    }

    /// Inspection passes of each start: containerd 2.3 and later looks for the user without mounting anything.
    fn inspections(&self) -> u32 {
        if self.point.profile == Profile::Recursive { 0 } else { self.point.inspection_passes }
    }

    /// containerd itself looks for the user in a read-only overlay, in which the writable layer is one more lower one.
    fn inspect(&self, container: u32, pass: u32, log: &mut CallLog<'_>, verdicts: &mut Verdicts) -> Result<()> {
        let target = self.layout.inspection(container, pass);
        make_folder(&Linux, &target)?;
        let mut layers = vec![self.layout.upper(container)];
        layers.extend_from_slice(&self.layers);
        self.run(&self.pass(container, pass, layers, None, &target), container, log)?;
        let who = format!("container {container}, inspection {pass}");
        check_files(verdicts, &who, &target, &self.user_databases, IdMap::of_container(container));
        on_linux(self.recorded, log, |kernel, log| unmount_all(kernel, &target, CallKind::UmountRootfs, log))?;
        remove_folder(&Linux, &target)
    }

    /// The pod's shim mounts the root, or this thread where there are none.
    fn mount_rootfs(&self, container: u32, log: &mut CallLog<'_>) -> Result<()> {
        let upper = (self.layout.upper(container), self.layout.work(container));
        let target = self.layout.rootfs(container);
        let pass = self.pass(container, self.point.inspection_passes, self.layers.clone(), Some(upper), &target);
        match self.shims.get().and_then(|shims| shims.get(container as usize)) {
            Some(shim) => shim.run(&pass, log),
            None => self.run(&pass, container, log),
        }
    }

    fn run(&self, pass: &Pass, container: u32, log: &mut CallLog<'_>) -> Result<()> {
        let run = |kernel: &dyn Kernel, log: &mut CallLog<'_>| match self.user_namespace(container) {
            Some(user_ns) => pass.run_in(kernel, user_ns, log),
            None => pass.run(kernel, log),
        };
        on_linux(self.recorded, log, run)
    }

    /// The one that was made before the clock, if it was.
    fn user_namespace(&self, container: u32) -> Option<&OwnedFd> {
        self.user_namespaces.get().and_then(|made| made.get(container as usize))
    }

    fn pass(
        &self,
        container: u32,
        pass: u32,
        layers: Vec<PathBuf>,
        upper: Option<(PathBuf, PathBuf)>,
        target: &Path,
    ) -> Pass {
        Pass {
            profile: self.point.profile,
            map: IdMap::of_container(container),
            descriptors_inherited: self.manner.descriptors_inherited,
            temporary: self.layout.idmapped(container, pass),
            layers,
            upper,
            target: target.to_owned(),
            recorded: self.recorded,
        }
    }

    fn prepare_container(&self, container: u32) -> Result<()> {
        let upper = self.layout.upper(container);
        for folder in [&upper, &self.layout.work(container), &self.layout.rootfs(container)] {
            fs::create_dir_all(folder)?;
        }
        // The overlay snapshotter gives the writable layer to the container's root.
        let root = IdMap::of_container(container).shown(0);
        Ok(chown(upper, root, root)?)
    }
}

impl Workload for ContainerStart {
    fn prepare(&self) -> Result<()> {
        for folder in self.layout.top_folders().iter().chain(&self.layers) {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        write_layers(&self.layout, &self.files)?;
        for container in 0..self.point.containers {
            self.prepare_container(container).with_context(|| format!("cannot prepare container {container}"))?;
        }
        let before = self.manner.user_namespaces == UserNamespaces::Before;
        let maps = || (0..self.point.containers).map(IdMap::of_container);
        if before {
            // No storm runs yet that could find a descriptor in the wrong hands.
            let made = maps().map(|map| user_ns::open(map, false)).collect::<Result<Vec<OwnedFd>>>()?;
            self.user_namespaces.get_or_init(|| made);
        }
        if self.manner.shims {
            let shims = maps().map(|map| Shim::start(before.then_some(map))).collect::<Result<Vec<Shim>>>()?;
            self.shims.get_or_init(|| shims);
        }
        Ok(())
    }

    fn iterate(&self, container: u32, log: &mut CallLog<'_>, verdicts: &mut Verdicts) -> Result<()> {
        for pass in 0..self.inspections() {
            self.inspect(container, pass, log, verdicts)?;
        }
        self.mount_rootfs(container, log)
    }

    fn check(&self, container: u32, verdicts: &mut Verdicts) {
        let rootfs = self.layout.rootfs(container);
        let who = format!("container {container}");
        check_files(verdicts, &who, &rootfs, &self.view, IdMap::of_container(container));
        check_busy(verdicts, &who, &rootfs, &rootfs.join(PASSWD));
    }

    fn cleanup(&self, container: u32, log: &mut CallLog<'_>) -> Result<()> {
        let rootfs = self.layout.rootfs(container);
        on_linux(self.recorded, log, |kernel, log| unmount_when_free(kernel, &rootfs, CallKind::UmountRootfs, log))
    }

    fn roots(&self) -> usize {
        self.point.containers as usize
    }
}
