//! The whole flow over a mock machine, as a user runs it: exit codes, what is printed, what is kept.

use std::path::Path;
use std::process::{Command, Output};

/// A scratch cache and results folder, so that tests neither meet each other nor the user's runs.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench { dir: tempfile::tempdir().unwrap() }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(arguments).env("XDG_CACHE_HOME", self.dir.path().join("cache"));
        command.output().unwrap()
    }

    fn bench(&self, machine: &str, more: &[&str]) -> Output {
        let results = self.results();
        let fixed = ["bench", "--machine", machine, "--boots", "2", "--results", results.to_str().unwrap()];
        self.run(&[&fixed[..], more].concat())
    }

    fn results(&self) -> std::path::PathBuf {
        self.dir.path().join("results")
    }

    fn first_run(&self) -> String {
        let mut runs: Vec<_> = std::fs::read_dir(self.results().join("mock")).unwrap().flatten().collect();
        runs.sort_by_key(std::fs::DirEntry::path);
        runs[0].path().to_str().unwrap().to_owned()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_bench_prints_one_table_and_leaves_a_whole_run() {
    let bench = Bench::new();
    let output = bench.bench("mock:patched=0.5", &[]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("faster"), "{}", stdout(&output));
    let run = bench.first_run();
    for file in
        ["manifest.json", "samples.jsonl", "comparison.json", "report.md", "report.html", "baseline/boot-0/console.log"]
    {
        assert!(Path::new(&run).join(file).exists(), "{file} is missing");
    }
    assert!(std::fs::read_to_string(bench.results().join("README.md")).unwrap().contains("faster"));
}

#[test]
fn a_sweep_draws_its_curve_and_can_be_resumed() {
    let bench = Bench::new();
    let output = bench.bench("mock:die@5", &["--cpus", "4,1", "--profile", "detach"]);
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    let output = bench.bench("mock:patched=0.5", &["--resume"]);
    assert!([0, 75].contains(&code(&output)), "{}", stderr(&output));
    assert!(stdout(&output).contains("mean (slowest .. fastest boot) by CPUs"), "{}", stdout(&output));
    let run = bench.first_run();
    let curve = Path::new(&run).join("curve-detach-tmpfs-shared-parent-10-layers.svg");
    assert!(curve.exists() && Path::new(&run).join("baseline/cpus-4-boot-1").exists());
    assert!(std::fs::read_to_string(Path::new(&run).join("report.md")).unwrap().contains("| CPUs | 1 | 4 |"));
    assert_eq!(code(&bench.run(&["test", "--machine", "mock", "--cpus", "1,2"])), 2);
}

#[test]
fn a_slower_candidate_is_exit_1() {
    assert_eq!(code(&Bench::new().bench("mock:patched=2", &[])), 1);
}

#[test]
fn each_bad_end_has_its_code_and_resume_finishes_the_run() {
    for (script, expected) in [("panic@3", 4), ("hang@3", 5), ("die@3", 6), ("splat@3", 7)] {
        let bench = Bench::new();
        let output = bench.bench(&format!("mock:{script}"), &[]);
        assert_eq!(code(&output), expected, "{script}: {}", stderr(&output));
        assert!(stderr(&output).contains("next: cargo xtask bench --resume"), "{}", stderr(&output));
        let measured = std::fs::read_to_string(Path::new(&bench.first_run()).join("samples.jsonl")).unwrap();
        let resumed = bench.bench("mock", &["--resume"]);
        assert!([0, 75].contains(&code(&resumed)), "{script}: {}", stderr(&resumed));
        let after = std::fs::read_to_string(Path::new(&bench.first_run()).join("samples.jsonl")).unwrap();
        assert!(after.starts_with(&measured) && after.len() > measured.len(), "{script}: what was measured is kept");
        let report = std::fs::read_to_string(Path::new(&bench.first_run()).join("report.md")).unwrap();
        assert!(report.contains("**Warning:** boot 4/6") && report.contains("ended badly"), "{script}: {report}");
        let tries = ["baseline", "candidate", "control"]
            .iter()
            .flat_map(|arm| std::fs::read_dir(Path::new(&bench.first_run()).join(arm)).unwrap().flatten());
        let kept = tries.filter(|entry| entry.file_name().to_string_lossy().ends_with("-try-1")).count();
        assert_eq!(kept, 1, "{script}: the console that shows it is kept");
        let again = bench.bench("mock", &["--resume", &bench.first_run()]);
        assert_eq!(code(&again), 2, "{script}: nothing is left to resume: {}", stderr(&again));
    }
}

#[test]
fn a_failed_oracle_withholds_the_number() {
    let bench = Bench::new();
    let output = bench.bench("mock:oracle@2", &[]);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    assert!(
        stdout(&output).contains("no number for detach") && !stdout(&output).contains("95 % interval"),
        "{}",
        stdout(&output)
    );
    let comparison = std::fs::read_to_string(Path::new(&bench.first_run()).join("comparison.json")).unwrap();
    assert!(comparison.contains("\"rows\": []"), "{comparison}");
}

#[test]
fn unknown_names_are_usage_errors_that_list_the_known() {
    let bench = Bench::new();
    for (arguments, known) in [
        (["--kernel", "nope"], "mainline, patched"),
        (["--baseline", "patched@99"], "patches"),
        (["--topology", "nope"], "smoke"),
        (["--profile", "nope"], "detach"),
    ] {
        let output = bench.bench("mock", &arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(known), "{arguments:?}: {}", stderr(&output));
    }
    assert_eq!(code(&bench.bench("bochs", &[])), 2);
    assert!(!bench.results().exists(), "a typing error leaves nothing behind");
}

#[test]
fn reports_come_from_files_alone() {
    let bench = Bench::new();
    bench.bench("mock:patched=0.5", &[]);
    let run = bench.first_run();
    let report = std::fs::read_to_string(Path::new(&run).join("report.md")).unwrap();
    for file in ["report.md", "report.html", "comparison.json"] {
        std::fs::remove_file(Path::new(&run).join(file)).unwrap();
    }
    assert_eq!(code(&bench.run(&["report", &run])), 0);
    assert_eq!(std::fs::read_to_string(Path::new(&run).join("report.md")).unwrap(), report);
    assert!(stdout(&bench.run(&["compare", &run])).contains("faster"));
    assert!(stdout(&bench.run(&["compare", &run, &run])).contains("equivalent"));
}

#[test]
fn an_index_overwrites_nobody_elses_readme() {
    let bench = Bench::new();
    std::fs::create_dir_all(bench.results()).unwrap();
    let readme = bench.results().join("README.md");
    std::fs::write(&readme, "# mine\n").unwrap();
    bench.bench("mock:patched=0.5", &[]);
    assert_eq!(code(&bench.run(&["report", &bench.first_run()])), 0);
    assert_eq!(std::fs::read_to_string(readme).unwrap(), "# mine\n");
}

#[test]
fn the_suite_is_for_chosen_kernels_and_not_for_the_hosts() {
    let bench = Bench::new();
    for arguments in [&["test", "--machine", "host"][..], &["test", "--mutants", "--machine", "host"]] {
        let output = bench.run(arguments);
        assert_eq!(code(&output), 2, "{}", stderr(&output));
        assert!(stderr(&output).contains("in guests"), "{}", stderr(&output));
    }
}

#[test]
fn damage_is_named_and_another_trees_version_is_refused() {
    let bench = Bench::new();
    bench.bench("mock", &[]);
    let run = bench.first_run();
    let samples = Path::new(&run).join("samples.jsonl");
    let text = std::fs::read_to_string(&samples).unwrap();
    std::fs::write(&samples, format!("oops\n{text}")).unwrap();
    let output = bench.run(&["compare", &run]);
    assert_eq!(code(&output), 13);
    assert!(stderr(&output).contains("samples.jsonl, line 1"), "{}", stderr(&output));

    let tree = bench.dir.path().join("linux");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("Makefile"), "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 1\nEXTRAVERSION =\n").unwrap();
    let output = bench.run(&["kernel", "fetch", "--source", tree.to_str().unwrap()]);
    assert_eq!(code(&output), 10);
    assert!(stderr(&output).contains("says 6.12.1"), "{}", stderr(&output));
}

#[test]
fn two_at_once_in_one_cache_are_refused() {
    let bench = Bench::new();
    let cache = bench.dir.path().join("cache/mountlab");
    std::fs::create_dir_all(&cache).unwrap();
    let lock = std::fs::File::create(cache.join("lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(code(&bench.bench("mock", &[])), 16);
}
