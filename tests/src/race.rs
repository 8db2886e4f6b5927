//! KCSAN's reports in a kernel's log: data races, named by the two functions that race.
//!
//! Mainline has data races, and which of them a run meets is chance. So a report is judged by its pair of functions and not by its line: a
//! pair that mainline shows too, or that `known-races.toml` names with a reason, is known; any other is a race of the tested kernel.

use serde::Deserialize;
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// What begins a report (kernel/kcsan/report.c); the functions follow.
const REPORT: &str = "BUG: KCSAN: ";

/// A report lies between two such lines.
const FRAME: &str = "==================================================================";

static KNOWN: LazyLock<Known> =
    LazyLock::new(|| toml::from_str(include_str!("../known-races.toml")).expect("a unit test parses the known races"));

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    #[serde(default)]
    race: Vec<KnownRace>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownRace {
    functions: [String; 2],
    #[cfg_attr(not(test), expect(dead_code, reason = "for whoever reads the file"))]
    reason: String,
}

/// The two functions of a race, in alphabetical order; equal if one races with itself.
pub type Race = (String, String);

/// A log without the reports of races, and the races. What stands between a report's frames is its own, whatever its level.
pub fn split(log: &str) -> (String, BTreeSet<Race>) {
    let (mut rest, mut races) = (String::new(), BTreeSet::new());
    let mut frame: Option<&str> = None;
    let mut inside = false;
    for line in log.lines() {
        let is_frame = line.contains(FRAME);
        if inside {
            inside = !is_frame;
            continue;
        }
        if let Some(race) = race_in(line) {
            races.insert(race);
            (frame, inside) = (None, true);
            continue;
        }
        // The first frame is the report's only if the report follows it.
        for kept in frame.take().into_iter().chain((!is_frame).then_some(line)) {
            rest.push_str(kept);
            rest.push('\n');
        }
        frame = is_frame.then_some(line);
    }
    rest.extend(frame.into_iter().flat_map(|line| [line, "\n"]));
    (rest, races)
}

/// "data-race in a / b" or "data-race in a+0x1/0x2" (a race with what is not known).
fn race_in(line: &str) -> Option<Race> {
    let (_, functions) = line.split_once(REPORT)?.1.split_once(" in ")?;
    let name = |text: &str| text.trim().split('+').next().unwrap_or_default().to_owned();
    let (one, other) = functions.split_once(" / ").unwrap_or((functions, functions));
    let mut pair = [name(one), name(other)];
    pair.sort();
    let [first, second] = pair;
    Some((first, second))
}

/// Whether the list names it.
pub fn is_known((first, second): &Race) -> bool {
    KNOWN.race.iter().any(|known| {
        let [one, other] = &known.functions;
        (one, other) == (first, second) || (other, one) == (first, second)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "<6>[    1.0] before\n\
        <3>[    2.0] ==================================================================\n\
        <3>[    2.0] BUG: KCSAN: data-race in mntput_no_expire / __legitimize_mnt\n\
        <3>[    2.0] \n\
        <3>[    2.0] write to 0xffff888004a3c0a4 of 4 bytes by task 70 on cpu 1:\n\
        <3>[    2.0]  mntput_no_expire+0x5a/0x3e0\n\
        <3>[    2.0] Reported by Kernel Concurrency Sanitizer on:\n\
        <3>[    2.0] ==================================================================\n\
        <6>[    3.0] after\n";

    fn race(first: &str, second: &str) -> Race {
        (first.into(), second.into())
    }

    #[test]
    fn a_report_is_taken_out_whole_and_named() {
        let (rest, races) = split(LOG);
        assert_eq!(rest, "<6>[    1.0] before\n<6>[    3.0] after\n");
        assert_eq!(races, BTreeSet::from([race("__legitimize_mnt", "mntput_no_expire")]));
        assert_eq!(crate::splat::judge_console(&rest), [""; 0]);
    }

    #[test]
    fn a_race_with_the_unknown_has_one_name() {
        let line = "3,1,2,-;BUG: KCSAN: data-race in attach_mnt+0x1b/0x90";
        assert_eq!(race_in(line), Some(race("attach_mnt", "attach_mnt")));
    }

    #[test]
    fn a_report_of_another_kind_stays() {
        let kasan = LOG.replace("KCSAN: data-race", "KASAN: slab-use-after-free");
        let (rest, races) = split(&kasan);
        assert_eq!((rest.as_str(), races.len()), (kasan.as_str(), 0));
        assert!(!crate::splat::judge_console(&rest).is_empty());
    }

    #[test]
    fn a_report_that_is_cut_off_is_one() {
        let cut = LOG.split("<3>[    2.0] Reported").next().unwrap();
        let (rest, races) = split(cut);
        assert_eq!((rest.as_str(), races.len()), ("<6>[    1.0] before\n", 1));
    }

    #[test]
    fn each_known_race_has_a_reason() {
        for known in &KNOWN.race {
            assert!(known.reason.len() >= 10 && !known.functions.contains(&String::new()), "{:?}", known.functions);
        }
        assert!(!is_known(&race("mntput_no_expire", "mntput_no_expire")));
    }
}
