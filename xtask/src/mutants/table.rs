//! What was found of all mutants: a file for programs, and a table for people.

use super::header::Mutant;
use super::verdict::Verdict;
use crate::machine::MachineInfo;
use crate::results::{in_turn, read_kept, write_atomically};
use anyhow::Result;
use mount_storms::protocol::{GuestEvent, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

/// Version of `mutants.json`.
const VERSION: u32 = 1;

/// Of so many mutants of the base that were judged, [`KILLED_OF`].1, so many must be killed. A series' own are mistakes that were looked for in
/// its narrowest places, and some are for a model alone to see: of those each that survives must say why.
const KILLED_OF: (usize, usize) = (18, 20);

/// Of kills that do not count yet.
const UNCONFIRMED: &str = "were not yet held against the kernel that is not broken";

/// What was found of one mutant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Its name.
    pub mutant: String,
    /// Of its patch, see [`Mutant::digest`].
    pub digest: String,
    /// The kconfig fragment of its kernel.
    pub lane: String,
    /// Of the series that it was made in, see [`Ground::digest`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ground: String,
    /// Its kernel's key.
    pub kernel: String,
    /// The machine it was booted on.
    pub machine: MachineInfo,
    /// mountlab's own commit.
    pub mountlab_commit: String,
    /// Trials that ran until it was judged.
    pub trials: u64,
    /// Real time of its boots, in seconds.
    pub wall_s: f64,
    /// Whether the trial that killed was held against the kernel that is not broken; a kill that was not does not count yet.
    #[serde(default)]
    pub confirmed: bool,
    /// What became of it.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl Finding {
    /// Whether it counts as killed.
    fn is_killed(&self) -> bool {
        self.confirmed && matches!(self.verdict, Verdict::Killed { .. })
    }

    /// This finding, unless the trial that killed failed, or did not run, on the kernel `on` too, which is not broken.
    fn held_against(self, on: &str, whole: &[GuestEvent]) -> Finding {
        let this = Finding { confirmed: true, ..self };
        let Some(trial) = this.verdict.trial() else { return this };
        let outcome = whole.iter().find_map(|event| match event {
            GuestEvent::Trial(result) if result.name == trial => Some(&result.outcome),
            _ => None,
        });
        match outcome {
            Some(Outcome::Passed) => this,
            outcome => {
                let why = format!("{trial} does not hold on {on} either: {outcome:?}");
                Finding { verdict: Verdict::Survived { why }, ..this }
            }
        }
    }
}

/// The kernel that the mistakes are made in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ground {
    /// What kernels.toml calls it.
    pub kernel: String,
    /// Hash of its series; empty for the base, which does not change.
    pub digest: String,
}

impl Ground {
    /// The kernel of this name, whose patches have these diffs.
    pub fn of(kernel: &str, series_diff: &str) -> Ground {
        let digest = if series_diff.is_empty() { String::new() } else { crate::kernel::digest_of(series_diff) };
        Ground { kernel: kernel.into(), digest }
    }

    /// Name of its files, without what follows the dot.
    fn stem(&self) -> String {
        if self.digest.is_empty() { "mutants".into() } else { format!("mutants-{}", self.kernel) }
    }
}

/// `mutants.json`, or `mutants-KERNEL.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    version: u32,
    #[serde(skip)]
    ground: Ground,
    /// One per mutant that was judged, by name.
    pub findings: Vec<Finding>,
}

impl Findings {
    /// What earlier runs found of these mutants as they are now. A file that is not there says nothing.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn load(dir: &Path, ground: Ground, mutants: &[Mutant]) -> Result<Findings> {
        let stored: Option<Findings> = read_kept(&dir.join(ground.stem() + ".json"), VERSION)?;
        let is_of =
            |finding: &Finding, mutant: &Mutant| (&mutant.digest, &mutant.lane) == (&finding.digest, &finding.lane);
        let is_current =
            |finding: &Finding| mutants.iter().any(|mutant| mutant.gone.is_none() && is_of(finding, mutant));
        let findings = stored.map(|stored| stored.findings).unwrap_or_default();
        Ok(Findings { version: VERSION, ground, findings: findings.into_iter().filter(is_current).collect() })
    }

    /// Changes what is kept in a folder; a run in another lane may do so meanwhile.
    ///
    /// # Errors
    /// What is kept cannot be read or written.
    pub fn keep(&mut self, dir: &Path, mutants: &[Mutant], change: impl FnOnce(&mut Findings)) -> Result<()> {
        *self = in_turn(dir, || {
            let mut kept = Findings::load(dir, self.ground.clone(), mutants)?;
            change(&mut kept);
            kept.write(dir, mutants)?;
            Ok(kept)
        })?;
        Ok(())
    }

    /// Puts a finding in, in place of an earlier one of the same mutant.
    pub fn put(&mut self, finding: Finding) {
        self.findings.retain(|earlier| earlier.mutant != finding.mutant);
        self.findings.push(Finding { ground: self.ground.digest.clone(), ..finding });
        self.findings.sort_by(|a, b| a.mutant.cmp(&b.mutant));
    }

    /// Trials that killed in this lane and were not yet held against the kernel that is not broken.
    pub fn unconfirmed(&self, lane: &str) -> BTreeSet<String> {
        self.open(lane).filter_map(|finding| finding.verdict.trial()).map(str::to_owned).collect()
    }

    fn open(&self, lane: &str) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| !finding.confirmed && finding.lane == lane)
    }

    /// Whether something else than a trial or the kernel's own word has killed in this lane, and was not yet held against the kernel that is
    /// not broken.
    pub fn doubts(&self, lane: &str) -> bool {
        self.open(lane).any(|finding| finding.verdict.needs_whole_run())
    }

    /// Holds the findings of a lane against what the kernel that is not broken showed of their trials.
    pub fn confirm(&mut self, lane: &str, whole: &[GuestEvent]) {
        let all = std::mem::take(&mut self.findings).into_iter();
        let is_open = |finding: &Finding| !finding.confirmed && finding.lane == lane;
        let on = &self.ground.kernel;
        self.findings = all.map(|one| if is_open(&one) { one.held_against(on, whole) } else { one }).collect();
    }

    /// How many were killed, and how many judged.
    pub fn score(&self) -> (usize, usize) {
        self.score_of(|_| true)
    }

    fn score_of(&self, is_meant: impl Fn(&Finding) -> bool) -> (usize, usize) {
        let meant = || self.findings.iter().filter(|finding| is_meant(finding));
        (meant().filter(|finding| finding.is_killed()).count(), meant().count())
    }

    /// The same of the mistakes that only the series can make, if `own`, and else of the others.
    fn score_by(&self, mutants: &[Mutant], own: bool) -> (usize, usize) {
        let is_own = |finding: &Finding| mutants.iter().any(|mutant| mutant.name == finding.mutant && mutant.own);
        self.score_of(|finding| is_own(finding) == own)
    }

    /// Mutants that were judged, survived, and do not say why.
    fn unexplained(&self, mutants: &[Mutant]) -> usize {
        let says_why =
            |finding: &Finding| mutants.iter().any(|mutant| mutant.name == finding.mutant && mutant.survives.is_some());
        let survived = |finding: &&Finding| matches!(finding.verdict, Verdict::Survived { .. });
        self.findings.iter().filter(survived).filter(|finding| !says_why(finding)).count()
    }

    /// Whether any were judged, enough of the base's were killed, and each that survived says why.
    pub fn enough(&self, mutants: &[Mutant]) -> bool {
        let (killed, judged) = self.score_by(mutants, false);
        let is_base_seen = killed * KILLED_OF.1 >= judged * KILLED_OF.0;
        !self.findings.is_empty() && is_base_seen && self.unexplained(mutants) == 0
    }

    /// Writes the file for programs and the table into a folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    fn write(&self, dir: &Path, mutants: &[Mutant]) -> Result<()> {
        let path = |ending: &str| dir.join(self.ground.stem() + ending);
        write_atomically(&path(".json"), &(serde_json::to_string_pretty(self)? + "\n"))?;
        write_atomically(&path(".md"), &self.markdown(mutants))
    }

    fn markdown(&self, mutants: &[Mutant]) -> String {
        let on = &self.ground.kernel;
        let (title, flag) = match self.ground.digest.is_empty() {
            true => ("# Mutants".to_owned(), String::new()),
            false => (format!("# Mutants on {on}"), format!(" --on {on}")),
        };
        let head = format!(
            "{title}\n\nGenerated by `cargo xtask test --mutants{flag}`, once for each lane below; do not edit.\n\nEach is a kernel that is broken on purpose: \
            {on}, with one mistake more (kernel-patches/mutants/). A trial that killed one holds on {on}, in the same guest.\n\n\
            | mutant | what breaks | lane | killed by | what was seen |\n|---|---|---|---|---|\n"
        );
        let rows: String = mutants.iter().map(|mutant| self.row(mutant)).collect();
        format!("{head}{rows}\n{}\n", self.summary(mutants))
    }

    /// "21 of 23 mutants killed; 2 were not run".
    pub fn summary(&self, mutants: &[Mutant]) -> String {
        let (killed, judged) = self.score();
        let gone = mutants.iter().filter(|mutant| mutant.gone.is_some()).count();
        let old = self.findings.iter().filter(|finding| self.is_old(finding)).count();
        let rest: String = [
            (self.unexplained(mutants), "survived and do not say why"),
            (self.findings.iter().filter(|finding| !finding.confirmed).count(), UNCONFIRMED),
            (mutants.len().saturating_sub(judged + gone), "were not run"),
            (old, "were judged on an earlier state of the series"),
            (gone, "are mistakes that cannot be made there"),
        ]
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("; {count} {what}"))
        .collect();
        let ((base, of_base), (own, of_own)) = (self.score_by(mutants, false), self.score_by(mutants, true));
        let by = match of_own {
            0 => String::new(),
            _ => format!(" ({base} of {of_base} of the base's, {own} of {of_own} of the series' own)"),
        };
        let (least, of) = KILLED_OF;
        format!(
            "{killed} of {judged} mutants killed{by}, at least {least} of {of} of the base's must be, and who survives must say why{rest}"
        )
    }

    /// Whether the series has changed since.
    fn is_old(&self, finding: &Finding) -> bool {
        finding.ground != self.ground.digest
    }

    fn row(&self, mutant: &Mutant) -> String {
        let finding = self.findings.iter().find(|finding| finding.mutant == mutant.name);
        let mut doubt = String::new();
        if finding.is_some_and(|finding| !finding.confirmed) {
            doubt += &format!(", not yet held against {}", self.ground.kernel);
        }
        if finding.is_some_and(|finding| self.is_old(finding)) {
            doubt += ", on an earlier state of the series";
        }
        let (by, seen) = match finding.map(|finding| &finding.verdict) {
            _ if mutant.gone.is_some() => ("cannot be made".into(), mutant.gone.clone().unwrap_or_default()),
            Some(Verdict::Killed { by, why }) => (by.to_string() + &doubt, why.clone()),
            Some(Verdict::Survived { why }) => {
                // What is known of it by now says more than what was known then.
                ("**survived**".to_owned() + &doubt, mutant.survives.clone().unwrap_or_else(|| why.clone()))
            }
            None => ("not run".into(), mutant.survives.clone().unwrap_or_default()),
        };
        let cells = [&mutant.name, &mutant.breaks, &mutant.lane, &by, &seen].map(|text| text.replace('|', "\\|"));
        format!("| {} |\n", cells.join(" | "))
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict::Killer;
    use super::*;
    use mount_storms::protocol::TrialResult;

    fn mutant(name: &str) -> Mutant {
        super::super::header::tests::of(name, &format!("Breaks: a | b\n---\n\ndiff --git {name}\n")).unwrap()
    }

    fn finding(name: &str, is_killed: bool) -> Finding {
        let verdict = match is_killed {
            true => Verdict::Killed { by: Killer::Trial("a::b".into()), why: "EBUSY".into() },
            false => Verdict::Survived { why: "unseen".into() },
        };
        let machine = crate::results::fixture::run(&[]).manifest.machine;
        Finding {
            mutant: name.into(),
            digest: mutant(name).digest,
            lane: "lockdep".into(),
            ground: String::new(),
            kernel: "k".into(),
            machine,
            mountlab_commit: "c".into(),
            trials: 3,
            wall_s: 1.0,
            confirmed: true,
            verdict,
        }
    }

    fn mainline() -> Ground {
        Ground::of("mainline", "")
    }

    fn found(killed: usize, survived: usize) -> Findings {
        let mut findings = Findings { version: VERSION, ground: mainline(), findings: vec![] };
        (0..killed).for_each(|n| findings.put(finding(&format!("k{n}"), true)));
        (0..survived).for_each(|n| findings.put(finding(&format!("s{n}"), false)));
        findings
    }

    /// Mutants by the names that [`found`] gives them; those that survive say why.
    fn named(killed: usize, survived: usize) -> Vec<Mutant> {
        let said = |n| Mutant { survives: Some("some instructions".into()), ..mutant(&format!("s{n}")) };
        (0..killed).map(|n| mutant(&format!("k{n}"))).chain((0..survived).map(said)).collect()
    }

    #[test]
    fn nine_of_ten_of_the_base_must_be_killed() {
        let enough = |killed, survived| found(killed, survived).enough(&named(killed, survived));
        assert!(enough(18, 2) && enough(9, 1));
        assert!(!enough(17, 3) && !enough(17, 2) && !enough(0, 0));
    }

    #[test]
    fn of_the_series_own_who_survives_must_say_why() {
        let mut mutants = named(9, 3);
        mutants
            .iter_mut()
            .filter(|mutant| mutant.name != "s0")
            .for_each(|mutant| mutant.own = mutant.survives.is_some());
        let findings = found(9, 3);
        assert!(findings.enough(&mutants));
        let told = "9 of 12 mutants killed (9 of 10 of the base's, 0 of 2 of the series' own), at least 18 of 20 of the base's";
        assert!(findings.summary(&mutants).starts_with(told), "{}", findings.summary(&mutants));
        mutants[11].survives = None;
        assert!(!findings.enough(&mutants));
        assert!(
            findings.summary(&mutants).ends_with("; 1 survived and do not say why"),
            "{}",
            findings.summary(&mutants)
        );
    }

    #[test]
    fn what_is_written_is_read_again_but_for_mutants_that_changed() {
        let dir = tempfile::tempdir().unwrap();
        let mutants = [mutant("k0"), mutant("s0")];
        found(1, 1).write(dir.path(), &mutants).unwrap();
        let load = |dir: &Path, mutants: &[Mutant]| Findings::load(dir, mainline(), mutants).unwrap();
        assert_eq!(load(dir.path(), &mutants), found(1, 1));
        assert_eq!(load(dir.path(), &mutants[..1]), found(1, 0));
        assert_eq!(load(&dir.path().join("none"), &mutants), found(0, 0));
    }

    #[test]
    fn each_kernel_has_a_table_of_its_own_that_knows_when_its_series_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let mutants = [mutant("k0"), Mutant { gone: Some("no such code".into()), ..mutant("g") }];
        found(1, 0).write(dir.path(), &mutants[..1]).unwrap();
        let ground = |series: &str| Ground::of("patched", series);
        let mut patched = Findings::load(dir.path(), ground("one"), &mutants).unwrap();
        assert!(patched.findings.is_empty());
        patched.put(finding("k0", true));
        let text = patched.markdown(&mutants);
        for part in [
            "# Mutants on patched\n",
            "--mutants --on patched`",
            "holds on patched,",
            "| k0 | a \\| b | lockdep | a::b | EBUSY |",
            "| g | a \\| b | lockdep | cannot be made | no such code |",
            "1 of 1 mutants killed, at least 18 of 20 of the base's must be, and who survives must say why; 1 are mistakes that cannot be made there\n",
        ] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
        patched.write(dir.path(), &mutants).unwrap();
        assert_eq!(Findings::load(dir.path(), ground("one"), &mutants).unwrap(), patched);
        let later = Findings::load(dir.path(), ground("two"), &mutants).unwrap().markdown(&mutants);
        assert!(later.contains("| a::b, on an earlier state of the series |"), "{later}");
        assert!(later.contains("; 1 were judged on an earlier state of the series; 1 are mistakes"), "{later}");
        assert_eq!(Findings::load(dir.path(), mainline(), &mutants[..1]).unwrap(), found(1, 0));
    }

    #[test]
    fn the_table_says_who_killed_whom_and_who_was_not_run() {
        let text = found(1, 1).markdown(&[mutant("k0"), mutant("s0"), mutant("x")]);
        assert!(text.contains("| k0 | a \\| b | lockdep | a::b | EBUSY |"), "{text}");
        assert!(text.contains("| s0 | a \\| b | lockdep | **survived** | unseen |"), "{text}");
        assert!(text.contains("| x | a \\| b | lockdep | not run |  |"), "{text}");
        let told = "1 of 2 mutants killed, at least 18 of 20 of the base's must be, and who survives must say why; 1 survived and do not say why; 1 were not run\n";
        assert!(text.ends_with(told), "{text}");
    }

    #[test]
    fn a_trial_that_fails_on_mainline_kills_nobody() {
        let seen = |outcome| [GuestEvent::Trial(TrialResult { name: "a::b".into(), outcome, elapsed_ms: 1 })];
        assert_eq!(finding("k0", true).held_against("mainline", &seen(Outcome::Passed)), finding("k0", true));
        let failed = finding("k0", true).held_against("mainline", &seen(Outcome::Failed { why: "x".into() }));
        assert!(matches!(failed.verdict, Verdict::Survived { why } if why.contains("mainline")));
        assert!(matches!(finding("k0", true).held_against("mainline", &[]).verdict, Verdict::Survived { .. }));
    }

    #[test]
    fn a_kill_counts_when_it_is_held_against_mainline() {
        let mut findings = found(0, 1);
        findings.put(Finding { confirmed: false, ..finding("k0", true) });
        assert_eq!((findings.score(), findings.unconfirmed("kasan").len()), ((0, 2), 0));
        assert!(findings.markdown(&[mutant("k0")]).contains("| a::b, not yet held against mainline |"));
        let told = findings.summary(&[mutant("k0"), mutant("s0")]);
        assert!(
            told.contains("; 1 survived and do not say why; 1 were not yet held against the kernel that is not broken"),
            "{told}"
        );
        assert_eq!(findings.unconfirmed("lockdep"), BTreeSet::from(["a::b".to_owned()]));
        let passed = TrialResult { name: "a::b".into(), outcome: Outcome::Passed, elapsed_ms: 1 };
        findings.confirm("lockdep", &[GuestEvent::Trial(passed)]);
        assert_eq!((findings.score(), findings.unconfirmed("lockdep").len()), ((1, 2), 0));
    }

    #[test]
    fn two_runs_keep_what_each_of_them_finds() {
        let dir = tempfile::tempdir().unwrap();
        let mutants = ["k0", "k1", "k2"].map(mutant);
        let (mut one, mut other) = (found(0, 0), found(0, 0));
        one.keep(dir.path(), &mutants, |kept| kept.put(finding("k0", true))).unwrap();
        other.keep(dir.path(), &mutants, |kept| kept.put(finding("k1", true))).unwrap();
        one.keep(dir.path(), &mutants, |kept| kept.put(finding("k2", true))).unwrap();
        assert_eq!((one.clone(), other.score()), (found(3, 0), (2, 2)));
        assert_eq!(Findings::load(dir.path(), mainline(), &mutants).unwrap(), one);
    }

    #[test]
    fn a_hang_is_in_doubt_until_the_whole_kernel_has_run() {
        let killed = |by| Verdict::Killed { by, why: "silent".into() };
        let mut findings = found(0, 0);
        findings.put(Finding { confirmed: false, verdict: killed(Killer::Panic), ..finding("k0", true) });
        assert!(!findings.doubts("lockdep"));
        findings.put(Finding { confirmed: false, verdict: killed(Killer::Hang), ..finding("k1", true) });
        assert!(findings.doubts("lockdep") && !findings.doubts("kasan"));
        findings.confirm("lockdep", &[]);
        assert!(!findings.doubts("lockdep"));
    }

    #[test]
    fn a_second_finding_replaces_the_first() {
        let mut findings = found(1, 0);
        findings.put(finding("k0", false));
        assert_eq!(findings.score(), (0, 1));
    }
}
