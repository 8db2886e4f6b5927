//! `cargo xtask`: mountlab's driver. This file is a table of contents.

mod bench;
mod cache;
mod compare;
mod console;
mod event;
mod failure;
mod flags;
mod guest;
mod kernel;
mod machine;
mod plan;
mod process;
mod progress;
mod report;
mod results;
mod setup;
mod stats;
mod test;
mod tidy;
mod warning;

use clap::Parser;
use event::Events;
use failure::{Exit, exit_code};
use flags::{Command, CompareFlags, Flags, KernelCommand, ReportFlags, SeriesCommand};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let flags = Flags::parse();
    let mut progress = progress::on_stderr();
    match process::watch_interrupts().and_then(|()| run(&flags, &mut progress)) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(error) => {
            drop(progress);
            eprintln!("mountlab: {}", told(&error));
            ExitCode::from(exit_code(&error) as u8)
        }
    }
}

/// One command of the command line.
fn run(flags: &Flags, events: Events<'_>) -> anyhow::Result<Exit> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    match &flags.command {
        Command::Bench(flags) => bench::bench(flags, &root, events),
        Command::Test(flags) => test::test(flags, &root, events),
        Command::Setup(flags) => setup::ensure(flags, events).map(|()| Exit::Success),
        Command::Kernel(command) => kernel(command, events),
        Command::Series(command) => series(command, events),
        Command::Boot(flags) => boot::boot(flags, &root, events),
        Command::Compare(flags) => compare(flags),
        Command::Report(flags) => report(flags),
    }
}
