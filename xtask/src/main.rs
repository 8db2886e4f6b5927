//! `cargo xtask`: mountlab's driver. This file is a table of contents.

mod apt;
mod bench;
mod boot;
mod cache;
mod compare;
mod console;
mod event;
mod failure;
mod flags;
mod guest;
mod kernel;
mod known;
mod lanes;
mod machine;
mod measure;
mod mutants;
mod plan;
mod process;
mod profile;
mod progress;
mod report;
mod results;
mod selfcheck;
mod setup;
mod side_by_side;
mod small_storm;
mod stage;
mod stats;
mod test;
mod tidy;
mod warning;

use anyhow::Result;
use cache::Cache;
use clap::Parser;
use event::Events;
use failure::{Exit, exit_code};
use flags::{Command, CompareFlags, Flags, KernelCommand, ReportFlags, SeriesCommand, SourceFlags};
use kernel::{Build, Workshop};
use results::Run;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let flags = Flags::parse();
    let mut listener = progress::listener();
    let result = process::watch_interrupts().and_then(|()| run(&flags, listener.as_mut()));
    drop(listener);
    let exit = result.unwrap_or_else(|error| {
        eprintln!("mountlab: {error:#}");
        exit_code(&error)
    });
    ExitCode::from(exit as u8)
}

/// One command of the command line.
fn run(flags: &Flags, events: Events<'_>) -> Result<Exit> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    match &flags.command {
        Command::Bench(flags) => bench::bench(flags, &root, events),
        Command::Test(flags) if flags.mutants => mutants::mutants(flags, &root, events),
        Command::Test(flags) => test::test(flags, &root, events),
        Command::Profile(flags) => profile::profile(flags, &root, events),
        Command::Selfcheck(flags) => selfcheck::selfcheck(flags, &root, events),
        Command::Setup(flags) => setup::ensure(flags, events).map(|()| Exit::Success),
        Command::Kernel(command) => kernel(command, &root, events),
        Command::Series(command) => series(command, &root, events),
        Command::Boot(flags) => boot::boot(flags, &root, events),
        Command::Compare(flags) => compare(flags),
        Command::Report(flags) => report(flags),
    }
}

fn kernel(command: &KernelCommand, root: &Path, events: Events<'_>) -> Result<Exit> {
    let cache = Cache::lock()?;
    let workshop = |flags: &SourceFlags| (flags.source.clone(), Workshop { root, cache: &cache, source: None });
    match command {
        KernelCommand::List => print!("{}", workshop(&SourceFlags { source: None }).1.list()?),
        KernelCommand::Fetch { source } => {
            let (source, workshop) = workshop(source);
            println!("{}", Workshop { source: source.as_deref(), ..workshop }.fetch(events)?.display());
        }
        KernelCommand::Build { kernel, kconfig, source } => {
            let (source, workshop) = workshop(source);
            let built =
                Workshop { source: source.as_deref(), ..workshop }.prepare(kernel, &["base", kconfig], events)?;
            println!("{}", built.bzimage.display());
        }
        KernelCommand::Check { each, configs, source } => {
            let (source, workshop) = workshop(source);
            let workshop = Workshop { source: source.as_deref(), ..workshop };
            println!("{}", workshop.check(events)?);
            let (each, configs) = (*each, *configs);
            if each || configs {
                println!("{}", workshop.build_all(Build { each, configs }, events)?);
            }
        }
    }
    Ok(Exit::Success)
}

fn series(command: &SeriesCommand, root: &Path, events: Events<'_>) -> Result<Exit> {
    match command {
        SeriesCommand::Edit { dir, source } => {
            let cache = Cache::lock()?;
            Workshop { root, cache: &cache, source: source.source.as_deref() }.edit(dir, events)?;
            println!("{}: commit on top, then `cargo xtask series save {}`", dir.display(), dir.display());
        }
        SeriesCommand::Save { dir } => println!("{} patches saved", kernel::save(root, dir)?),
    }
    Ok(Exit::Success)
}

fn compare(flags: &CompareFlags) -> Result<Exit> {
    let run = Run::open(&flags.run)?;
    let comparison = match &flags.other {
        None => {
            let comparison = compare::of_run(&run)?;
            print!("{}", report::table(&run, &comparison));
            comparison
        }
        Some(other) => {
            let (both, comparison) = compare::of_two_runs(&run, &Run::open(other)?)?;
            print!("{}", report::comparison(&both, &comparison));
            comparison
        }
    };
    Ok(comparison.exit())
}

fn report(flags: &ReportFlags) -> Result<Exit> {
    let run = Run::open(&flags.run)?;
    let comparison = compare::of_run(&run)?;
    report::write(&run, &comparison)?;
    // Runs that were brought here from elsewhere are indexed as well: RESULTS/MACHINE/RUN.
    if let Some(results) = run.dir.ancestors().nth(2).filter(|dir| dir.join("README.md").exists()) {
        bench::write_index(results)?;
    }
    println!("{}", run.dir.join("report.md").display());
    Ok(Exit::Success)
}
