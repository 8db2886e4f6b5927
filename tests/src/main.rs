//! `lab-guest`: PID 1 of a lab kernel, or a plain program on a running one.

mod guest;
mod init;
mod sh;
mod shell;
#[path = "../suite/mod.rs"]
mod suite;

use mount_storms::selftest::SELFTEST;
use mount_storms::shim::SHIM;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        // Each trial is a child of this binary, and must begin before any thread is started.
        ["trial", name] => suite::run_one(name),
        ["list"] => suite::list(),
        ["run", job, events] => guest::run_on_running_kernel(Path::new(job), Path::new(events)),
        // What system(3) hands to a shell: glibc 2.38 and later put "--" before it.
        ["-c", command] | ["-c", "--", command] => sh::run(command),
        [SELFTEST, program] => mount_storms::selftest::become_program(Path::new(program)),
        [SHIM] => mount_storms::shim::serve(),
        [init::WORK] => guest::run_on_lab_machine(),
        // The kernel hands words of its command line that it does not know to init: they mean nothing here.
        _ if std::process::id() == 1 => init::run(),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: lab-guest run JOB.json EVENTS_FILE   (as root, in a private mount namespace)");
    eprintln!("       lab-guest list                       (the names of the suite's trials)");
    eprintln!("without arguments it is the init of a lab machine");
    ExitCode::from(2)
}
