//! Reads what a kernel selftest prints: KTAP, the kernel's dialect of TAP 13 (Documentation/dev-tools/ktap.rst).

use crate::protocol::Outcome;
use std::collections::HashMap;

/// Diagnostic lines before a failed case that its outcome shows.
const LINES_SHOWN: usize = 6;

/// What one program printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tap {
    /// Cases that it said it would run at the outermost level: the plan, "1..9".
    pub planned: Option<u64>,
    /// Cases that it ran at that level.
    pub ran: u64,
    /// All cases, those of nested levels among them, by unique names.
    pub cases: Vec<(String, Outcome)>,
}

impl Tap {
    /// Reads a program's output. Lines that are no result are diagnostics of the result that follows them.
    pub fn read(output: &str) -> Tap {
        let mut tap = Tap::default();
        let mut said: Vec<&str> = Vec::new();
        let mut seen = HashMap::new();
        for line in output.lines() {
            let (nested, text) = unnested(line);
            if let Some(planned) = plan(text) {
                tap.planned = if nested { tap.planned } else { Some(planned) };
            } else if let Some(result) = result(text) {
                tap.ran += u64::from(!nested);
                tap.cases.push((unique(result.name(), &mut seen), result.outcome(&said)));
                said.clear();
            } else if !text.trim().is_empty() {
                said.push(text);
            }
        }
        tap
    }

    /// Whether a case failed.
    pub fn any_failed(&self) -> bool {
        self.cases.iter().any(|(_, outcome)| matches!(outcome, Outcome::Failed { .. }))
    }
}

/// A line without what marks it as nested: four blanks for each level, or the "# " that kselftest's runner puts before a program's lines.
/// "# ok 1 x" is such a result; a diagnostic that happens to begin with "ok" but with no number after it is none.
fn unnested(line: &str) -> (bool, &str) {
    let text = line.trim_start();
    let inner = text.strip_prefix('#').map_or(text, str::trim_start);
    if result(inner).is_some() || plan(inner).is_some() { (inner.len() < line.len(), inner) } else { (false, text) }
}

/// "1..9"; kselftest may put a reason for no cases behind it.
fn plan(text: &str) -> Option<u64> {
    text.strip_prefix("1..")?.split_whitespace().next()?.parse().ok()
}

/// "ok 3 name" or "not ok 3 name # SKIP reason".
struct ResultLine<'a> {
    ok: bool,
    number: &'a str,
    name: &'a str,
    /// "SKIP", "XFAIL" or "TODO", and what follows.
    directive: Option<(&'a str, &'a str)>,
}

fn result(text: &str) -> Option<ResultLine<'_>> {
    let (ok, rest) = match text.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, text.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    number.parse::<u64>().ok()?;
    let (name, directive) = split_directive(rest.trim());
    Some(ResultLine { ok, number, name: name.trim_start_matches("- ").trim(), directive })
}

/// The words of KTAP's directives; anything else behind a "#" is part of the name.
fn split_directive(text: &str) -> (&str, Option<(&str, &str)>) {
    let Some(at) = text.rfind('#') else { return (text, None) };
    let after = text[at + 1..].trim_start();
    let (word, reason) = after.split_once(char::is_whitespace).unwrap_or((after, ""));
    match word {
        "SKIP" | "XFAIL" | "TODO" => (text[..at].trim_end(), Some((word, reason.trim()))),
        _ => (text, None),
    }
}

impl ResultLine<'_> {
    fn name(&self) -> String {
        if self.name.is_empty() { self.number.to_owned() } else { self.name.to_owned() }
    }

    /// XFAIL and TODO are failures that the test's author knows of.
    fn outcome(&self, said: &[&str]) -> Outcome {
        match (self.directive, self.ok) {
            (Some(("SKIP", reason)), _) => Outcome::Skipped { why: reason.to_owned() },
            (Some((word, reason)), _) => Outcome::Skipped { why: format!("{word} {reason}").trim_end().to_owned() },
            (None, true) => Outcome::Passed,
            (None, false) => Outcome::Failed { why: said[said.len().saturating_sub(LINES_SHOWN)..].join(" | ") },
        }
    }
}

/// Some tests give several cases one name: the second is "name #2".
fn unique(name: String, seen: &mut HashMap<String, u32>) -> String {
    let times = seen.entry(name.clone()).or_default();
    *times += 1;
    if *times == 1 { name } else { format!("{name} #{times}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(why: &str) -> Outcome {
        Outcome::Failed { why: why.into() }
    }

    fn skipped(why: &str) -> Outcome {
        Outcome::Skipped { why: why.into() }
    }

    #[test]
    fn the_harness_output_is_read() {
        let output = "TAP version 13\n1..4\n# Starting 4 tests from 2 test cases.\n\
            #  RUN           mount_setattr.basic ...\n#            OK  mount_setattr.basic\nok 1 mount_setattr.basic\n\
            #  RUN           mount_setattr.idmap ...\n# mount_setattr_test.c:12:idmap:Expected 0 (0) == fd (-1)\n\
            # idmap: Test terminated by assertion\n#          FAIL  mount_setattr.idmap\nnot ok 2 mount_setattr.idmap\n\
            ok 3 mount_setattr.xfs # SKIP no xfs here\nok 4 mount_setattr.later # XFAIL known bug\n\
            # FAILED: 2 / 4 tests passed.\n# Totals: pass:2 fail:1 xfail:1 xpass:0 skip:1 error:0\n";
        let tap = Tap::read(output);
        assert_eq!((tap.planned, tap.ran), (Some(4), 4));
        assert_eq!(tap.cases[0], ("mount_setattr.basic".into(), Outcome::Passed));
        let Outcome::Failed { why } = &tap.cases[1].1 else { panic!("{tap:?}") };
        assert!(why.contains("Expected 0 (0) == fd (-1)") && !why.contains("basic"), "{why}");
        assert_eq!(tap.cases[2], ("mount_setattr.xfs".into(), skipped("no xfs here")));
        assert_eq!(tap.cases[3], ("mount_setattr.later".into(), skipped("XFAIL known bug")));
        assert!(tap.any_failed());
    }

    #[test]
    fn nested_results_are_cases_and_no_part_of_the_plan() {
        let output =
            "TAP version 13\n1..1\n# TAP version 13\n# 1..2\n# ok 1 inner.a\n# not ok 2 inner.b\nnot ok 1 outer\n";
        let tap = Tap::read(output);
        assert_eq!((tap.planned, tap.ran), (Some(1), 1));
        let names: Vec<&str> = tap.cases.iter().map(|case| case.0.as_str()).collect();
        assert_eq!(names, ["inner.a", "inner.b", "outer"]);
        let indented = Tap::read("KTAP version 1\n1..1\n    1..1\n    ok 1 - deep # SKIP so\nok 1 outer\n");
        assert_eq!(indented.cases[0], ("deep".into(), skipped("so")));
        assert_eq!((indented.planned, indented.ran), (Some(1), 1));
    }

    #[test]
    fn a_program_that_died_shows_by_its_plan() {
        let tap = Tap::read("TAP version 13\n1..3\nok 1 a\n");
        assert_eq!((tap.planned, tap.ran), (Some(3), 1));
    }

    #[test]
    fn equal_names_are_told_apart_and_names_may_hold_a_hash() {
        let tap = Tap::read("ok 1 open\nnot ok 2 open\nok 3 flags=#1\nok 4\n");
        let names: Vec<&str> = tap.cases.iter().map(|case| case.0.as_str()).collect();
        assert_eq!(names, ["open", "open #2", "flags=#1", "4"]);
        assert_eq!(tap.cases[1].1, failed(""));
    }

    #[test]
    fn what_is_no_result_is_none() {
        let tap = Tap::read("ok fine\nokay 1\nnot ok\n# ok I guess\n1..x\nCall Trace\n");
        assert_eq!(tap, Tap::default());
    }

    #[test]
    fn a_whole_plan_may_be_skipped() {
        let tap = Tap::read("TAP version 13\n1..0 # SKIP Need CAP_SYS_ADMIN\n");
        assert_eq!((tap.planned, tap.ran), (Some(0), 0));
    }
}
