//! A container start: inspection passes, then the pass that makes the container's root.
//!
//! The root stays mounted until all containers have started, as it would on a real host. So it can be checked file by file after
//! the clock has stopped: the very mounts that were timed, at no cost in the timed region. An inspection's overlay lives only within
//! the timed region; there the two files that containerd reads anyway are checked, which adds one fstat(2) to each.

use super::Workload;
use super::calls::{unmount_all, unmount_when_free};
use super::pass::{Pass, make_folder, remove_folder};
use crate::check::{Verdicts, check_files};
use crate::layout::Layout;
use crate::metrics::{CallKind, CallLog};
use crate::protocol::StormPoint;
use crate::topology::{GROUP, LayerFile, PASSWD, layer_files, merged_view, write_layers};
use crate::user_ns::IdMap;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

/// containerd's container starts on one image.
pub struct ContainerStart {
    point: StormPoint,
    descriptors_inherited: bool,
    layout: Layout,
    files: Vec<LayerFile>,
    view: Vec<LayerFile>,
    user_databases: Vec<LayerFile>,
    layers: Vec<PathBuf>,
}

impl ContainerStart {
    /// The starts of `point` in the mount at `root`.
    pub fn new(point: &StormPoint, seed: u64, descriptors_inherited: bool, root: &Path) -> ContainerStart {
        let layout = Layout::new(root, point.layers);
        let files = layer_files(seed, point.layers);
        let view = merged_view(&files);
        let user_databases =
            view.iter().filter(|file| [PASSWD, GROUP].contains(&file.path.as_str())).cloned().collect();
        let layers = layout.lower_dirs();
        ContainerStart { point: point.clone(), descriptors_inherited, layout, files, view, user_databases, layers }
    }

    /// containerd itself looks for the user in a read-only overlay, in which the writable layer is one more lower one.
    fn inspect(&self, container: u32, pass: u32, log: &mut CallLog<'_>, verdicts: &mut Verdicts) -> Result<()> {
        let target = self.layout.inspection(container, pass);
        make_folder(&target)?;
        let mut layers = vec![self.layout.upper(container)];
        layers.extend_from_slice(&self.layers);
        self.pass(container, pass, &layers, None, &target).run(log)?;
        let who = format!("container {container}, inspection {pass}");
        check_files(verdicts, &who, &target, &self.user_databases, IdMap::of_container(container));
        unmount_all(&target, CallKind::UmountRootfs, log)?;
        remove_folder(&target)
    }

    /// The shim mounts the root. Here it is a thread of this process, where a real shim is a process of its own.
    fn mount_rootfs(&self, container: u32, log: &mut CallLog<'_>) -> Result<()> {
        let upper = (self.layout.upper(container), self.layout.work(container));
        let target = self.layout.rootfs(container);
        self.pass(container, self.point.inspection_passes, &self.layers, Some(upper), &target).run(log)
    }

    fn pass<'a>(
        &self,
        container: u32,
        pass: u32,
        layers: &'a [PathBuf],
        upper: Option<(PathBuf, PathBuf)>,
        target: &'a Path,
    ) -> Pass<'a> {
        let temporary = self.layout.idmapped(container, pass);
        Pass {
            profile: self.point.profile,
            map: IdMap::of_container(container),
            descriptors_inherited: self.descriptors_inherited,
            temporary,
            layers,
            upper,
            target,
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
        Ok(())
    }

    fn iterate(&self, container: u32, log: &mut CallLog<'_>, verdicts: &mut Verdicts) -> Result<()> {
        for pass in 0..self.point.inspection_passes {
            self.inspect(container, pass, log, verdicts)?;
        }
        self.mount_rootfs(container, log)
    }

    fn check(&self, container: u32, verdicts: &mut Verdicts) {
        let rootfs = self.layout.rootfs(container);
        let who = format!("container {container}");
        check_files(verdicts, &who, &rootfs, &self.view, IdMap::of_container(container));
    }

    fn cleanup(&self, container: u32, log: &mut CallLog<'_>) -> Result<()> {
        unmount_when_free(&self.layout.rootfs(container), CallKind::UmountRootfs, log)
    }
}
