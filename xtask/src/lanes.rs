//! What the lanes of `test` showed, kept in results/: a file for programs, and a table for people.

use crate::kernel::Kernel;
use crate::machine::MachineInfo;
use crate::results::{in_turn, read_kept, write_atomically};
use crate::test::Totals;
use crate::{bench, known, small_storm, warning};
use anyhow::Result;
use mount_storms::protocol::{Outcome, TrialResult};
use mount_storms::race::{self, Race, Races};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Version of `lanes.json`.
const VERSION: u32 = 2;

/// Areas of trials that are not the suite's own.
const SELFTESTS: &str = "selftest::";
const RACES: &str = "kcsan::";

/// Area of what [`Booted::ended`] says.
const BOOTS: &str = "boot::";

/// One boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Booted {
    /// "suite" (and selftests) or "storms".
    pub what: String,
    /// On which machine.
    pub machine: MachineInfo,
    /// Real time of it, in seconds.
    pub wall_s: f64,
    /// How it ended, if badly.
    pub ended: Option<String>,
}

/// What one kernel showed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    kernel: String,
    key: String,
    /// Patches on the base.
    patches: usize,
    suite: Totals,
    selftests: Totals,
    storms: Totals,
    /// What failed, and why.
    failures: BTreeMap<String, String>,
    /// Why trials were skipped, and how many.
    skipped: BTreeMap<String, u64>,
    /// Data races that are no failures, and why. Of a kernel without patches those of its earlier runs as well: which ones a run meets is
    /// chance, and the others are judged by it.
    races: BTreeMap<String, String>,
    boots: Vec<Booted>,
}

impl Tested {
    /// From the trials as they were judged.
    pub fn of(kernel: &Kernel, boots: Vec<Booted>, trials: &[TrialResult]) -> Tested {
        let area = |area: &'static str| trials.iter().filter(move |trial| trial.name.starts_with(area));
        let is_own = |trial: &&TrialResult| {
            ![SELFTESTS, small_storm::AREA, RACES, BOOTS].iter().any(|area| trial.name.starts_with(area))
        };
        let (mut failures, mut skipped) = (BTreeMap::new(), BTreeMap::new());
        for trial in trials {
            match &trial.outcome {
                Outcome::Passed => {}
                Outcome::Failed { .. } if trial.name.starts_with(BOOTS) => {}
                Outcome::Failed { why } => drop(failures.insert(trial.name.clone(), why.clone())),
                Outcome::Skipped { .. } if trial.name.starts_with(RACES) => {}
                Outcome::Skipped { why } => *skipped.entry(first_line(why)).or_default() += 1,
            }
        }
        let race = |race: &TrialResult| match &race.outcome {
            Outcome::Skipped { why } => Some((race.name.trim_start_matches(RACES).to_owned(), why.clone())),
            _ => None,
        };
        Tested {
            kernel: kernel.name.clone(),
            key: kernel.key.clone(),
            patches: kernel.series.len(),
            suite: Totals::of_trials(trials.iter().filter(is_own)),
            selftests: Totals::of_trials(area(SELFTESTS)),
            storms: Totals::of_trials(area(small_storm::AREA)),
            failures,
            skipped,
            races: area(RACES).filter_map(race).collect(),
            boots,
        }
    }

    fn is_whole(&self, wanted: &Wanted<'_>) -> bool {
        let booted = |what: &&str| self.boots.iter().any(|boot| boot.what == *what && boot.ended.is_none());
        let without_failure = [self.suite, self.selftests, self.storms].iter().all(|totals| totals.failed == 0);
        let told = self.failures.is_empty() && without_failure;
        told && self.trials() == wanted.trials
            && wanted.whats.iter().all(booted)
            && (!wanted.selftests || self.selftests.passed > 0)
    }

    /// Trials of the suite that it was tested by.
    fn trials(&self) -> u64 {
        self.suite.passed + self.suite.failed + self.suite.skipped
    }

    fn wall_s(&self) -> f64 {
        self.boots.iter().map(|boot| boot.wall_s).sum()
    }

    /// What the kernel said: data races, and boots that ended badly.
    fn reports(&self) -> String {
        let own = self.failures.keys().filter(|name| name.starts_with(RACES)).count();
        let ended = self.boots.iter().filter(|boot| boot.ended.is_some()).count();
        let counted = [(own, "data races of its own"), (ended, "boots that ended badly")];
        let bad = counted.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("**{count} {what}**"));
        let mut told = BTreeMap::new();
        self.races.values().for_each(|why| *told.entry(why).or_insert(0) += 1);
        let told = told.into_iter().map(|(why, count)| format!("{count} times {why}"));
        let words: Vec<String> = bad.chain(told).collect();
        if words.is_empty() { "none".into() } else { words.join(", ") }
    }
}

/// What one kernel showed, and when and where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    mountlab_commit: String,
    /// UTC.
    ended: String,
    host: String,
    #[serde(flatten)]
    tested: Tested,
}

/// What one lane showed of each kernel, the last time that it was kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Lane {
    lane: String,
    /// Those with fewer patches first.
    kernels: Vec<Kept>,
}

/// `lanes.json`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Lanes {
    version: u32,
    /// By name.
    lanes: Vec<Lane>,
}

/// Puts what a lane shows into results/ of the checkout, kernel by kernel, so that a run that ends early loses nothing.
pub struct Keeper {
    results: PathBuf,
    lane: String,
    mountlab_commit: String,
    current: Current,
}

/// Keys of the kernels as they are now, by lane and name.
#[derive(Clone, Debug, Default)]
pub struct Current(pub BTreeMap<(String, String), String>);

impl Current {
    fn is(&self, lane: &str, tested: &Tested) -> bool {
        self.0.get(&(lane.to_owned(), tested.kernel.clone())) == Some(&tested.key)
    }
}

/// What a run wants to see of a kernel.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Boots.
    pub whats: &'a [&'a str],
    /// Trials of the suite: one that has had another number of them was tested by another suite.
    pub trials: u64,
    /// Whether its own selftests as well.
    pub selftests: bool,
}

impl Keeper {
    /// A keeper for a run of a lane that begins now. What was kept of another kernel than the `current` one of a name, or of a name that is
    /// not among them, goes from this lane; in the others it is marked.
    pub fn new(root: &Path, lane: &str, current: Current) -> Keeper {
        let mountlab_commit = bench::commit_of(root);
        Keeper { results: root.join("results"), lane: lane.into(), mountlab_commit, current }
    }

    /// Whether a kernel has shown already, without a failure, what a run shows that wants so much of it.
    ///
    /// # Errors
    /// What was kept cannot be read.
    pub fn has(&self, kernel: &Kernel, wanted: &Wanted<'_>) -> Result<bool> {
        let lanes = Lanes::load(&self.results.join("lanes.json"))?;
        let mut kept = lanes.lanes.iter().filter(|kept| kept.lane == self.lane).flat_map(Lane::tested);
        Ok(kept.any(|tested| tested.key == kernel.key && tested.kernel == kernel.name && tested.is_whole(wanted)))
    }

    /// Writes down what a kernel showed, in place of what it showed before.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn keep(&self, tested: Tested) -> Result<()> {
        let kept = Kept {
            mountlab_commit: self.mountlab_commit.clone(),
            ended: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            host: warning::host_in_words(),
            tested,
        };
        in_turn(&self.results, || {
            let mut lanes = Lanes::load(&self.results.join("lanes.json"))?;
            lanes.put(&self.lane, kept, |tested| self.current.is(&self.lane, tested));
            write_atomically(&self.results.join("lanes.json"), &(serde_json::to_string_pretty(&lanes)? + "\n"))?;
            write_atomically(&self.results.join("lanes.md"), &lanes.markdown(&self.current))
        })
    }
}

/// The data races that kept runs of a lane showed on a kernel, each with a word in place of its report.
///
/// # Errors
/// What was kept cannot be read.
pub fn races(root: &Path, lane: &str, kernel: &Kernel) -> Result<Races> {
    let lanes = Lanes::load(&root.join("results/lanes.json"))?;
    let tested = lanes.lanes.iter().filter(|kept| kept.lane == lane).flat_map(Lane::tested);
    let races = tested.filter(|tested| tested.key == kernel.key).flat_map(|tested| tested.races.keys());
    Ok(races.filter_map(|name| Some((pair(name)?, "of an earlier run".to_owned()))).collect())
}

/// The functions of a race by its name.
fn pair(name: &str) -> Option<Race> {
    let (one, other) = name.split_once(" / ")?;
    Some((one.to_owned(), other.to_owned()))
}

impl Lanes {
    /// A file that is not there says nothing.
    fn load(path: &Path) -> Result<Lanes> {
        let mut lanes = read_kept(path, VERSION)?.unwrap_or(Lanes { version: VERSION, lanes: Vec::new() });
        lanes.lanes.iter_mut().for_each(Lane::judge_races_again);
        Ok(lanes)
    }

    fn put(&mut self, lane: &str, mut kept: Kept, is_current: impl Fn(&Tested) -> bool) {
        let at = self.lanes.iter().position(|earlier| earlier.lane == lane);
        let mut kernels = at.map(|at| self.lanes.remove(at).kernels).unwrap_or_default();
        if kept.tested.patches == 0 {
            let same = |earlier: &&Kept| earlier.tested.key == kept.tested.key;
            let earlier: Vec<_> = kernels.iter().filter(same).flat_map(|kept| kept.tested.races.clone()).collect();
            kept.tested.races.extend(earlier);
        }
        kernels.retain(|earlier| earlier.tested.kernel != kept.tested.kernel && is_current(&earlier.tested));
        kernels.push(kept);
        kernels.sort_by_key(|kept| (kept.tested.patches, kept.tested.kernel.clone()));
        let mut lane = Lane { lane: lane.into(), kernels };
        lane.judge_races_again();
        self.lanes.push(lane);
        self.lanes.sort_by(|a, b| a.lane.cmp(&b.lane));
    }

    fn markdown(&self, current: &Current) -> String {
        let head = "# Lanes\n\nGenerated by `cargo xtask test --lane LANE --keep`, and with `--each` for every prefix of the series; do not \
            edit.\n\nA lane is a kernel configuration (vm-configs/kconfig/) in which the suite, the kernel's own selftests for mounts and a \
            small storm of each profile run. Data races of mainline are those of all runs of it that were kept, and kernels that were kept \
            before are judged by them again. *Earlier*: the series has changed since. *Earlier suite*: it had another number of trials. \
            Wall times are those of \
            the boots, without builds; boots of two kernels may have run at once.\n\n\
            | lane | kernel | suite | selftests | storms | kernel reports | wall time |\n|---|---|---|---|---|---|---|\n";
        let newest = self.lanes.iter().flat_map(|lane| &lane.kernels).max_by_key(|kept| &kept.ended);
        let trials = newest.map_or(0, |kept| kept.tested.trials());
        let rows: String = self.lanes.iter().map(|lane| lane.rows(current, trials)).collect();
        let details: String = self.lanes.iter().map(Lane::details).collect();
        format!("{head}{rows}{details}")
    }
}

impl Lane {
    fn tested(&self) -> impl Iterator<Item = &Tested> {
        self.kernels.iter().map(|kept| &kept.tested)
    }

    /// A data race is mainline's if mainline has shown it since, or if the list of known ones names it by now: which races a run of mainline
    /// meets is chance, and a kernel that was kept before that run is not to be booted again for it.
    fn judge_races_again(&mut self) {
        let base = self.tested().filter(|tested| tested.patches == 0);
        let shown: BTreeSet<String> = base.flat_map(|tested| tested.races.keys().cloned()).collect();
        let is_mainlines = |race: &str| shown.contains(race) || pair(race).is_some_and(|race| race::is_known(&race));
        for Tested { failures, races, .. } in self.kernels.iter_mut().map(|kept| &mut kept.tested) {
            failures.retain(|name, _| match name.strip_prefix(RACES).filter(|race| is_mainlines(race)) {
                Some(race) => {
                    races.insert(race.to_owned(), known::MAINLINES_RACE.to_owned());
                    false
                }
                None => true,
            });
        }
    }

    /// A row for each kernel; `trials` are those of the suite as it is.
    fn rows(&self, current: &Current, trials: u64) -> String {
        let counted = |totals: &Totals| match *totals == Totals::default() {
            true => "not run".to_owned(),
            false => totals.to_string(),
        };
        let row = |tested: &Tested| {
            let boots: Vec<String> =
                tested.boots.iter().map(|boot| format!("{} {:.0} s", boot.what, boot.wall_s)).collect();
            let parts = [&tested.suite, &tested.selftests, &tested.storms].map(counted).join(" | ");
            let (lane, kernel, reports) = (&self.lane, &tested.kernel, tested.reports());
            let when = match (current.is(lane, tested), tested.trials() == trials) {
                (false, _) => " (*earlier*)",
                (true, false) => " (*earlier suite*)",
                (true, true) => "",
            };
            format!("| {lane} | {kernel}{when} | {parts} | {reports} | {} |\n", boots.join(", "))
        };
        self.tested().map(row).collect()
    }

    /// Where and when, which kernels, and what did not simply pass: each thing once, with the kernels that showed it.
    fn details(&self) -> String {
        let minutes = self.tested().map(Tested::wall_s).sum::<f64>() / 60.0;
        let hosts = distinct(self.kernels.iter().map(|kept| kept.host.clone()));
        let commits = distinct(self.kernels.iter().map(|kept| kept.mountlab_commit.clone()));
        let boots = self.tested().flat_map(|tested| &tested.boots);
        let machines =
            distinct(boots.map(|boot| format!("{} on {} ({} CPUs)", boot.what, boot.machine.kind, boot.machine.cpus)));
        let ends = || self.kernels.iter().map(|kept| kept.ended.as_str());
        let (first, last) = (ends().min().unwrap_or_default(), ends().max().unwrap_or_default());
        let mut text = format!(
            "\n## {}\n\n{minutes:.0} minutes of boots, which ended from {first} to {last}, on {hosts}; {machines}; mountlab {commits}.\n\n",
            self.lane
        );
        let patches = |count: usize| format!("{count} patch{}", if count == 1 { "" } else { "es" });
        for Tested { kernel, key, patches: count, .. } in self.tested() {
            text += &format!("* {kernel}: kernel {key}, {}\n", patches(*count));
        }
        text += "\n";
        let mut shown: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for tested in self.tested() {
            for line in tested.remarks() {
                shown.entry(line).or_default().insert(&tested.kernel);
            }
        }
        for (line, kernels) in shown {
            text += &format!("* {line} ({})\n", self.named(&kernels));
        }
        text
    }

    /// Kernels in few words.
    fn named(&self, kernels: &BTreeSet<&str>) -> String {
        let all = self.tested().map(|tested| tested.kernel.as_str());
        let (with, without): (Vec<&str>, Vec<&str>) = all.partition(|kernel| kernels.contains(kernel));
        match without.len() {
            0 => "all kernels".into(),
            few if few < with.len() => format!("all but {}", without.join(", ")),
            _ => with.join(", "),
        }
    }
}

fn distinct(words: impl Iterator<Item = String>) -> String {
    let words: BTreeSet<String> = words.collect();
    words.into_iter().collect::<Vec<_>>().join(", ")
}

impl Tested {
    /// What did not simply pass, a line each.
    fn remarks(&self) -> Vec<String> {
        let ended = |boot: &Booted| Some(format!("{} ended badly: {}", boot.what, first_line(boot.ended.as_deref()?)));
        let mut lines: Vec<String> = self.boots.iter().filter_map(ended).collect();
        lines.extend(self.failures.iter().map(|(name, why)| format!("failed: {name}: {}", first_line(why))));
        lines.extend(self.skipped.iter().map(|(why, count)| format!("skipped: {count}: {}", on_mainline(why))));
        lines.extend(self.races.iter().map(|(race, why)| format!("{why}: {race}")));
        lines
    }
}

/// A selftest that fails on mainline is told of in one way, on mainline and where it is known for that.
fn on_mainline(why: &str) -> String {
    match why.strip_prefix(known::EXCUSE).and_then(|rest| rest.strip_prefix(": ")) {
        Some(said) => format!("{}: {said}", known::ON_MAINLINE),
        None => why.to_owned(),
    }
}

fn first_line(text: &str) -> String {
    text.trim().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Exit, exit_code};
    use std::fs;

    fn tested(kernel: &str, trials: &[(&str, Outcome)]) -> Tested {
        let machine = crate::results::fixture::run(&[]).manifest.machine;
        let boots = vec![Booted { what: "suite".into(), machine, wall_s: 90.0, ended: None }];
        let trial = |(name, outcome): &(&str, Outcome)| TrialResult {
            name: (*name).into(),
            outcome: outcome.clone(),
            elapsed_ms: 1,
        };
        let kernel = Kernel { name: kernel.into(), key: "k1".into(), series: vec!["a".into()], ..Kernel::default() };
        Tested::of(&kernel, boots, &trials.iter().map(trial).collect::<Vec<_>>())
    }

    fn lane(name: &str, kernels: Vec<Tested>) -> Lane {
        let (mountlab_commit, ended, host) = ("c".to_owned(), "now".to_owned(), "2 x CPU".to_owned());
        let kept = |tested| Kept {
            mountlab_commit: mountlab_commit.clone(),
            ended: ended.clone(),
            host: host.clone(),
            tested,
        };
        Lane { lane: name.into(), kernels: kernels.into_iter().map(kept).collect() }
    }

    fn current(lane: &str, names: &[(&str, &str)]) -> Current {
        Current(names.iter().map(|(name, key)| ((lane.to_owned(), (*name).to_owned()), (*key).to_owned())).collect())
    }

    fn skipped(why: &str) -> Outcome {
        Outcome::Skipped { why: why.into() }
    }

    fn failed(why: &str) -> Outcome {
        Outcome::Failed { why: why.into() }
    }

    #[test]
    fn trials_are_counted_by_where_they_come_from() {
        let tested = tested(
            "patched",
            &[
                ("umount::a", Outcome::Passed),
                ("umount::b", skipped("one CPU\nonly")),
                ("umount::c", skipped("one CPU")),
                ("selftest::x/y", failed("EPERM")),
                ("storm::detach", Outcome::Passed),
                ("kcsan::a / b", skipped("a data race of mainline")),
                ("kcsan::a / c", failed("a data race that mainline did not show")),
            ],
        );
        let totals = |passed, failed, skipped| Totals { passed, failed, skipped };
        assert_eq!(
            (tested.suite, tested.selftests, tested.storms),
            (totals(1, 0, 2), totals(0, 1, 0), totals(1, 0, 0))
        );
        assert_eq!((tested.skipped["one CPU"], tested.failures.len(), tested.races.len()), (2, 2, 1));
        assert_eq!(tested.reports(), "**1 data races of its own**, 1 times a data race of mainline");
    }

    #[test]
    fn a_boot_that_ended_badly_is_in_the_table() {
        let mut tested = tested("patched", &[("umount::a", Outcome::Passed)]);
        assert_eq!(tested.reports(), "none");
        tested.boots[0].ended = Some("the guest hangs\nconsole: x".into());
        let text = Lanes { version: VERSION, lanes: vec![lane("kasan", vec![tested])] }
            .markdown(&current("kasan", &[("patched", "k1")]));
        let row = "| kasan | patched | 1 passed, 0 failed, 0 skipped | not run | not run | **1 boots that ended badly** | suite 90 s |\n";
        assert!(text.contains(row) && text.contains("* suite ended badly: the guest hangs (all kernels)\n"), "{text}");
        assert!(text.contains("* patched: kernel k1, 1 patch\n"), "{text}");
    }

    #[test]
    fn a_kernel_that_an_earlier_suite_tested_says_so() {
        let mut kasan = lane("kasan", vec![tested("a", &[("umount::a", Outcome::Passed)])]);
        let two = [("umount::a", Outcome::Passed), ("umount::b", skipped("one CPU"))];
        let lockdep = lane("lockdep", vec![tested("a", &two)]);
        kasan.kernels[0].ended = "before".into();
        let current =
            Current(["kasan", "lockdep"].map(|lane| ((lane.to_owned(), "a".to_owned()), "k1".to_owned())).into());
        let text = Lanes { version: VERSION, lanes: vec![kasan, lockdep] }.markdown(&current);
        assert!(
            text.contains("| kasan | a (*earlier suite*) | 1 passed") && text.contains("| lockdep | a | 1 passed"),
            "{text}"
        );
    }

    #[test]
    fn what_several_kernels_showed_is_said_once() {
        let known = "known on mainline: EPERM";
        let kernels = [("mainline", "fails on mainline: EPERM"), ("patched@1", known), ("patched", "one CPU only")];
        let kernels: Vec<Tested> =
            kernels.iter().map(|(name, why)| tested(name, &[("selftest::x/y", skipped(why))])).collect();
        let text = lane("lockdep", kernels).details();
        for line in
            ["* skipped: 1: fails on mainline: EPERM (all but patched)\n", "* skipped: 1: one CPU only (patched)\n"]
        {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
        assert!(text.contains("which ended from now to now, on 2 x CPU; suite on "), "{text}");
    }

    #[test]
    fn what_was_kept_whole_need_not_be_shown_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("results")).unwrap();
        let keeper = Keeper::new(dir.path(), "kasan", current("kasan", &[("a", "k1"), ("b", "k1"), ("c", "k1")]));
        keeper.keep(tested("a", &[("umount::a", Outcome::Passed)])).unwrap();
        keeper.keep(tested("b", &[("umount::a", failed("EIO")), ("selftest::x/y", Outcome::Passed)])).unwrap();
        let mut ended = tested("c", &[("umount::a", Outcome::Passed)]);
        ended.boots[0].ended = Some("the guest hangs".into());
        keeper.keep(ended).unwrap();
        let kernel = |name: &str, key: &str| Kernel { name: name.into(), key: key.into(), ..Kernel::default() };
        let has = |keeper: &Keeper, kernel: Kernel, wanted: &Wanted<'_>| keeper.has(&kernel, wanted).unwrap();
        let suite = Wanted { whats: &["suite"], trials: 1, selftests: false };
        assert!(has(&keeper, kernel("a", "k1"), &suite));
        assert!(!has(&keeper, kernel("a", "k2"), &suite), "another kernel");
        let storms = Wanted { whats: &["suite", "storms"], ..suite.clone() };
        assert!(!has(&keeper, kernel("a", "k1"), &storms), "no storms were kept");
        assert!(
            !has(&keeper, kernel("a", "k1"), &Wanted { selftests: true, ..suite.clone() }),
            "no selftests were kept"
        );
        assert!(!has(&keeper, kernel("a", "k1"), &Wanted { trials: 2, ..suite.clone() }), "the suite has a trial more");
        assert!(!has(&keeper, kernel("b", "k1"), &Wanted { selftests: true, ..suite.clone() }), "it failed");
        assert!(!has(&keeper, kernel("c", "k1"), &suite), "its boot ended badly");
        assert!(!has(&Keeper::new(dir.path(), "kcsan", Current::default()), kernel("a", "k1"), &suite));
        fs::write(dir.path().join("results/lanes.json"), "<<<<<<< HEAD").unwrap();
        let error = keeper.keep(tested("a", &[("umount::a", Outcome::Passed)])).unwrap_err();
        assert_eq!(exit_code(&error), Exit::ResultsCorrupt);
        assert_eq!(fs::read_to_string(dir.path().join("results/lanes.json")).unwrap(), "<<<<<<< HEAD");
    }

    #[test]
    fn what_races_on_mainline_is_remembered_from_run_to_run() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("results")).unwrap();
        let keeper = Keeper::new(dir.path(), "kcsan", current("kcsan", &[("mainline", "k1")]));
        let raced = |name: &str, patches, key: &str| {
            let tested =
                tested("mainline", &[("umount::a", Outcome::Passed), (name, skipped("a data race of mainline"))]);
            Tested { patches, key: key.into(), ..tested }
        };
        let kernel = |key: &str| Kernel { key: key.into(), ..Kernel::default() };
        let shown = |lane: &str, key: &str| {
            let names =
                races(dir.path(), lane, &kernel(key)).unwrap().into_keys().map(|(one, other)| format!("{one}-{other}"));
            names.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown("kcsan", "k1"), "");
        keeper.keep(raced("kcsan::a / b", 0, "k1")).unwrap();
        keeper.keep(raced("kcsan::a / c", 0, "k1")).unwrap();
        assert_eq!(
            (shown("kcsan", "k1"), shown("kcsan", "k2"), shown("kasan", "k1")),
            ("a-b a-c".into(), "".into(), "".into())
        );
        // Another mainline has shown nothing yet, and a patched kernel answers for its last run alone.
        keeper.keep(raced("kcsan::a / d", 0, "k2")).unwrap();
        assert_eq!((shown("kcsan", "k1"), shown("kcsan", "k2")), ("".into(), "a-d".into()));
        keeper.keep(raced("kcsan::a / e", 1, "k2")).unwrap();
        assert_eq!(shown("kcsan", "k2"), "a-e");
    }

    #[test]
    fn a_race_that_mainline_shows_later_is_no_failure_of_kernels_before() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("results")).unwrap();
        let keeper = Keeper::new(dir.path(), "kcsan", current("kcsan", &[("mainline", "k1"), ("patched", "k1")]));
        let shown = || Lanes::load(&dir.path().join("results/lanes.json")).unwrap().lanes.remove(0);
        let new = || failed("a data race that mainline did not show\nread by task 1");
        // The last is in the list of known ones, since whenever.
        let known = "kcsan::__d_lookup / ___d_drop";
        keeper.keep(tested("patched", &[("kcsan::a / b", new()), ("kcsan::a / c", new()), (known, new())])).unwrap();
        assert_eq!(shown().kernels[0].tested.failures.len(), 2);
        let mainline = tested("mainline", &[("kcsan::a / b", skipped("a data race of mainline"))]);
        keeper.keep(Tested { patches: 0, ..mainline }).unwrap();
        let patched = &shown().kernels[1].tested;
        assert_eq!(patched.failures.keys().collect::<Vec<_>>(), ["kcsan::a / c"]);
        assert_eq!(patched.reports(), "**1 data races of its own**, 2 times a data race of mainline");
    }

    #[test]
    fn a_kernel_replaces_what_it_showed_before_and_what_is_of_another_series_goes() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("results")).unwrap();
        let kept = |name: &str, outcome| tested(name, &[("umount::a", outcome)]);
        let keeper = |lane: &str, names: &[(&str, &str)]| Keeper::new(dir.path(), lane, current(lane, names));
        let lockdep = keeper("lockdep", &[("old", "k1"), ("same", "k1")]);
        for name in ["old", "same", "gone"] {
            lockdep.keep(kept(name, Outcome::Passed)).unwrap();
        }
        keeper("kasan", &[]).keep(kept("old", Outcome::Passed)).unwrap();
        // The same kernel again; "old" has become another kernel, and nobody knows a kernel named "gone".
        keeper("lockdep", &[("old", "k2"), ("same", "k1")]).keep(kept("new", failed("EIO"))).unwrap();
        let lanes = Lanes::load(&dir.path().join("results/lanes.json")).unwrap().lanes;
        let names = |lane: &Lane| lane.tested().map(|tested| tested.kernel.clone()).collect::<Vec<_>>().join(" ");
        let names: Vec<(&str, String)> = lanes.iter().map(|lane| (lane.lane.as_str(), names(lane))).collect();
        assert_eq!(names, [("kasan", "old".to_owned()), ("lockdep", "new same".to_owned())]);
        // The second keeper knows nothing of the other lane.
        let text = fs::read_to_string(dir.path().join("results/lanes.md")).unwrap();
        assert!(text.contains("| lockdep | same |") && text.contains("| kasan | old (*earlier*) |"), "{text}");
    }
}
