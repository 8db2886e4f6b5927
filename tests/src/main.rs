//! `lab-guest`: PID 1 of a lab kernel, or a plain program on a running one.

use mount_storms::protocol::{GuestEvent, Outcome, SuiteJob};
use std::cell::Cell;
use std::process::ExitCode;

#[path = "../suite/mod.rs"]
mod suite;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        _ if std::process::id() == 1 => run_as_init(),
        ["run-suite"] => run_suite(None),
        ["run-suite", filter] => run_suite(Some(filter.into())),
        ["trial", name] => suite::run_one(name),
        _ => {
            eprintln!("usage: lab-guest run-suite [FILTER] | lab-guest trial NAME");
            ExitCode::from(2)
        }
    }
}

fn run_suite(filter: Option<String>) -> ExitCode {
    let failed = Cell::new(false);
    let note = |event| {
        if let GuestEvent::Trial(result) = event {
            failed.set(failed.get() || matches!(result.outcome, Outcome::Failed { .. }));
        }
    };
    match suite::run(&SuiteJob { filter, trial_limit_s: 60 }, &note) {
        Ok(()) => ExitCode::from(u8::from(failed.get())),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

/// Just enough of an init for the suite; the guest proper replaces it.
fn run_as_init() -> ExitCode {
    for (fs_type, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let _ = std::fs::create_dir_all(at);
        let _ = rustix::mount::mount(fs_type, at, fs_type, rustix::mount::MountFlags::empty(), None);
    }
    let code = run_suite(std::env::var("filter").ok());
    println!("suite ended: {code:?}");
    let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF);
    code
}
