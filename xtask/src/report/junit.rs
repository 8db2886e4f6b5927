//! Trials as JUnit XML, which every CI shows.

use crate::results::write_atomically;
use anyhow::Result;
use mount_storms::protocol::{Outcome, TrialResult};
use std::path::Path;

/// Writes the trials of one suite.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, suite: &str, trials: &[TrialResult]) -> Result<()> {
    write_atomically(path, &xml(suite, trials))
}

fn xml(suite: &str, trials: &[TrialResult]) -> String {
    let count = |wanted: fn(&Outcome) -> bool| trials.iter().filter(|trial| wanted(&trial.outcome)).count();
    let failures = count(|outcome| matches!(outcome, Outcome::Failed { .. }));
    let skipped = count(|outcome| matches!(outcome, Outcome::Skipped { .. }));
    let cases: String = trials.iter().map(case).collect();
    let (suite, total) = (escaped(suite), trials.len());
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"{suite}\" tests=\"{total}\" failures=\"{failures}\" \
         skipped=\"{skipped}\">\n{cases}</testsuite>\n"
    )
}

fn case(trial: &TrialResult) -> String {
    let (area, name) = trial.name.split_once("::").unwrap_or(("", &trial.name));
    let body = match &trial.outcome {
        Outcome::Passed => String::new(),
        Outcome::Failed { why } => format!("<failure message=\"{}\"/>", escaped(why)),
        Outcome::Skipped { why } => format!("<skipped message=\"{}\"/>", escaped(why)),
    };
    let seconds = trial.elapsed_ms as f64 / 1000.0;
    format!(
        "  <testcase classname=\"{}\" name=\"{}\" time=\"{seconds}\">{body}</testcase>\n",
        escaped(area),
        escaped(name)
    )
}

/// The five entities of XML 1.0; other control characters than tab and newline are not allowed at all.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\n' => out += "&#10;",
            c if c.is_control() && c != '\t' => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_reasons_are_there() {
        let trial = |name: &str, outcome| TrialResult { name: name.into(), outcome, elapsed_ms: 1500 };
        let text = xml(
            "suite",
            &[
                trial("umount::busy_is_refused", Outcome::Passed),
                trial("umount::b", Outcome::Failed { why: "a < b & \"c\"\nd".into() }),
                trial("c", Outcome::Skipped { why: "one CPU".into() }),
            ],
        );
        assert!(text.contains("tests=\"3\" failures=\"1\" skipped=\"1\""), "{text}");
        assert!(text.contains("classname=\"umount\" name=\"busy_is_refused\" time=\"1.5\""), "{text}");
        assert!(text.contains("message=\"a &lt; b &amp; &quot;c&quot;&#10;d\""), "{text}");
    }
}
