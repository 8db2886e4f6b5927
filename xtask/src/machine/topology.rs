//! The shape of a machine: sockets, cores, threads, caches, NUMA nodes, memory, read from `vm-configs/*.toml`.

use crate::failure::{Exit, Failure};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};

/// Most CPUs that QEMU's `pc` machine takes: xAPIC ids are 8 bits wide (hw/i386/pc.c, `max_cpus`).
const MOST_CPUS: u32 = 255;

/// One file of `vm-configs/`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Name of the file, without `.toml`.
    #[serde(skip)]
    pub name: String,
    /// One line for a person.
    pub description: String,
    /// Sockets, cores, threads.
    pub cpu: Cpu,
    /// How much memory.
    pub memory: Memory,
    /// NUMA nodes.
    pub numa: Numa,
    /// Caches, smallest first.
    #[serde(default)]
    pub cache: Vec<Cache>,
}

/// Sockets, cores per socket, threads per core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// Sockets of the machine.
    pub sockets: u32,
    /// Cores of a socket.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

/// Memory, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// What the real machine has.
    pub machine_mib: u64,
    /// What a guest of this shape gets: enough for the storm, little enough for a laptop.
    pub guest_mib: u64,
}

/// NUMA nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Numa {
    /// Number of nodes; CPUs are dealt to them in equal runs.
    pub nodes: u32,
    /// ACPI SLIT distance between two nodes; a node is 10 from itself (ACPI specification, SLIT).
    pub distance: u32,
}

/// One level of cache.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// "L1d", "L2", "L3".
    pub name: String,
    /// Size of one instance, KiB.
    pub size_kib: u32,
    /// CPUs (hardware threads) that share one instance.
    pub shared_by_cpus: u32,
}

impl Topology {
    /// Reads `vm-configs/<name>.toml`; an unknown name is a usage error that lists the known ones.
    ///
    /// # Errors
    /// No such file, or the file contradicts itself.
    pub fn load(name: &str) -> Result<Topology> {
        Topology::load_from(&folder(), name)
    }

    fn load_from(folder: &Path, name: &str) -> Result<Topology> {
        let known = names(folder)?;
        if !known.iter().any(|known| known == name) {
            let list = known.join(", ");
            return Err(Failure::error(Exit::Usage, format!("no topology is called '{name}'; there are: {list}")));
        }
        let path = folder.join(format!("{name}.toml"));
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Topology::parse(name, &text)
            .map_err(|error| Failure::error(Exit::Usage, format!("{}: {error:#}", path.display())))
    }

    fn parse(name: &str, text: &str) -> Result<Topology> {
        let mut topology: Topology = toml::from_str(text)?;
        topology.name = name.to_owned();
        topology.check()?;
        Ok(topology)
    }

    /// CPUs in all.
    pub fn cpus(&self) -> u32 {
        self.cpu.sockets * self.cpu.cores * self.cpu.threads
    }

    /// This machine with another number of CPUs: one socket, one thread per core, one node.
    ///
    /// # Errors
    /// More CPUs than QEMU's machine takes.
    pub fn with_cpus(mut self, cpus: u32) -> Result<Topology> {
        if cpus != self.cpus() {
            self.cpu = Cpu { sockets: 1, cores: cpus, threads: 1 };
            self.numa.nodes = 1;
            self.cache.clear();
        }
        self.check().map_err(|error| Failure::error(Exit::Usage, format!("{error:#}")))?;
        Ok(self)
    }

    /// Refuses a shape that no machine can have, before QEMU refuses it in its own words.
    fn check(&self) -> Result<()> {
        let cpus = self.cpus();
        ensure!((1..=MOST_CPUS).contains(&cpus), "{}: {cpus} CPUs; QEMU's pc takes 1 to {MOST_CPUS}", self.description);
        ensure!(self.numa.nodes >= 1 && cpus.is_multiple_of(self.numa.nodes), "numa.nodes must divide {cpus} CPUs");
        ensure!(self.numa.distance >= 10, "numa.distance is below 10, the distance of a node from itself");
        ensure!(self.memory.guest_mib.is_multiple_of(u64::from(self.numa.nodes)), "numa.nodes must divide guest_mib");
        ensure!(self.memory.guest_mib <= self.memory.machine_mib, "guest_mib is more than machine_mib");
        self.cache.iter().try_for_each(|cache| cache.check(cpus))
    }
}

impl Cache {
    fn check(&self, cpus: u32) -> Result<()> {
        ensure!(self.size_kib > 0, "cache {} has no size", self.name);
        let even = self.shared_by_cpus > 0 && cpus.is_multiple_of(self.shared_by_cpus);
        ensure!(even, "cache {}: shared_by_cpus must divide {cpus} CPUs", self.name);
        Ok(())
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../vm-configs")
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let files = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut names: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .filter_map(|path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    #[test]
    fn every_file_loads() {
        let names = names(&folder()).unwrap();
        assert!(names.contains(&"smoke".to_owned()), "{names:?}");
        for name in names {
            Topology::load(&name).unwrap();
        }
    }

    #[test]
    fn an_unknown_name_lists_the_files() {
        for name in ["r6.metal", "../secret", ""] {
            let error = Topology::load(name).unwrap_err();
            assert_eq!(exit_code(&error), Exit::Usage);
            assert!(error.to_string().contains("r5.metal, smoke"), "{error}");
        }
    }

    #[test]
    fn the_published_machines_have_96_cpus() {
        for (name, sockets, threads) in [("r5.metal", 2, 2), ("m7i.metal-24xl", 1, 2), ("m7a.24xlarge", 1, 1)] {
            let topology = Topology::load(name).unwrap();
            assert_eq!((topology.cpus(), topology.cpu.sockets, topology.cpu.threads), (96, sockets, threads), "{name}");
        }
    }

    fn parse(nodes: u32, shared: u32) -> Result<Topology> {
        let text = format!(
            "description = 'x'\ncpu = {{ sockets = 1, cores = 4, threads = 1 }}\n\
             memory = {{ machine_mib = 8192, guest_mib = 2048 }}\nnuma = {{ nodes = {nodes}, distance = 21 }}\n\
             cache = [{{ name = 'L2', size_kib = 1024, shared_by_cpus = {shared} }}]\n"
        );
        Topology::parse("x", &text)
    }

    #[test]
    fn a_shape_that_does_not_divide_is_refused() {
        assert!(parse(2, 1).is_ok());
        assert!(parse(3, 1).unwrap_err().to_string().contains("numa.nodes"));
        assert!(parse(2, 3).unwrap_err().to_string().contains("shared_by_cpus"));
    }
}
