//! What was counted, over unit tests and trials.

use mount_storms::protocol::{Outcome, TrialResult};
use serde::{Deserialize, Serialize};

/// Counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Held.
    pub passed: u64,
    /// Did not hold.
    pub failed: u64,
    /// Requirements not met here.
    pub skipped: u64,
}

impl Totals {
    /// Adds others to these.
    pub fn add(&mut self, other: Totals) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Of trials.
    pub fn of_trials<'a>(trials: impl IntoIterator<Item = &'a TrialResult>) -> Totals {
        let mut totals = Totals::default();
        for trial in trials {
            match trial.outcome {
                Outcome::Passed => totals.passed += 1,
                Outcome::Failed { .. } => totals.failed += 1,
                Outcome::Skipped { .. } => totals.skipped += 1,
            }
        }
        totals
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Sums the lines "test result: ok. 12 passed; 0 failed; 1 ignored; ..." of `cargo test`.
pub fn of_cargo_test(output: &str) -> Totals {
    let mut totals = Totals::default();
    for line in output.lines().filter_map(|line| line.trim_start().strip_prefix("test result: ")) {
        let counts = line.split_once(". ").map_or("", |(_, counts)| counts);
        for (number, word) in counts.split("; ").filter_map(|count| count.split_once(' ')) {
            let number = number.parse().unwrap_or(0);
            match word {
                "passed" => totals.passed += number,
                "failed" => totals.failed += number,
                "ignored" => totals.skipped += number,
                _ => {}
            }
        }
    }
    totals
}

/// Every trial that did not simply pass, with its reason, and the totals.
pub fn told(name: &str, trials: &[TrialResult]) -> String {
    let mut text = format!("{name}: {}\n", Totals::of_trials(trials));
    for trial in trials {
        match &trial.outcome {
            Outcome::Passed => {}
            Outcome::Failed { why } => text += &format!("  FAILED  {}: {why}\n", trial.name),
            Outcome::Skipped { why } => text += &format!("  skipped {}: {why}\n", trial.name),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_several_binaries_add_up() {
        let output = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                      test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";
        assert_eq!(of_cargo_test(output), Totals { passed: 4, failed: 2, skipped: 1 });
        assert_eq!(of_cargo_test("error: could not compile"), Totals::default());
    }

    #[test]
    fn the_last_line_is_plain() {
        assert_eq!(Totals { passed: 3, failed: 0, skipped: 1 }.to_string(), "3 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn failures_and_skips_are_told_with_their_reason() {
        let trial = |name: &str, outcome| TrialResult { name: name.into(), outcome, elapsed_ms: 1 };
        let trials = [
            trial("a::held", Outcome::Passed),
            trial("b::broke", Outcome::Failed { why: "EBUSY expected, got 0".into() }),
            trial("c::cannot", Outcome::Skipped { why: "one CPU".into() }),
        ];
        let text = told("suite", &trials);
        assert!(text.starts_with("suite: 1 passed, 1 failed, 1 skipped\n"), "{text}");
        assert!(
            text.contains("FAILED  b::broke: EBUSY expected") && text.contains("skipped c::cannot: one CPU"),
            "{text}"
        );
        assert!(!text.contains("a::held"));
    }
}
