//! The mock machine, and with it the watcher and the verdicts, from files to [`End`].

use super::*;
use crate::failure::exit_code;
use crate::kernel::Kernel;
use crate::machine::End;
use mount_storms::protocol::{Job, Manner, Profile, Propagation, READER_PERIOD_US, Storage, StormJob, StormPoint};
use std::path::Path;

fn kernel(name: &str) -> Kernel {
    Kernel {
        name: name.into(),
        key: "0".into(),
        release: "7.3.4-mock".into(),
        base: "7.3.4".into(),
        series: vec![],
        kconfig: vec!["base".into()],
        compiler: "gcc".into(),
        bzimage: "/k/bzImage".into(),
        vmlinux: "/k/vmlinux".into(),
    }
}

fn storm(iterations: u32) -> Work {
    let (profile, storage, propagation) = (Profile::Detach, Storage::Tmpfs, Propagation::Shared);
    let point = StormPoint {
        profile,
        storage,
        propagation,
        cpus: 2,
        threads: 2,
        containers: 2,
        layers: 2,
        inspection_passes: 1,
    };
    Work::Storm(StormJob {
        points: vec![point],
        iterations,
        warmup_iterations: 0,
        manner: Manner::CONTAINERD,
        readers: Vec::new(),
        reader_period_us: READER_PERIOD_US,
        surroundings: Default::default(),
    })
}

fn mock(script: &str) -> Mock {
    let script = if script.is_empty() { Script::default() } else { Script::parse(script).unwrap() };
    Mock::new(script, &Topology::load("smoke").unwrap())
}

fn boot(mock: &Mock, work: Work) -> BootLog {
    let dir = tempfile::tempdir().unwrap();
    let limit = Duration::from_secs(20);
    let limits = Limits { hello: limit, silence: Duration::from_millis(200), total: limit };
    let job = Job { protocol: PROTOCOL, seed: 1, work };
    let kernel = kernel("mainline");
    let mut heard = 0;
    let boot = Boot {
        kernel: Some(&kernel),
        guest: Path::new("/g"),
        job: &job,
        dir: dir.path(),
        limits,
        machine_seed: 1,
        evidence: None,
    };
    let log = mock.boot(&boot, &mut |_| heard += 1).unwrap();
    assert_eq!(heard, log.events.len());
    log
}

#[test]
fn a_storm_yields_one_sample_per_iteration() {
    let log = boot(&mock(""), storm(5));
    assert_eq!(log.end, End::Finished);
    let samples = log.events.iter().filter(|event| matches!(event, GuestEvent::Sample(_))).count();
    assert_eq!(samples, 5);
    assert!(log.failure().is_none());
}

#[test]
fn each_fault_has_its_verdict() {
    let end = |script| boot(&mock(script), storm(3)).end;
    assert!(matches!(end("panic"), End::Panic(line) if line.contains("scripted")));
    assert!(matches!(end("hang"), End::Hang(how) if how.contains("no event for 0.2 s")));
    assert!(matches!(end("die"), End::Died(how) if how.contains("came to its end")));
    assert!(matches!(end("splat"), End::Splat(lines) if lines.len() == 1));
    assert_eq!(end("oracle"), End::Finished);
}

#[test]
fn a_fault_can_wait_for_its_boot() {
    let mock = mock("die@1");
    assert_eq!(boot(&mock, storm(3)).end, End::Finished);
    assert!(matches!(boot(&mock, storm(3)).end, End::Died(_)));
    assert_eq!(boot(&mock, storm(3)).end, End::Finished);
}

#[test]
fn a_suite_passes_skips_and_fails() {
    let outcomes = |script, filter: Option<&str>| -> Vec<Outcome> {
        let suite = SuiteJob { filter: filter.map(str::to_owned), trial_limit_s: 1, ..SuiteJob::default() };
        let events = boot(&mock(script), Work::Suite(suite)).events;
        let trials = events.into_iter().filter_map(|event| match event {
            GuestEvent::Trial(trial) => Some(trial.outcome),
            _ => None,
        });
        trials.collect()
    };
    assert!(matches!(outcomes("", None)[..], [Outcome::Passed, Outcome::Skipped { .. }, Outcome::Passed]));
    assert!(matches!(outcomes("trial", Some("last"))[..], [Outcome::Failed { .. }]));
}

#[test]
fn a_script_is_understood_or_refused() {
    let script = Script::parse("panic@2,patched=0.8").unwrap();
    assert_eq!((script.fault, script.at, script.factors["patched"]), (Some(Fault::Panic), Some(2), 0.8));
    for wrong in ["", "quake", "panic@x", "patched=fast", "patched=-1", "patched=0"] {
        let error = Script::parse(wrong).unwrap_err();
        assert_eq!(exit_code(&error), Exit::Usage, "{wrong}");
    }
}

/// A guest that writes these lines, then ends.
fn raw(lines: &str, console: &str) -> Result<BootLog> {
    struct Ended;
    impl Running for Ended {
        fn ended(&mut self) -> Result<Option<String>> {
            Ok(Some("ended".into()))
        }
        fn stop(&mut self) {}
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(events_path(dir.path()), lines).unwrap();
    std::fs::write(console_path(dir.path()), console).unwrap();
    let limits = Limits { hello: SILENCE, silence: SILENCE, total: SILENCE };
    let job = Job { protocol: PROTOCOL, seed: 1, work: Work::Hello };
    let kernel = kernel("mainline");
    let boot = Boot {
        kernel: Some(&kernel),
        guest: Path::new("/g"),
        job: &job,
        dir: dir.path(),
        limits,
        machine_seed: 1,
        evidence: None,
    };
    watch(&mut Ended, &boot, &mut |_| ())
}

fn hello(release: &str, protocol: u32) -> String {
    let hello = GuestEvent::Hello { protocol, kernel_release: release.into(), cpus: 1, memory_kib: 1 };
    serde_json::to_string(&hello).unwrap() + "\n"
}

const DONE: &str = "{\"event\":\"done\"}\n";

#[test]
fn a_guest_of_another_kernel_or_protocol_is_an_error() {
    let error = raw(&hello("6.1.0", PROTOCOL), "").unwrap_err().to_string();
    assert!(error.contains("kernel 6.1.0, not 7.3.4-mock"), "{error}");
    let error = raw(&hello("7.3.4-mock", PROTOCOL + 1), "").unwrap_err().to_string();
    assert!(error.contains("rebuild lab-guest"), "{error}");
}

#[test]
fn events_may_come_on_the_console() {
    let console = format!("<6>[1.0] x\r\n@lab {}@lab {DONE}", hello("7.3.4-mock", PROTOCOL));
    let log = raw("", &console).unwrap();
    assert_eq!((log.end, log.events.len()), (End::Finished, 2));
}

#[test]
fn a_line_that_is_no_event_is_not_passed_over() {
    let log = raw(&format!("{}{{\"event\":\"sample\"}}\n{DONE}", hello("7.3.4-mock", PROTOCOL)), "").unwrap();
    assert!(matches!(log.events[1], GuestEvent::Failed { .. }), "{:?}", log.events);
    assert!(matches!(log.end, End::GuestFailed(how) if how.contains("line 2 is no event")));
}

#[test]
fn a_panic_without_a_newline_is_still_a_panic() {
    let log = raw(&hello("7.3.4-mock", PROTOCOL), "<0>[1.0] Kernel panic - not syncing: cut off he").unwrap();
    assert!(matches!(log.end, End::Panic(_)), "{:?}", log.end);
}

#[test]
fn a_program_is_quoted_with_its_last_two_lines() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let said = |text: &str| {
        std::fs::write(log.path(), text).unwrap();
        super::super::watch::last_said(log.path())
    };
    assert_eq!(said(""), "");
    assert_eq!(said("one\n"), ", having said: one");
    assert_eq!(said("one\ntwo\n\nthree\n"), ", having said: two; three");
}
