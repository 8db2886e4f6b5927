//! What the lanes of `test` showed, kept in results/: a file for programs, and a table for people.

use crate::kernel::Kernel;
use crate::machine::MachineInfo;
use crate::results::write_atomically;
use crate::test::Totals;
use crate::{bench, small_storm, warning};
use anyhow::Result;
use mount_storms::protocol::{Outcome, TrialResult};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Version of `lanes.json`.
const VERSION: u32 = 1;

/// Areas of trials that are not the suite's own.
const SELFTESTS: &str = "selftest::";
const RACES: &str = "kcsan::";

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
    /// Data races that are no failures, and why.
    races: BTreeMap<String, String>,
    boots: Vec<Booted>,
}

impl Tested {
    /// From the trials as they were judged.
    pub fn of(kernel: &Kernel, boots: Vec<Booted>, trials: &[TrialResult]) -> Tested {
        let area = |area: &'static str| trials.iter().filter(move |trial| trial.name.starts_with(area));
        let is_own = |trial: &&TrialResult| {
            ![SELFTESTS, small_storm::AREA, RACES].iter().any(|area| trial.name.starts_with(area))
        };
        let (mut failures, mut skipped) = (BTreeMap::new(), BTreeMap::new());
        for trial in trials {
            match &trial.outcome {
                Outcome::Passed => {}
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

/// What one lane showed, the last time that it was kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Lane {
    lane: String,
    mountlab_commit: String,
    /// UTC.
    ended: String,
    host: String,
    kernels: Vec<Tested>,
}

/// `lanes.json`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Lanes {
    version: u32,
    /// By name.
    lanes: Vec<Lane>,
}

/// Puts what a lane showed into results/ of the checkout, in place of what it showed before.
///
/// # Errors
/// The folder cannot be written.
pub fn keep(root: &Path, lane: &str, kernels: Vec<Tested>) -> Result<()> {
    let results = root.join("results");
    let mut lanes = Lanes::load(&results.join("lanes.json"));
    lanes.put(Lane {
        lane: lane.into(),
        mountlab_commit: bench::commit_of(root),
        ended: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        host: warning::host_in_words(),
        kernels,
    });
    write_atomically(&results.join("lanes.json"), &(serde_json::to_string_pretty(&lanes)? + "\n"))?;
    write_atomically(&results.join("lanes.md"), &lanes.markdown())
}

impl Lanes {
    /// A file that is not there or of another version says nothing.
    fn load(path: &Path) -> Lanes {
        let text = fs::read_to_string(path).unwrap_or_default();
        let stored = serde_json::from_str::<Lanes>(&text).ok().filter(|stored| stored.version == VERSION);
        stored.unwrap_or(Lanes { version: VERSION, lanes: Vec::new() })
    }

    fn put(&mut self, lane: Lane) {
        self.lanes.retain(|earlier| earlier.lane != lane.lane);
        self.lanes.push(lane);
        self.lanes.sort_by(|a, b| a.lane.cmp(&b.lane));
    }

    fn markdown(&self) -> String {
        let head = "# Lanes\n\nGenerated by `cargo xtask test --lane LANE --keep`; do not edit.\n\nA lane is a kernel configuration \
            (vm-configs/kconfig/) in which the suite, the kernel's own selftests for mounts and a small storm of each profile run. Wall times \
            are those of the boots, without builds.\n\n\
            | lane | kernel | suite | selftests | storms | kernel reports | wall time |\n|---|---|---|---|---|---|---|\n";
        let rows: String = self.lanes.iter().map(Lane::rows).collect();
        let details: String = self.lanes.iter().map(Lane::details).collect();
        format!("{head}{rows}{details}")
    }
}

impl Lane {
    fn rows(&self) -> String {
        let counted = |totals: &Totals| match *totals == Totals::default() {
            true => "not run".to_owned(),
            false => totals.to_string(),
        };
        let row = |tested: &Tested| {
            let boots: Vec<String> =
                tested.boots.iter().map(|boot| format!("{} {:.0} s", boot.what, boot.wall_s)).collect();
            let parts = [&tested.suite, &tested.selftests, &tested.storms].map(counted).join(" | ");
            let (lane, kernel, reports) = (&self.lane, &tested.kernel, tested.reports());
            format!("| {lane} | {kernel} | {parts} | {reports} | {} |\n", boots.join(", "))
        };
        self.kernels.iter().map(row).collect()
    }

    fn details(&self) -> String {
        let minutes = self.kernels.iter().map(Tested::wall_s).sum::<f64>() / 60.0;
        let Lane { lane, mountlab_commit, ended, host, .. } = self;
        let mut text =
            format!("\n## {lane}\n\n{minutes:.0} minutes in all, on {host}; mountlab {mountlab_commit}, {ended}.\n\n");
        for tested in &self.kernels {
            text += &tested.details();
        }
        text
    }
}

impl Tested {
    fn details(&self) -> String {
        let machines: Vec<String> = self
            .boots
            .iter()
            .map(|boot| format!("{} on {} ({} CPUs)", boot.what, boot.machine.kind, boot.machine.cpus))
            .collect();
        let (kernel, key, patches) = (&self.kernel, &self.key, self.patches);
        let mut text = format!("* {kernel}: kernel {key}, {patches} patches; {}\n", machines.join(", "));
        for boot in self.boots.iter().filter(|boot| boot.ended.is_some()) {
            let ended = boot.ended.as_deref().map(first_line).unwrap_or_default();
            text += &format!("  * {} ended badly: {ended}\n", boot.what);
        }
        for (name, why) in &self.failures {
            text += &format!("  * failed: {name}: {}\n", first_line(why));
        }
        for (why, count) in &self.skipped {
            text += &format!("  * skipped: {count}: {why}\n");
        }
        for (race, why) in &self.races {
            text += &format!("  * {why}: {race}\n");
        }
        text
    }
}

fn first_line(text: &str) -> String {
    text.trim().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let (mountlab_commit, ended, host) = ("c".into(), "now".into(), "2 x CPU".into());
        Lane { lane: name.into(), mountlab_commit, ended, host, kernels }
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
        let text = Lanes { version: VERSION, lanes: vec![lane("kasan", vec![tested])] }.markdown();
        let row = "| kasan | patched | 1 passed, 0 failed, 0 skipped | not run | not run | **1 boots that ended badly** | suite 90 s |\n";
        assert!(text.contains(row) && text.contains("* suite ended badly: the guest hangs\n"), "{text}");
        assert!(text.contains("* patched: kernel k1, 1 patches; suite on "), "{text}");
    }

    #[test]
    fn a_lane_replaces_what_it_showed_before_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("results")).unwrap();
        let kernel = |name: &str| vec![tested(name, &[("umount::a", Outcome::Passed)])];
        for (lane, name) in [("lockdep", "old"), ("kasan", "other"), ("lockdep", "new")] {
            keep(dir.path(), lane, kernel(name)).unwrap();
        }
        let lanes = Lanes::load(&dir.path().join("results/lanes.json")).lanes;
        let names: Vec<(&str, &str)> =
            lanes.iter().map(|lane| (lane.lane.as_str(), lane.kernels[0].kernel.as_str())).collect();
        assert_eq!(names, [("kasan", "other"), ("lockdep", "new")]);
        assert!(fs::read_to_string(dir.path().join("results/lanes.md")).unwrap().contains("| lockdep | new |"));
    }
}
