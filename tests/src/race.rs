//! KCSAN's reports in a kernel's log: data races, named by the two functions that race.
//!
//! Mainline has data races, and which of them a run meets is chance. So a report is judged by its pair of functions and not by its line: a
//! pair that mainline shows too, or that `known-races.toml` names with a reason, is known; any other is a race of the tested kernel.

use crate::splat::has_marker;
use serde::Deserialize;
use std::collections::BTreeMap;
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

/// Races, each with the first report of it.
pub type Races = BTreeMap<Race, String>;

/// A log without the reports of races, and the races. What stands between a report's frames is its own, whatever its level, but for what no
/// report says (a marker of the splat policy): that is another CPU's. The log may begin or end in the middle of a report, as a trial's does.
pub fn split(log: &str) -> (String, Races) {
    let (mut rest, mut races) = (Vec::new(), Races::new());
    let mut report: Option<(Race, String)> = None;
    let mut frame: Option<&str> = None;
    let mut first = true;
    for line in log.lines() {
        let is_frame = line.contains(FRAME);
        if let Some((race, mut told)) = report.take() {
            match has_marker(line) {
                true => rest.push(line),
                false if is_frame => {}
                false => told += &format!("{}\n", text_of(line)),
            }
            match is_frame {
                true => drop(races.entry(race).or_insert(told)),
                false => report = Some((race, told)),
            }
            continue;
        }
        if let Some(race) = race_in(line) {
            report = Some((race, String::new()));
            (frame, first) = (None, false);
            continue;
        }
        if let Some(frame) = frame.take() {
            match first && !has_marker(line) {
                // Nothing is reported after the log's first frame: it ends a report from before.
                true => rest.retain(|line| has_marker(line)),
                false => rest.push(frame),
            }
            first = false;
        }
        match is_frame {
            true => frame = Some(line),
            false => rest.push(line),
        }
    }
    // A frame at the end begins a report that is not there, or ends one from before.
    if frame.is_some()
        && first
        && rest.last().is_some_and(|line| line.contains(" PID: ") || line.contains("Hardware name: "))
    {
        rest.retain(|line| has_marker(line));
    }
    // The last one may be cut off.
    if let Some((race, told)) = report {
        races.entry(race).or_insert(told);
    }
    let text = rest.iter().flat_map(|line| [line, "\n"]).collect();
    (text, races)
}

/// A line of the console (`<3>[    2.0] text`) or of /dev/kmsg (`3,1,2,-;text`) without what stands before the text.
fn text_of(line: &str) -> &str {
    let stamped = if line.starts_with('<') { line.split_once("] ") } else { line.split_once(';') };
    stamped.map_or(line, |(_, text)| text).trim_end()
}

/// "data-race in a / b" or "data-race in a+0x1/0x2" (a race with what is not known).
fn race_in(line: &str) -> Option<Race> {
    let (_, functions) = line.split_once(REPORT)?.1.split_once(" in ")?;
    // What the compiler adds to a function's name (`.isra.0`, `.part.0`) may differ from kernel to kernel.
    let name = |text: &str| text.trim().split(['+', '.']).next().unwrap_or_default().to_owned();
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
        <4>[    2.0] CPU: 1 UID: 0 PID: 70 Comm: lab-guest Not tainted 7.3.4-lab-0cc5353e #1 PREEMPT(lazy)\n\
        <3>[    2.0] ==================================================================\n\
        <6>[    3.0] after\n";

    fn race(first: &str, second: &str) -> Race {
        (first.into(), second.into())
    }

    #[test]
    fn a_report_is_taken_out_whole_and_named() {
        let (rest, races) = split(LOG);
        assert_eq!(rest, "<6>[    1.0] before\n<6>[    3.0] after\n");
        assert_eq!(Vec::from_iter(races.keys()), [&race("__legitimize_mnt", "mntput_no_expire")]);
        let told =
            "\nwrite to 0xffff888004a3c0a4 of 4 bytes by task 70 on cpu 1:\n mntput_no_expire+0x5a/0x3e0\nReported by";
        assert!(races.values().all(|report| report.starts_with(told)), "{races:?}");
        assert_eq!(crate::splat::judge_console(&rest), [""; 0]);
    }

    #[test]
    fn a_race_with_the_unknown_has_one_name() {
        let line = "3,1,2,-;BUG: KCSAN: data-race in attach_mnt+0x1b/0x90";
        assert_eq!(race_in(line), Some(race("attach_mnt", "attach_mnt")));
    }

    #[test]
    fn what_the_compiler_adds_to_a_name_is_left_out() {
        let line = "<3>[    2.0] BUG: KCSAN: data-race in umount_tree.part.0 / mnt_get_count.isra.0";
        assert_eq!(race_in(line), Some(race("mnt_get_count", "umount_tree")));
    }

    #[test]
    fn a_splat_of_another_cpu_inside_a_report_stays() {
        let warning = "<4>[    2.0] WARNING: CPU: 0 PID: 1 at fs/namespace.c:1 attach_mnt+0x1/0x2\n";
        let log = LOG.replace("<3>[    2.0] Reported", &format!("{warning}<3>[    2.0] Reported"));
        assert!(log.contains(warning));
        assert_eq!(split(&log).0, format!("<6>[    1.0] before\n{warning}<6>[    3.0] after\n"));
    }

    #[test]
    fn the_end_of_a_report_from_before_is_no_splat() {
        let lines: Vec<&str> = LOG.lines().collect();
        // Frame and heading are the second and third line, the last frame is the last but one.
        for from in 3..lines.len() - 1 {
            let tail = lines[from..].join("\n");
            let (rest, races) = split(&tail);
            assert_eq!((rest.as_str(), races.len()), ("<6>[    3.0] after\n", 0), "{tail}");
        }
        let warning = "<4>[    1.5] WARNING: CPU: 0 PID: 1 at fs/namespace.c:1 attach_mnt+0x1/0x2";
        let tail = [&[warning], &lines[5..]].concat().join("\n");
        assert_eq!(split(&tail).0, format!("{warning}\n<6>[    3.0] after\n"));
        let cut = "<6>[    1.0] before\n<4>[    1.0] odd\n".to_owned() + lines[1];
        assert_eq!(split(&cut).0, "<6>[    1.0] before\n<4>[    1.0] odd\n");
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
