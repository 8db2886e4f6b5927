//! The simulated machine: QEMU's translator with the simulator in it, many CPUs side by side on one host core and a virtual clock.

mod evidence;
mod library;
mod model;
mod program;
mod summary;

pub use evidence::Evidence;
pub use model::{Model, REVISION};
#[cfg(test)]
pub use summary::Waits;
pub use summary::{Region, Summary};

use super::qemu::boot_qemu;
use super::qemu_args::{Accel, arguments, in_option};
use super::topology::Topology;
use super::{Boot, BootLog, Machine, MachineInfo, Setting};
use crate::cache::Cache;
use crate::event::Events;
use crate::failure::{Exit, Failure};
use anyhow::Result;
use mount_storms::protocol::GuestEvent;
use program::Program;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name of the summary in a boot's folder.
const SUMMARY: &str = "simulator.json";

/// A second of virtual time takes up to a minute of the host's at 96 CPUs; the guest beats once in a second of its own.
const PATIENCE: u32 = 8;

/// A simulated machine of one shape.
pub struct Simulated {
    program: Program,
    library: PathBuf,
    model: Model,
    topology: Topology,
    info: MachineInfo,
}

impl Simulated {
    /// A machine of this shape. Builds the simulator, and fetches a QEMU if the host's is too old.
    ///
    /// # Errors
    /// No QEMU is new enough, or the simulator does not build.
    pub fn new(topology: &Topology, setting: &Setting<'_>, events: Events<'_>) -> Result<Simulated> {
        let model = setting.model.map_or_else(Model::load, Ok)?;
        let program = Program::find(setting.cache, &mut *events)?;
        let library = library::build(setting.root, events)?;
        let info = MachineInfo {
            kind: Accel::Simulated.name().into(),
            version: format!("QEMU {}, revision {REVISION}, {}", program.version, model.arguments()),
            cpus: topology.cpus(),
            memory_mib: topology.memory.guest_mib,
            topology: topology.name.clone(),
            simulated: true,
        };
        loadable(&library)?;
        Ok(Simulated { program, library, model, topology: topology.clone(), info })
    }

    /// The simulator as QEMU's plugin: `FILE,ARGUMENT=VALUE...`.
    fn plugin(&self, boot: &Boot<'_>, summary: &Path) -> String {
        let words = [
            in_option(&self.library),
            self.model.arguments(),
            format!("seed={}", boot.machine_seed),
            format!("summary={}", in_option(summary)),
        ];
        words.join(",") + &boot.evidence.map(|evidence| evidence.arguments(self.model.mips)).unwrap_or_default()
    }

    fn command(&self, boot: &Boot<'_>, summary: &Path, machine: Vec<String>) -> Command {
        let mut command = self.program.command(Some(&self.library));
        command.args(machine).arg("-plugin").arg(self.plugin(boot, summary));
        command
    }
}

/// LD_PRELOAD ends a name at a space or a colon, and knows no way to quote one (ld.so(8)).
fn loadable(library: &Path) -> Result<()> {
    let path = library.display().to_string();
    if !path.contains([' ', ':']) {
        return Ok(());
    }
    let message = format!(
        "{path} cannot be loaded into QEMU: LD_PRELOAD takes no path with a space or a colon\nnext: move the checkout"
    );
    Err(Failure::error(Exit::Usage, message))
}

/// Makes sure that a QEMU is there.
///
/// # Errors
/// As [`Program::find`].
pub fn find_qemu(cache: &Cache, events: Events<'_>) -> Result<()> {
    Program::find(cache, events).map(drop)
}

impl Machine for Simulated {
    fn info(&self) -> &MachineInfo {
        &self.info
    }

    fn patience(&self) -> u32 {
        PATIENCE
    }

    fn boot(&self, boot: &Boot<'_>, on_event: &mut dyn FnMut(&GuestEvent)) -> Result<BootLog> {
        let summary = boot.dir.join(SUMMARY);
        let mut log = boot_qemu(boot, on_event, |files| {
            self.command(boot, &summary, arguments(Accel::Simulated, &self.topology, files))
        })?;
        // A machine that died has none; how it died is the log's to say.
        log.summary = if log.failure().is_none() { Some(Summary::read(&summary)?) } else { None };
        Ok(log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    #[test]
    fn a_path_that_cannot_be_preloaded_is_said() {
        assert!(loadable(Path::new("/a,b/libsimulator.so")).is_ok());
        assert_eq!(exit_code(&loadable(Path::new("/my lab/libsimulator.so")).unwrap_err()), Exit::Usage);
        assert!(loadable(Path::new("/a:b/libsimulator.so")).unwrap_err().to_string().contains("next: move"));
    }
}
