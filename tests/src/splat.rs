//! Which lines of a kernel's log are splats. The policy is data (`splat-policy.toml`); this file applies it.
//!
//! It fails closed: a kernel line of level 4 (warning) or worse is a splat unless the policy names it with a reason, a marker is
//! a splat at every level, and a log that carries no levels is itself a finding.

use serde::Deserialize;
use std::sync::LazyLock;

/// KERN_WARNING (include/linux/kern_levels.h); smaller is worse.
const WARNING: u32 = 4;

/// A syslog prefix is `facility << 3 | level`; what user space writes to /dev/kmsg never has facility 0, the kernel's.
const LEVEL_BITS: u32 = 3;

/// What the kernel says when it stops.
const PANIC: &str = "Kernel panic - not syncing";

static POLICY: LazyLock<Policy> =
    LazyLock::new(|| toml::from_str(include_str!("../splat-policy.toml")).expect("a unit test parses the policy"));

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    marker: Vec<Entry>,
    allow: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    text: String,
    reason: String,
}

/// One line of the kernel's log.
#[derive(Debug, PartialEq, Eq)]
struct KernelLine<'a> {
    /// 0 (emergency) to 7 (debug); nothing when the log does not carry it.
    level: Option<u32>,
    text: &'a str,
}

/// Splats in a console's text, one sentence each. The console must have been made with `console_msg_format=syslog`, else every
/// kernel line in it counts as one of unknown level.
pub fn judge_console(text: &str) -> Vec<String> {
    let lines: Vec<KernelLine> = text.lines().filter_map(console_line).collect();
    let mut splats = judge(&lines);
    if !lines.is_empty() && lines.iter().all(|line| line.level.is_none()) {
        splats.push("no line of the console has a level: boot with console_msg_format=syslog".into());
    }
    splats
}

/// Splats in records of /dev/kmsg, one sentence each.
pub fn judge_kmsg(text: &str) -> Vec<String> {
    let lines: Vec<KernelLine> = text.lines().filter_map(kmsg_record).collect();
    judge(&lines)
}

/// The line with which the kernel panicked, if it did.
pub fn panic_line(text: &str) -> Option<String> {
    let found = text.lines().find(|line| line.contains(PANIC))?;
    let at = found.find(PANIC)?;
    Some(found[at..].trim_end().to_owned())
}

fn judge(lines: &[KernelLine]) -> Vec<String> {
    lines.iter().filter_map(|line| splat(line, &POLICY)).collect()
}

/// Whether a line holds what is a splat at every level.
pub fn has_marker(line: &str) -> bool {
    POLICY.marker.iter().any(|marker| line.contains(&marker.text))
}

fn splat(line: &KernelLine, policy: &Policy) -> Option<String> {
    let named_by = |entries: &'_ [Entry]| entries.iter().position(|entry| line.text.contains(&entry.text));
    if let Some(marker) = named_by(&policy.marker) {
        return Some(format!("{} ({})", line.text, policy.marker[marker].reason));
    }
    // A report has empty lines between its parts; they say nothing.
    let bad = line.level.is_some_and(|level| level <= WARNING) && !line.text.trim().is_empty();
    (bad && named_by(&policy.allow).is_none()).then(|| line.text.to_owned())
}

/// The kernel's part of a console line: `<4>[    1.5] text`, wherever it starts, for what user space wrote before it may lack
/// a newline; or `[    1.5] text` at the start, from a console that carries no levels.
fn console_line(line: &str) -> Option<KernelLine<'_>> {
    let line = line.trim_end();
    if let Some(found) = line.match_indices('<').find_map(|(at, _)| leveled(&line[at..])) {
        return found;
    }
    let text = after_timestamp(line)?;
    Some(KernelLine { level: None, text })
}

/// `<4>[    1.5] text`. The outer option: it has this form. The inner one: it is the kernel's.
fn leveled(line: &str) -> Option<Option<KernelLine<'_>>> {
    let (prefix, rest) = line.strip_prefix('<')?.split_once('>')?;
    let prefix: u32 = prefix.parse().ok()?;
    let text = after_timestamp(rest)?;
    Some(from_kernel(prefix, text))
}

/// What follows `[    1.234567] `, and the caller `[   T12] ` that CONFIG_PRINTK_CALLER adds.
fn after_timestamp(line: &str) -> Option<&str> {
    let (stamp, mut text) = line.strip_prefix('[')?.split_once(']')?;
    stamp.trim().parse::<f64>().ok()?;
    if let Some((_, rest)) = text.strip_prefix('[').and_then(|caller| caller.split_once(']')) {
        text = rest;
    }
    Some(text.strip_prefix(' ').unwrap_or(text))
}

/// `4,123,456789,-;text`; a line that starts with a space continues the record before it with what nobody judges.
fn kmsg_record(line: &str) -> Option<KernelLine<'_>> {
    let (head, text) = line.split_once(';').filter(|_| !line.starts_with(' '))?;
    from_kernel(head.split(',').next()?.parse().ok()?, text)
}

fn from_kernel(prefix: u32, text: &str) -> Option<KernelLine<'_>> {
    let (facility, level) = (prefix >> LEVEL_BITS, prefix & ((1 << LEVEL_BITS) - 1));
    (facility == 0).then_some(KernelLine { level: Some(level), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_of_the_policy_has_a_text_and_a_reason() {
        for entry in POLICY.marker.iter().chain(&POLICY.allow) {
            assert!(entry.text.len() >= 4 && entry.reason.len() >= 10, "{:?}: {:?}", entry.text, entry.reason);
        }
    }

    #[test]
    fn a_warning_that_nobody_named_is_a_splat() {
        assert_eq!(judge_console("<4>[    1.500000] something new\r\n"), ["something new"]);
        assert_eq!(judge_console("<3>[    1.5][   T12] caller and all\n"), ["caller and all"]);
        assert_eq!(judge_console("<6>[    1.500000] something new\n"), [""; 0]);
        assert_eq!(judge_kmsg("4,12,1500000,-;something new\n"), ["something new"]);
        assert_eq!(judge_kmsg("5,12,1500000,-;something new\n"), [""; 0]);
    }

    #[test]
    fn a_marker_is_a_splat_at_every_level() {
        assert_eq!(judge_console("<6>[    9.0] BUG: KASAN: use-after-free in mntput\n").len(), 1);
        assert_eq!(judge_kmsg("6,12,1500000,-;INFO: task umount:12 blocked for more than 60 seconds.\n").len(), 1);
    }

    #[test]
    fn what_user_space_says_is_not_the_kernels() {
        assert_eq!(judge_console("<12>[    1.5] BUG: says a program\n"), [""; 0]);
        assert_eq!(judge_console("test splat::a_BUG:_is_a_splat ... ok\n"), [""; 0]);
        assert_eq!(judge_kmsg("12,12,1500000,-;BUG: says a program\n"), [""; 0]);
    }

    #[test]
    fn a_kernel_line_behind_an_unfinished_line_is_seen() {
        assert_eq!(judge_console("test umount::a ... <4>[    1.5] behind it\n"), ["behind it"]);
    }

    #[test]
    fn a_console_without_levels_is_a_finding() {
        let splats = judge_console("[    1.500000] Linux version 7.3.4\n[    2.0] kernel BUG at fs/namespace.c:1!\n");
        assert_eq!(splats.len(), 2, "{splats:?}");
        assert!(splats[1].contains("console_msg_format=syslog"));
    }

    #[test]
    fn a_continuation_line_of_kmsg_is_no_record() {
        assert_eq!(judge_kmsg("6,1,2,-;a device\n SUBSYSTEM=4,1,2,-;pci\n"), [""; 0]);
    }

    #[test]
    fn a_clean_boot_has_no_splat_and_no_panic() {
        let console = include_str!("../fixtures/console/clean-7.3.4-tcg.log");
        assert!(console.lines().filter_map(console_line).count() > 100, "the fixture is a whole boot");
        assert_eq!(judge_console(console), [""; 0]);
        assert_eq!(panic_line(console), None);
    }

    #[test]
    fn a_panic_is_found_and_is_a_splat() {
        let console = include_str!("../fixtures/console/panic.log");
        assert_eq!(
            panic_line(console).as_deref(),
            Some("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100")
        );
        assert!(judge_console(console).iter().any(|line| line.contains(PANIC)));
    }

    #[test]
    fn a_lockdep_report_is_a_splat() {
        let splats = judge_console(include_str!("../fixtures/console/lockdep.log"));
        assert!(splats.iter().any(|line| line.contains("possible circular locking dependency")), "{splats:?}");
    }
}
