//! `lab-guest`: PID 1 of a lab kernel, or a plain program on a running one.

use anyhow::{Result, bail};
use mount_storms::guest;
use mount_storms::protocol::SuiteJob;
use std::process::ExitCode;

fn no_suite(_: &SuiteJob, _: &mount_storms::events::Events) -> Result<()> {
    bail!("suite not merged")
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::pid_1(no_suite);
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["run", job, events] => guest::on_running_kernel(job.as_ref(), events.as_ref(), no_suite),
        _ => bail!("usage: lab-guest run JOB.json EVENTS.jsonl"),
    }
}
