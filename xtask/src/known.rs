//! Selftests and data races are judged by mainline: what fails there is known, what passes there must pass on any other kernel.
//!
//! The kernel's selftests are not ours. Some cases need what a small guest does not have, some are out of step with their kernel; a trial of
//! our own that fails on mainline is wrong (ARCHITECTURE.md, invariant 3), but a selftest is only set aside, and said so.

use crate::kernel::Reach;
use mount_storms::protocol::{Outcome, TrialResult};
use mount_storms::race::{self, Race, Races};
use std::collections::BTreeMap;

/// Area of the selftests.
const AREA: &str = "selftest::";

/// What is said of a selftest that fails on mainline, there.
pub const ON_MAINLINE: &str = "fails on mainline";

/// What is said of it on other kernels.
pub const EXCUSE: &str = "known on mainline";

/// What is said of a data race that is no patch's.
pub const MAINLINES_RACE: &str = "a data race of mainline";

/// Cases that may fail on any kernel, and why: selftests that are wrong themselves.
const WRONG: [(&str, &str); 1] = [(
    "selftest::empty_mntns/clone3_empty_mntns_test::clone3_empty_mntns.setns_into_child_mntns",
    "its child waits by reading from the writing end of a pipe, which fails at once, so that it may be gone before its namespace is opened",
)];

/// What the selftests did on mainline, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    outcomes: BTreeMap<String, Outcome>,
    races: Races,
}

/// Data races of a boot as trials, each named by its two functions. Those of mainline (`known` is none then) are told, and so is what is known.
/// Which races a run meets is chance, so one that mainline did not show is told as well where the patches have nothing to do with it. Any
/// other has failed, and its report says where to look.
pub fn races(found: &Races, known: Option<&Known>, reach: Option<&Reach>) -> Vec<TrialResult> {
    let told = |((one, other), report): (&Race, &String)| {
        let race = (one.clone(), other.clone());
        let is_mainlines = race::is_known(&race) || known.is_none_or(|known| known.races.contains_key(&race));
        let outcome = if is_mainlines {
            Outcome::Skipped { why: MAINLINES_RACE.into() }
        } else if reach.is_some_and(|reach| !reach.touches((one, other), report)) {
            Outcome::Skipped { why: "a data race that the patches have nothing to do with".into() }
        } else {
            Outcome::Failed { why: format!("a data race that mainline did not show\n{report}") }
        };
        TrialResult { name: format!("kcsan::{one} / {other}"), outcome, elapsed_ms: 0 }
    };
    found.iter().map(told).collect()
}

impl Known {
    /// Takes the selftests among mainline's trials for known, and gives the trials as they are to be counted: a failed selftest is no
    /// failure of mainline's, but told with what it said.
    pub fn of_mainline(trials: Vec<TrialResult>, races: Races) -> (Known, Vec<TrialResult>) {
        let selftests = trials.iter().filter(|trial| trial.name.starts_with(AREA));
        let outcomes = selftests.map(|trial| (trial.name.clone(), trial.outcome.clone())).collect();
        let counted = trials.into_iter().map(|trial| match &trial.outcome {
            Outcome::Failed { why } if trial.name.starts_with(AREA) => {
                let why = format!("{ON_MAINLINE}: {why}");
                skipped(trial, why)
            }
            _ => trial,
        });
        let counted = counted.collect();
        (Known { outcomes, races }, counted)
    }

    /// Another kernel's trials as they are to be counted: what fails on mainline too is set aside, and what passes there and is missing
    /// here has failed.
    pub fn judge(&self, trials: Vec<TrialResult>) -> Vec<TrialResult> {
        let missing = self.missing(&trials);
        let counted = trials.into_iter().map(|trial| match &trial.outcome {
            Outcome::Failed { why } => match self.excuse(&trial.name) {
                Some(excuse) => {
                    let why = format!("{excuse}: {why}");
                    skipped(trial, why)
                }
                None => trial,
            },
            Outcome::Skipped { why } if self.passes(&trial.name) => {
                failed(&trial.name, &format!("it passes on mainline and was skipped here: {why}"))
            }
            _ => trial,
        });
        counted.chain(missing).collect()
    }

    /// Whether it is a selftest that passes on mainline, and rightly so.
    fn passes(&self, name: &str) -> bool {
        self.outcomes.get(name) == Some(&Outcome::Passed) && WRONG.iter().all(|(wrong, _)| *wrong != name)
    }

    fn excuse(&self, name: &str) -> Option<&str> {
        if let Some((_, why)) = WRONG.iter().find(|(wrong, _)| *wrong == name) {
            return Some(why);
        }
        matches!(self.outcomes.get(name), Some(Outcome::Failed { .. })).then_some(EXCUSE)
    }

    fn missing(&self, trials: &[TrialResult]) -> Vec<TrialResult> {
        let passed = self.outcomes.iter().filter(|(_, outcome)| **outcome == Outcome::Passed);
        let gone = passed.filter(|(name, _)| trials.iter().all(|trial| trial.name != **name));
        gone.map(|(name, _)| failed(name, "it passes on mainline and did not run here")).collect()
    }
}

fn skipped(trial: TrialResult, why: String) -> TrialResult {
    TrialResult { outcome: Outcome::Skipped { why }, ..trial }
}

fn failed(name: &str, why: &str) -> TrialResult {
    TrialResult { name: name.into(), outcome: Outcome::Failed { why: why.into() }, elapsed_ms: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(name: &str, outcome: Outcome) -> TrialResult {
        TrialResult { name: name.into(), outcome, elapsed_ms: 1 }
    }

    fn of_mainline(trials: Vec<TrialResult>) -> (Known, Vec<TrialResult>) {
        Known::of_mainline(trials, Races::new())
    }

    fn fail(why: &str) -> Outcome {
        Outcome::Failed { why: why.into() }
    }

    fn outcomes(trials: &[TrialResult]) -> Vec<(&str, &'static str)> {
        let word = |outcome: &Outcome| match outcome {
            Outcome::Passed => "passed",
            Outcome::Failed { .. } => "failed",
            Outcome::Skipped { .. } => "skipped",
        };
        trials.iter().map(|trial| (trial.name.as_str(), word(&trial.outcome))).collect()
    }

    #[test]
    fn a_failure_of_mainline_is_told_and_is_known_elsewhere() {
        let mainline = vec![trial("selftest::a/a::1", fail("EPERM")), trial("selftest::a/a::2", Outcome::Passed)];
        let (known, counted) = of_mainline(mainline.clone());
        assert_eq!(outcomes(&counted), [("selftest::a/a::1", "skipped"), ("selftest::a/a::2", "passed")]);
        let Outcome::Skipped { why } = &counted[0].outcome else { panic!() };
        assert_eq!(why, "fails on mainline: EPERM");
        assert_eq!(outcomes(&known.judge(mainline)), [("selftest::a/a::1", "skipped"), ("selftest::a/a::2", "passed")]);
    }

    #[test]
    fn what_passes_on_mainline_must_pass_and_must_run() {
        let (known, _) = of_mainline(vec![
            trial("selftest::a/a::1", Outcome::Passed),
            trial("selftest::a/a::2", Outcome::Passed),
            trial("selftest::a/a::3", Outcome::Skipped { why: "no".into() }),
        ]);
        let counted = known.judge(vec![trial("selftest::a/a::1", fail("EINVAL"))]);
        assert_eq!(outcomes(&counted), [("selftest::a/a::1", "failed"), ("selftest::a/a::2", "failed")]);
    }

    #[test]
    fn a_new_case_stands_for_itself() {
        let (known, _) = of_mainline(Vec::new());
        assert_eq!(
            outcomes(&known.judge(vec![trial("selftest::a/a::1", fail("x"))])),
            [("selftest::a/a::1", "failed")]
        );
    }

    #[test]
    fn a_selftest_that_is_wrong_itself_fails_nobody() {
        let wrong = WRONG[0].0;
        let (known, _) = of_mainline(vec![trial(wrong, Outcome::Passed)]);
        let counted = known.judge(vec![trial(wrong, fail("5 == 0"))]);
        let Outcome::Skipped { why } = &counted[0].outcome else { panic!("{counted:?}") };
        assert!(why.contains("the writing end of a pipe") && why.ends_with("5 == 0"), "{why}");
    }

    #[test]
    fn a_race_that_mainline_did_not_show_is_a_failure() {
        let race = |other: &str| (("attach_mnt".to_owned(), other.to_owned()), "read by task 1".to_owned());
        let found = Races::from([race("old"), race("new")]);
        let (known, _) = Known::of_mainline(Vec::new(), Races::from([race("old")]));
        let told = races(&found, Some(&known), None);
        assert_eq!(outcomes(&told), [("kcsan::attach_mnt / new", "failed"), ("kcsan::attach_mnt / old", "skipped")]);
        assert!(matches!(&told[0].outcome, Outcome::Failed { why } if why.ends_with("read by task 1")));
        // Patches that change nothing reach nothing.
        let told = races(&found, Some(&known), Some(&Reach::default()));
        assert!(matches!(&told[0].outcome, Outcome::Skipped { why } if why.contains("nothing to do with")), "{told:?}");
        assert!(races(&found, None, None).iter().all(|trial| matches!(trial.outcome, Outcome::Skipped { .. })));
    }

    #[test]
    fn our_own_trials_have_no_such_excuse() {
        let ours = vec![trial("umount::x", fail("x"))];
        let (known, counted) = of_mainline(ours.clone());
        assert_eq!(counted, ours);
        assert_eq!(known.judge(ours.clone()), ours);
    }
}
