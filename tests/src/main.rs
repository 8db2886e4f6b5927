//! `lab-guest`: PID 1 of a lab kernel, or a plain program on a running one.

#[path = "../suite/mod.rs"]
mod suite;

use anyhow::{Result, bail};
use mount_storms::events::Events;
use mount_storms::guest;
use mount_storms::protocol::SuiteJob;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        _ if std::process::id() == 1 => guest::pid_1(run_suite),
        // Each trial is a child of this binary: it must come before any thread is started.
        ["trial", name] => return suite::run_one(name),
        ["run", job, events] => guest::on_running_kernel(job.as_ref(), events.as_ref(), run_suite),
        _ => usage(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> Result<()> {
    bail!("usage: lab-guest run JOB.json EVENTS.jsonl | lab-guest trial NAME")
}

fn run_suite(job: &SuiteJob, events: &Events) -> Result<()> {
    suite::run(job, &|event| events.say(&event))
}
