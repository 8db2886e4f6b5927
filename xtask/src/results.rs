//! A run on disk: what was planned, each sample as soon as it is measured, and nothing that cannot be repeated.

use crate::failure::{Exit, Failure};
use crate::kernel::Kernel;
use crate::machine::{MachineInfo, Region};
use anyhow::{Context, Result};
use mount_storms::protocol::{Manner, READER_PERIOD_US, Reader, Sample, StormPoint, Surroundings};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Version of the files in a results folder.
pub const RESULTS_VERSION: u32 = 1;

/// Which group of boots a sample belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// The reference kernel.
    Baseline,
    /// The reference kernel once more, under another name: the A/A control.
    Control,
    /// The kernel under test.
    Candidate,
}

/// One boot of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedBoot {
    /// Position in the run, from 0: the order in which boots are made.
    pub position: u32,
    /// Whose boot.
    pub arm: Arm,
    /// Number of the boot within its arm and number of CPUs, from 0.
    pub boot: u32,
    /// CPUs of the machine; 0 in runs from before sweeps: the manifest's.
    #[serde(default)]
    pub cpus: u32,
    /// Seed of the guest's job: the same for the boots of one block.
    pub seed: u64,
}

/// `manifest.json`: everything needed to repeat the run, written before the first boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Must equal [`RESULTS_VERSION`].
    pub version: u32,
    /// The command line that made the run.
    pub command: Vec<String>,
    /// mountlab's own commit, with "-dirty" when the tree had changes.
    pub mountlab_commit: String,
    /// Start, RFC 3339.
    pub started: String,
    /// The host, in words: CPU model, CPUs, memory, kernel, distribution.
    pub host: String,
    /// The machine the guests ran on.
    pub machine: MachineInfo,
    /// The reference.
    pub baseline: Kernel,
    /// What is compared with it; `None` on a machine with one kernel only.
    pub candidate: Option<Kernel>,
    /// Seed of the order of boots and of all guests.
    pub seed: u64,
    /// Half-width of "equivalent": 0.05 says that ratios within 1/1.05 .. 1.05 are the same.
    pub margin: f64,
    /// The storms of each boot.
    pub points: Vec<StormPoint>,
    /// Timed iterations per storm and boot.
    pub iterations: u32,
    /// Untimed iterations before them.
    pub warmup_iterations: u32,
    /// How containers were started.
    #[serde(flatten)]
    pub manner: Manner,
    /// Who read beside the storms.
    #[serde(default)]
    pub readers: Vec<Reader>,
    /// Pause between two looks of a reader whose look is short, us, by the number of CPUs. Runs from before it could be chosen name none: it
    /// was a millisecond.
    #[serde(default)]
    pub reader_periods_us: BTreeMap<u32, u32>,
    /// What stood around the storms.
    #[serde(flatten)]
    pub surroundings: Surroundings,
    /// The boots, in order.
    pub boots: Vec<PlannedBoot>,
    /// What may disturb the figures, in sentences.
    pub warnings: Vec<String>,
}

/// One line of `samples.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredSample {
    /// Whose.
    pub arm: Arm,
    /// Number of the boot within its arm.
    pub boot: u32,
    /// The measurement.
    pub sample: Sample,
    /// What the simulated machine counted meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// What the boot has cost the host: the same for all samples of a boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// What a boot has cost the host.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Real time from start to end, in seconds.
    pub wall_s: f64,
    /// The most memory that the machine has had at once, MiB; simulated machines alone count it.
    pub memory_mib: u64,
}

/// What tells one boot from the others of a run.
pub type BootKey = (Arm, u32, u32);

impl PlannedBoot {
    /// See [`BootKey`].
    pub fn key(&self) -> BootKey {
        (self.arm, self.cpus, self.boot)
    }
}

impl StoredSample {
    /// The boot that it comes from.
    pub fn key(&self) -> BootKey {
        (self.arm, self.sample.point.cpus, self.boot)
    }
}

impl Manifest {
    /// The storms of a boot.
    pub fn points_of(&self, planned: &PlannedBoot) -> Vec<StormPoint> {
        self.points.iter().filter(|point| point.cpus == planned.cpus).cloned().collect()
    }

    /// Pause between two looks of a short reader on so many CPUs, us.
    pub fn reader_period_us(&self, cpus: u32) -> u32 {
        self.reader_periods_us.get(&cpus).copied().unwrap_or(READER_PERIOD_US)
    }

    /// The numbers of CPUs, ascending.
    pub fn cpus(&self) -> Vec<u32> {
        let of_boots = self.boots.iter().map(|boot| if boot.cpus == 0 { self.machine.cpus } else { boot.cpus });
        of_boots.collect::<std::collections::BTreeSet<u32>>().into_iter().collect()
    }
}

/// A run in memory, and the folder it lives in.
#[derive(Clone, Debug)]
pub struct Run {
    /// `results/<machine>/<date>-<series>-<n>`.
    pub dir: PathBuf,
    /// `manifest.json`.
    pub manifest: Manifest,
    /// `samples.jsonl`, so far.
    pub samples: Vec<StoredSample>,
}

impl Run {
    /// Makes the folder of a new run and writes its manifest.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn create(results: &Path, manifest: Manifest) -> Result<Run> {
        let dir = new_dir(results, &manifest)?;
        write_atomically(&dir.join("manifest.json"), &serde_json::to_string_pretty(&manifest)?)?;
        Ok(Run { dir, manifest, samples: Vec::new() })
    }

    /// Reads a run, which somebody may be measuring meanwhile: nothing is written. A boot whose samples are not all there did not happen.
    ///
    /// # Errors
    /// A file is missing, malformed, or of another version.
    pub fn open(dir: &Path) -> Result<Run> {
        let path = dir.join("manifest.json");
        let text = fs::read_to_string(&path).map_err(|error| {
            Failure::error(Exit::Usage, format!("{} is no run: {}: {error}", dir.display(), path.display()))
        })?;
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|error| corrupt(&path, error.line(), &error.to_string()))?;
        if manifest.version != RESULTS_VERSION {
            let why = format!("version {}, this mountlab reads {RESULTS_VERSION}", manifest.version);
            return Err(corrupt(&path, 1, &why));
        }
        let samples = read_samples(&dir.join("samples.jsonl"))?;
        let mut run = Run { dir: dir.to_owned(), manifest, samples };
        run.forget_half_boots();
        Ok(run)
    }

    /// Reads an unfinished run to go on with it: a cut last line, and the samples of a boot that are not all there, go from the disk as well,
    /// because others are about to come behind them.
    ///
    /// # Errors
    /// As [`Run::open`]; the run is finished; or the folder cannot be written.
    pub fn open_to_continue(dir: &Path, _claim: &Claim) -> Result<Run> {
        let run = Run::open(dir)?;
        if run.remaining().is_empty() {
            let dir = dir.display();
            let message = format!("{dir} is finished: there is nothing to resume\nnext: cargo xtask report {dir}");
            return Err(Failure::error(Exit::Usage, message));
        }
        let lines = run.samples.iter().map(|stored| Ok(serde_json::to_string(stored)? + "\n"));
        let path = dir.join("samples.jsonl");
        if path.exists() {
            write_atomically(&path, &lines.collect::<Result<String>>()?)?;
        }
        Ok(run)
    }

    fn forget_half_boots(&mut self) {
        let is_whole = |planned: &&PlannedBoot| self.count(planned.key()) == self.expected(planned);
        let whole: Vec<BootKey> = self.manifest.boots.iter().filter(is_whole).map(PlannedBoot::key).collect();
        self.samples.retain(|stored| whole.contains(&stored.key()));
    }

    /// Adds a warning to the manifest, once.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn warn(&mut self, warning: String) -> Result<()> {
        if !self.manifest.warnings.contains(&warning) {
            self.manifest.warnings.push(warning);
            write_atomically(&self.dir.join("manifest.json"), &serde_json::to_string_pretty(&self.manifest)?)?;
        }
        Ok(())
    }

    /// Samples that a boot has to yield.
    fn expected(&self, planned: &PlannedBoot) -> usize {
        self.manifest.points_of(planned).len() * self.manifest.iterations as usize
    }

    fn count(&self, key: BootKey) -> usize {
        self.samples.iter().filter(|stored| stored.key() == key).count()
    }

    /// Boots of the plan that have no samples yet, in order.
    pub fn remaining(&self) -> Vec<PlannedBoot> {
        let missing = |planned: &&PlannedBoot| self.count(planned.key()) == 0;
        self.manifest.boots.iter().filter(missing).copied().collect()
    }

    /// A fresh folder for the logs of one boot: `<arm>/boot-N`, in a sweep `<arm>/cpus-C-boot-N`. What an earlier try has left there is kept
    /// beside it: it may show why that went wrong.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn boot_dir(&self, planned: &PlannedBoot) -> Result<PathBuf> {
        let sweep = if self.manifest.cpus().len() > 1 { format!("cpus-{}-", planned.cpus) } else { String::new() };
        let dir = self.dir.join(arm_name(planned.arm)).join(format!("{sweep}boot-{}", planned.boot));
        if dir.exists() {
            let beside = |number: u32| dir.with_file_name(format!("{sweep}boot-{}-try-{number}", planned.boot));
            let free = (1..).map(beside).find(|beside| !beside.exists()).context("no number is free")?;
            fs::rename(&dir, &free).with_context(|| format!("cannot rename {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// Writes the samples of one boot: on disk before this returns, all or, after a crash, recognizably not all.
    ///
    /// # Errors
    /// The guest sent another number of samples than its job asked for, or the disk is full.
    pub fn append(&mut self, planned: &PlannedBoot, samples: Vec<StoredSample>) -> Result<()> {
        let expected = self.expected(planned);
        if samples.len() != expected {
            let message = format!(
                "boot {} of {} sent {} samples, {expected} were asked for",
                planned.boot,
                arm_name(planned.arm),
                samples.len()
            );
            return Err(Failure::error(Exit::MachineDied, message));
        }
        let lines =
            samples.iter().map(|stored| Ok(serde_json::to_string(stored)? + "\n")).collect::<Result<String>>()?;
        let path = self.dir.join("samples.jsonl");
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        let before = file.metadata()?.len();
        if let Err(error) = file.write_all(lines.as_bytes()).and_then(|()| file.sync_all()) {
            // Half a line in the middle of the file would be damage. If it cannot be taken back either, the next boot's error says so.
            let _ = file.set_len(before);
            return Err(error).with_context(|| format!("cannot write {}", path.display()));
        }
        self.samples.extend(samples);
        Ok(())
    }
}

/// `<date>-<name>-<n>` below a folder, with the first free n.
///
/// # Errors
/// It cannot be made.
pub fn new_dated_dir(parent: &Path, name: &str) -> Result<PathBuf> {
    numbered_dir(parent, &jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(), name)
}

/// "baseline", "control", "candidate".
pub fn arm_name(arm: Arm) -> &'static str {
    match arm {
        Arm::Baseline => "baseline",
        Arm::Control => "control",
        Arm::Candidate => "candidate",
    }
}

/// `<machine>/<date>-<candidate>-<n>`, with the first free n.
fn new_dir(results: &Path, manifest: &Manifest) -> Result<PathBuf> {
    let date = manifest.started.split('T').next().unwrap_or_default();
    let kernel = manifest.candidate.as_ref().unwrap_or(&manifest.baseline);
    numbered_dir(&results.join(&manifest.machine.kind), date, &kernel.name)
}

fn numbered_dir(parent: &Path, date: &str, name: &str) -> Result<PathBuf> {
    let name = plain(name);
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    for n in 1..10_000 {
        let dir = parent.join(format!("{date}-{name}-{n}"));
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            result => return result.map(|()| dir.clone()).with_context(|| format!("cannot make {}", dir.display())),
        }
    }
    anyhow::bail!("{} is full of runs of {date}", parent.display())
}

fn read_samples(path: &Path) -> Result<Vec<StoredSample>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let mut samples = Vec::new();
    for (number, line) in text.lines().enumerate() {
        match serde_json::from_str(line) {
            Ok(sample) => samples.push(sample),
            // Only the very last line can have been cut by a crash; anything else is damage.
            Err(_) if !text.ends_with('\n') && number + 1 == text.lines().count() => break,
            Err(error) => return Err(corrupt(path, number + 1, &error.to_string())),
        }
    }
    Ok(samples)
}

fn corrupt(path: &Path, line: usize, why: &str) -> anyhow::Error {
    let message = format!(
        "{}, line {line}: {why}\nnext: restore the file, or delete the lines of that boot and continue with `bench --resume`",
        path.display()
    );
    Failure::error(Exit::ResultsCorrupt, message)
}

/// Writes a file so that a reader sees the old one or the new one.
///
/// # Errors
/// The disk is full, or the folder cannot be written.
pub fn write_atomically(path: &Path, text: &str) -> Result<()> {
    let dir = path.parent().context("a file has a folder")?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    File::open(dir)?.sync_all()?;
    Ok(())
}

/// Held by who measures a run: a second one would make the same boots, and write between the lines of the first.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "held, not read")] File);

/// Claims the folder of a run.
///
/// # Errors
/// Somebody measures it, or it is not there.
pub fn claim(dir: &Path) -> Result<Claim> {
    let folder = File::open(dir)
        .map_err(|error| Failure::error(Exit::Usage, format!("{} is no run: {error}", dir.display())))?;
    match folder.try_lock() {
        Ok(()) => Ok(Claim(folder)),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", dir.display())),
        Err(TryLockError::WouldBlock) => {
            let message = format!("another mountlab measures {}\nnext: wait for it", dir.display());
            Err(Failure::error(Exit::CacheBusy, message))
        }
    }
}

/// How long somebody may take between reading and writing a file that several commands write.
const TURN_LIMIT: Duration = Duration::from_secs(60);

/// Reads, changes and writes a file of a folder while nobody else does: two commands with a cache of their own each may keep what they see
/// in one checkout.
///
/// # Errors
/// Somebody holds the folder for longer than a minute, or `change` fails.
pub fn in_turn<T>(dir: &Path, change: impl FnOnce() -> Result<T>) -> Result<T> {
    let folder = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    let start = Instant::now();
    loop {
        match folder.try_lock() {
            Ok(()) => return change(),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", dir.display()));
            }
            Err(TryLockError::WouldBlock) if start.elapsed() > TURN_LIMIT => {
                let message = format!("another command has held {} for {TURN_LIMIT:?}", dir.display());
                return Err(Failure::error(Exit::CacheBusy, message));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Reads a file that an earlier command of this checkout has kept; nothing if there is none.
///
/// # Errors
/// It is damaged or of another version: what it holds took hours, so nothing is written in its place.
pub fn read_kept<T: serde::de::DeserializeOwned>(path: &Path, version: u32) -> Result<Option<T>> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let damaged = |why: String| {
        let message = format!(
            "{}: {why}\nnext: restore it (git checkout), or delete it to begin anew; it is not overwritten",
            path.display()
        );
        Failure::error(Exit::ResultsCorrupt, message)
    };
    let found: Versioned = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if found.version != version {
        return Err(damaged(format!("version {}, this mountlab reads {version}", found.version)));
    }
    serde_json::from_str(&text).map(Some).map_err(|error| damaged(error.to_string()))
}

/// A name as a part of a path: a kernel may be named by a path or an address.
pub fn plain(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "@.-".contains(c) { c } else { '-' };
    name.chars().map(plain).collect()
}

/// Folders of all runs below `results`, sorted.
pub fn all(results: &Path) -> Vec<PathBuf> {
    let folders = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
        folders.sort();
        folders
    };
    let runs = folders(results).into_iter().flat_map(|machine| folders(&machine));
    runs.filter(|dir| dir.join("manifest.json").exists()).collect()
}

/// The newest run that is not finished.
///
/// # Errors
/// There is none.
pub fn find_resumable(results: &Path) -> Result<PathBuf> {
    let open = |dir: PathBuf| Run::open(&dir).ok().filter(|run| !run.remaining().is_empty());
    let newest = all(results).into_iter().filter_map(open).max_by(|a, b| a.manifest.started.cmp(&b.manifest.started));
    let none = || {
        Failure::error(
            Exit::Usage,
            format!("no run below {} is unfinished: there is nothing to resume", results.display()),
        )
    };
    newest.map(|run| run.dir).ok_or_else(none)
}

/// A run for tests of what comes after: three boots per arm, two iterations each, around given rates.
#[cfg(test)]
pub mod fixture {
    use super::*;
    use base64::Engine;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::{Serializer, V2Serializer};
    use mount_storms::protocol::{Latency, Manner, Oracle, Profile, Propagation, ReaderSample, Storage};

    /// A storm of ten containers.
    pub fn point() -> StormPoint {
        StormPoint {
            profile: Profile::Detach,
            storage: Storage::Tmpfs,
            propagation: Propagation::Shared,
            cpus: 2,
            threads: 2,
            containers: 10,
            layers: 3,
            inspection_passes: 1,
        }
    }

    /// Containers per second by arm; each boot is off by up to half a percent.
    pub fn run(rates: &[(Arm, f64)]) -> Run {
        let kernel = |name: &str| Kernel { name: name.into(), key: format!("key-of-{name}"), ..Kernel::default() };
        let manifest = Manifest {
            version: RESULTS_VERSION,
            command: vec!["bench".into(), "--kernel".into(), "patched".into()],
            mountlab_commit: "0123456789ab".into(),
            started: "2026-11-23T08:00:00Z".into(),
            host: "a host".into(),
            machine: MachineInfo {
                kind: "mock".into(),
                version: String::new(),
                cpus: 2,
                memory_mib: 1,
                topology: "smoke".into(),
                simulated: false,
            },
            baseline: kernel("mainline"),
            candidate: Some(kernel("patched")),
            seed: 1,
            margin: 0.05,
            points: vec![point()],
            iterations: 2,
            warmup_iterations: 0,
            manner: Manner::CONTAINERD,
            readers: Vec::new(),
            reader_periods_us: BTreeMap::new(),
            surroundings: Surroundings::default(),
            boots: crate::plan::plan(3, true, &[2], 1),
            warnings: vec!["the host is busy".into()],
        };
        let samples = rates.iter().flat_map(|&(arm, rate)| {
            (0..3).flat_map(move |boot| (0..2).map(move |iteration| sample(arm, boot, iteration, rate)))
        });
        Run { dir: "results/mock/x-1".into(), manifest, samples: samples.collect() }
    }

    /// The run with a reader beside its storms, who pays a factor of 8, and on the candidate one of 2.
    pub fn with_reader(mut run: Run, name: &str) -> Run {
        run.manifest.readers = vec![Reader::Stat];
        for stored in &mut run.samples {
            let slow = latency(if stored.arm == Arm::Candidate { 2_000_000 } else { 8_000_000 });
            let seen = ReaderSample { before: Some(latency(1_000_000)), during: Some(slow), again: 0 };
            stored.sample.readers.insert(name.into(), seen);
        }
        run
    }

    /// Sixty calls around `ns`.
    pub fn latency(ns: u64) -> Latency {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        (0..60).for_each(|n| histogram.record(ns + n).unwrap());
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&histogram, &mut bytes).unwrap();
        Latency {
            count: histogram.len(),
            mean_ns: histogram.mean(),
            p50_ns: histogram.value_at_quantile(0.5),
            p99_ns: histogram.value_at_quantile(0.99),
            max_ns: histogram.max(),
            hdr_v2_base64: base64::engine::general_purpose::STANDARD.encode(bytes),
        }
    }

    fn sample(arm: Arm, boot: u32, iteration: u32, rate: f64) -> StoredSample {
        let rate = rate * (1.0 + (f64::from(boot) - 1.0) / 200.0);
        let calls = [("umount".to_owned(), latency((1e8 / rate) as u64))].into();
        let oracle = Oracle { checks: [("layer_content".to_owned(), 40)].into(), failures: Vec::new() };
        let elapsed_ns = Some((10.0 * 1e9 / rate) as u64);
        StoredSample {
            arm,
            boot,
            sample: Sample {
                point: point(),
                iteration,
                elapsed_ns,
                calls,
                oracle,
                leak: None,
                readers: BTreeMap::new(),
            },
            region: None,
            cost: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    const RATES: [(Arm, f64); 3] = [(Arm::Baseline, 1.0), (Arm::Control, 1.0), (Arm::Candidate, 1.0)];

    /// A run on disk with its first two boots.
    fn two_boots(results: &Path) -> Run {
        let whole = fixture::run(&RATES);
        let mut run = Run::create(results, whole.manifest.clone()).unwrap();
        for planned in &whole.manifest.boots[..2] {
            let of_boot = |stored: &&StoredSample| (stored.arm, stored.boot) == (planned.arm, planned.boot);
            run.append(planned, whole.samples.iter().filter(of_boot).cloned().collect()).unwrap();
        }
        run
    }

    #[test]
    fn a_run_survives_the_disk_and_knows_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let run = two_boots(dir.path());
        let back = Run::open(&run.dir).unwrap();
        assert_eq!((back.manifest.clone(), back.samples.clone()), (run.manifest, run.samples));
        assert_eq!(back.remaining(), back.manifest.boots[2..]);
        assert_eq!(find_resumable(dir.path()).unwrap(), back.dir);
    }

    #[test]
    fn runs_of_one_day_are_numbered() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> =
            (0..2).map(|_| two_boots(dir.path()).dir.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["2026-11-23-patched-1", "2026-11-23-patched-2"]);
    }

    #[test]
    fn a_boot_cut_by_a_crash_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let run = two_boots(dir.path());
        let path = run.dir.join("samples.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 30]).unwrap();
        let back = Run::open(&run.dir).unwrap();
        assert_eq!(back.remaining(), back.manifest.boots[1..]);
        // Who reads writes nothing: somebody may be in the middle of it.
        assert_eq!(fs::read_to_string(&path).unwrap().len(), text.len() - 30);
        let claim = claim(&run.dir).unwrap();
        assert_eq!(Run::open_to_continue(&run.dir, &claim).unwrap().samples, back.samples);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn a_run_is_measured_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let run = two_boots(dir.path());
        let first = claim(&run.dir).unwrap();
        let error = claim(&run.dir).unwrap_err();
        assert_eq!(exit_code(&error), Exit::CacheBusy);
        drop(first);
        claim(&run.dir).unwrap();
        assert_eq!(exit_code(&claim(&dir.path().join("none")).unwrap_err()), Exit::Usage);
    }

    #[test]
    fn who_comes_second_waits_and_sees_what_the_first_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("count");
        fs::write(&path, "0").unwrap();
        let add = || {
            let count: u32 = fs::read_to_string(&path)?.parse()?;
            std::thread::sleep(Duration::from_millis(1));
            Ok(fs::write(&path, (count + 1).to_string())?)
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10).for_each(|_| in_turn(dir.path(), add).unwrap()));
            }
        });
        assert_eq!(fs::read_to_string(&path).unwrap(), "40");
    }

    #[test]
    fn what_was_kept_is_read_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept.json");
        let read = || read_kept::<BTreeMap<String, u32>>(&path, 2);
        assert_eq!(read().unwrap(), None);
        fs::write(&path, "{\"version\": 2, \"a\": 1}").unwrap();
        assert_eq!(read().unwrap().unwrap()["a"], 1);
        for damaged in ["", "<<<<<<< HEAD\n{\"version\": 2}", "{\"version\": 1}", "{\"version\": 2, \"a\": \"b\"}"] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(exit_code(&read().unwrap_err()), Exit::ResultsCorrupt, "{damaged}");
        }
    }

    #[test]
    fn a_kernel_that_is_a_path_names_no_folder_elsewhere() {
        assert_eq!(plain("patched@3"), "patched@3");
        assert_eq!(plain("/src/linux"), "-src-linux");
        assert_eq!(plain("mutant:x@patched"), "mutant-x@patched");
    }

    #[test]
    fn a_warning_is_in_the_manifest_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = two_boots(dir.path());
        run.warn("resumed elsewhere".into()).unwrap();
        run.warn("resumed elsewhere".into()).unwrap();
        assert_eq!(Run::open(&run.dir).unwrap().manifest.warnings, ["the host is busy", "resumed elsewhere"]);
    }

    #[test]
    fn damage_elsewhere_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let run = two_boots(dir.path());
        let path = run.dir.join("samples.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{{\n{text}")).unwrap();
        let error = Run::open(&run.dir).unwrap_err();
        assert_eq!(exit_code(&error), Exit::ResultsCorrupt);
        assert!(error.to_string().contains("samples.jsonl, line 1"), "{error}");
        fs::write(run.dir.join("manifest.json"), "{").unwrap();
        assert_eq!(exit_code(&Run::open(&run.dir).unwrap_err()), Exit::ResultsCorrupt);
    }

    #[test]
    fn a_boot_with_too_few_samples_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = two_boots(dir.path());
        let planned = run.manifest.boots[2];
        assert!(run.append(&planned, Vec::new()).unwrap_err().to_string().contains("0 samples, 2 were asked for"));
        assert_eq!(run.remaining().len(), 7);
    }
}
