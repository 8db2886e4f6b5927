//! report.md: what was run, on what, what came out, how to read it, how to repeat it. And the index of runs.

use super::curve::curves;
use super::reader::{HEADER, READING as TAX_READING, reader_of, taxes};
use super::{interval, leaks, mark, storm, value, verdict};
use crate::compare::{Comparison, MAIN_METRIC, Row, of_run};
use crate::kernel::Kernel;
use crate::process::shown;
use crate::results::{BootKey, Cost, Run};
use mount_storms::protocol::{LedgerKind, UserNamespaces};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// How to read a report, for somebody who has not read ARCHITECTURE.md.
const READING: &str = "\
A boot is one observation; iterations within a boot are averaged. Kernels take turns, in a seeded, balanced order. The interval is a 95 % \
interval of the ratio over boots, by Welch's t. The A/A control is the baseline measured a second time, as if it were a candidate: an \
effect no larger than its interval shows, in either direction, is none. *Faster* and *slower* need an interval that excludes 1 and an effect beyond the control; \
*equivalent* means that the whole interval lies within the margin, and the control's reaches into it; anything else is *inconclusive*. A storm of the profile `paths` starts no containers: what is counted there are rounds of 1000 calls.";

/// The report.
pub fn report(run: &Run, comparison: &Comparison) -> String {
    let title = format!("# {} against {}{}\n", comparison.candidate, comparison.baseline, mark(comparison));
    let parts = [
        title,
        withheld(comparison),
        scaling(run, comparison),
        throughput(comparison),
        readers(run, comparison),
        setting(run, comparison),
        latencies(comparison),
        cost(run),
        leaks::section(run, comparison),
        oracles(run, comparison),
        READING.to_owned() + "\n",
    ];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

fn withheld(comparison: &Comparison) -> String {
    let lines = comparison.withheld.iter().map(|why| format!("* **No number** for {why}\n"));
    lines.collect()
}

fn throughput(comparison: &Comparison) -> String {
    let rows = comparison.rows.iter().filter(|row| row.metric == MAIN_METRIC).map(|row| line(storm(row), row));
    table(&format!("Containers per second{}", mark(comparison)), "storm", comparison, rows.collect())
}

/// The scaling curves of a sweep: how throughput goes with the number of CPUs.
fn scaling(run: &Run, comparison: &Comparison) -> String {
    let curves = curves(run, comparison);
    if curves.is_empty() {
        return String::new();
    }
    let tables = curves.iter().map(|curve| {
        let (storm, file) = (&curve.storm, curve.file());
        format!(
            "{storm}: containers per second, mean (slowest .. fastest boot), and what more CPUs bring, with a 95 % interval\n\n{}\n![{storm}]({file})\n\n",
            curve.markdown()
        )
    });
    format!("## Scaling{}\n\n{}", mark(comparison), tables.collect::<String>())
}

/// The reader tax (unit x) and the latencies it comes from.
fn readers(run: &Run, comparison: &Comparison) -> String {
    let taxes = match taxes(run, comparison) {
        Ok(taxes) => taxes,
        Err(error) => return format!("## What readers pay\n\nNo figures: {error:#}\n"),
    };
    if taxes.is_empty() {
        return String::new();
    }
    let header = format!("| {} |\n|---|---|---|---:|---:|---:|---:|---|\n", HEADER.join(" | "));
    let lines: String = taxes.iter().map(|tax| format!("| {} |\n", tax.cells().join(" | "))).collect();
    let mark = mark(comparison);
    format!("## What readers pay{mark}\n\n{TAX_READING}\n\n{header}{lines}\n{}", reader_rows(comparison))
}

/// Its metrics with their intervals over boots.
fn reader_rows(comparison: &Comparison) -> String {
    let rows = comparison.rows.iter().filter(|row| reader_of(&row.metric).is_some());
    let rows = rows.map(|row| line(format!("{}: {}", storm(row), row.metric), row)).collect();
    let title = format!("What readers pay, boot by boot{}", mark(comparison));
    table(&title, "storm and metric", comparison, rows)
}

fn latencies(comparison: &Comparison) -> String {
    let rows = comparison.rows.iter().filter(|row| row.metric != MAIN_METRIC && reader_of(&row.metric).is_none());
    let rows = rows.map(|row| line(format!("{}: {}", storm(row), row.metric), row));
    table(&format!("Latency of single calls{}", mark(comparison)), "storm and metric", comparison, rows.collect())
}

fn line(first: String, row: &Row) -> String {
    let (baseline, candidate) = (value(row.baseline, &row.unit), value(row.candidate, &row.unit));
    let (ci, aa) = (interval(row.ratio_ci95), interval(row.aa_ratio_ci95));
    format!("| {first} | {baseline} | {candidate} | {:.3} | {ci} | {aa} | {} |\n", row.ratio, verdict(row.verdict))
}

fn table(title: &str, first: &str, comparison: &Comparison, rows: Vec<String>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let (baseline, candidate) = (&comparison.baseline, &comparison.candidate);
    let header = format!("| {first} | {baseline} | {candidate} | ratio | 95 % interval | A/A control | verdict |\n");
    format!("## {title}\n\n{header}|---|---:|---:|---:|---|---|---|\n{}", rows.concat())
}

fn setting(run: &Run, comparison: &Comparison) -> String {
    let manifest = &run.manifest;
    let info = &manifest.machine;
    let mut command = Command::new("cargo");
    command.arg("xtask").args(&manifest.command);
    let boots = manifest.boots.iter().map(|boot| boot.boot + 1).max().unwrap_or(0);
    let mut lines = vec![
        format!("Command: `{}` at mountlab {}", shown(&command), manifest.mountlab_commit),
        format!("Started: {}", manifest.started),
        format!("Host: {}", manifest.host),
        format!(
            "Machine: {} {}, {} CPUs, {} MiB ({})",
            info.kind, info.version, info.cpus, info.memory_mib, info.topology
        ),
        format!("Baseline: {}", kernel(&manifest.baseline)),
    ];
    lines.extend(manifest.candidate.iter().map(|candidate| format!("Candidate: {}", kernel(candidate))));
    lines.push(format!(
        "Boots: {boots} per kernel and control, {} iterations of each storm per boot after {} of warm-up; seed {}, margin {} %",
        manifest.iterations, manifest.warmup_iterations, manifest.seed, comparison.margin * 100.0
    ));
    let race = if manifest.manner.descriptors_inherited { "inherits" } else { "does not inherit" };
    lines.push(format!("Descriptor race: the child that holds a user namespace {race} descriptors"));
    let who = if manifest.manner.shims { "a process per container" } else { "the thread that starts the container" };
    lines.push(format!("Roots are mounted by {who}"));
    let when = match manifest.manner.user_namespaces {
        UserNamespaces::PerPass => "by each pass, under the clock",
        UserNamespaces::Before => "before the clock",
    };
    lines.push(format!("User namespaces are made {when}"));
    if manifest.readers.iter().any(|reader| reader.is_short()) {
        let periods: Vec<String> = manifest
            .cpus()
            .iter()
            .map(|&cpus| format!("{} us on {cpus} CPUs", manifest.reader_period_us(cpus)))
            .collect();
        lines.push(format!("Readers of one path pause between two looks for {}", periods.join(", ")));
    }
    lines.push(format!("Peer namespaces: {}", manifest.surroundings.peer_namespaces));
    lines.extend(
        manifest.points.iter().map(|point| {
            format!("Storm: {}, {} inspection passes", crate::compare::name(point), point.inspection_passes)
        }),
    );
    lines.extend(manifest.warnings.iter().map(|warning| format!("**Warning:** {warning}")));
    format!("## What was run\n\n{}", lines.iter().map(|line| format!("* {line}\n")).collect::<String>())
}

fn kernel(kernel: &Kernel) -> String {
    let patches = match kernel.series.len() {
        0 => "no patches".to_owned(),
        1 => "1 patch".to_owned(),
        count => format!("{count} patches"),
    };
    let Kernel { name, base, key, compiler, .. } = kernel;
    format!("{name}: Linux {base}, {patches}, kconfig {}, key {key}, {compiler}", kernel.kconfig.join("+"))
}

/// What the boots have cost the host, by number of CPUs. Runs from before this was counted have none.
fn cost(run: &Run) -> String {
    let mut costs: BTreeMap<u32, BTreeMap<BootKey, Cost>> = BTreeMap::new();
    for stored in &run.samples {
        if let Some(cost) = stored.cost {
            costs.entry(stored.sample.point.cpus).or_default().insert(stored.key(), cost);
        }
    }
    if costs.is_empty() {
        return String::new();
    }
    let row = |(cpus, boots): (&u32, &BTreeMap<BootKey, Cost>)| {
        let wall_s = boots.values().map(|cost| cost.wall_s).sum::<f64>() / boots.len() as f64;
        let memory_mib = boots.values().map(|cost| cost.memory_mib).max().unwrap_or(0);
        let memory = if memory_mib == 0 { "not counted".to_owned() } else { format!("{memory_mib} MiB") };
        format!("| {cpus} | {} | {wall_s:.1} s | {memory} |\n", boots.len())
    };
    let rows: String = costs.iter().map(row).collect();
    format!(
        "## What it cost the host\n\n| CPUs | boots | wall time of one, mean | memory of one, most |\n|---:|---:|---:|---:|\n{rows}"
    )
}

fn oracles(run: &Run, comparison: &Comparison) -> String {
    let mut checks: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, count) in run.samples.iter().flat_map(|stored| &stored.sample.oracle.checks) {
        *checks.entry(name).or_default() += count;
    }
    let failures: usize = run.samples.iter().map(|stored| stored.sample.oracle.failures.len()).sum();
    let lines: String = checks.iter().map(|(name, count)| format!("* {name}: {count} checks\n")).collect();
    let ledger = leaks::full_ledger(run, comparison);
    format!("## Correctness, in the same run\n\n{lines}{ledger}* failures: {failures}\n")
}

/// How a generated index begins: a README.md that begins otherwise is not overwritten.
pub const INDEX_HEAD: &str = "# Runs\n\nGenerated by ";

/// How to read the index.
const INDEX_READING: &str = "\
*Containers*: how many an iteration starts, by how many threads at once; *forks*: each pass makes its user namespace under the clock, as \
containerd does; *waits*: a layer that a child of such a fork still holds is busy, and waited for, as by containerd. *Patches*: those of the \
candidate when it ran. Rows of the profile `paths` count rounds of 1000 calls. A run with the full ledger is no measurement: its verdict is \
that of its oracles. The rest is in the report of each run.";

/// `results/README.md`: one line per storm of each run.
pub fn index(runs: &[Run], results: &Path) -> String {
    let mut text = format!(
        "{INDEX_HEAD}`cargo xtask bench` and `report`; do not edit.\n\n{INDEX_READING}\n\n\
         | run | storm | containers | patches | baseline | candidate | ratio | 95 % interval | verdict |\n\
         |---|---|---|---:|---|---|---:|---|---|\n"
    );
    for run in runs {
        let dir = run.dir.strip_prefix(results).unwrap_or(&run.dir).display();
        match of_run(run) {
            Ok(comparison) => text += &index_lines(&format!("[{dir}]({dir}/report.md)"), run, &comparison),
            Err(_) => text += &format!("| {dir} | unfinished | | | | | | | |\n"),
        }
    }
    text
}

fn index_lines(link: &str, run: &Run, comparison: &Comparison) -> String {
    let manner = run.manifest.manner;
    let forks = if manner.user_namespaces == UserNamespaces::PerPass { ", forks" } else { "" };
    let waits = if manner.descriptors_inherited { ", waits" } else { "" };
    let patches = run.manifest.candidate.as_ref().map_or(String::new(), |candidate| candidate.series.len().to_string());
    let is_measurement = run.manifest.surroundings.ledger == LedgerKind::Table;
    let mark = mark(comparison);
    let main = comparison.rows.iter().filter(|row| row.metric == MAIN_METRIC);
    let rows = main.map(|row| {
        let (baseline, candidate) = (value(row.baseline, &row.unit), value(row.candidate, &row.unit));
        let verdict = if is_measurement { verdict(row.verdict) } else { "no measurement" };
        let (ci, storm, ratio) = (interval(row.ratio_ci95), storm(row), row.ratio);
        let containers = format!("{} by {}{forks}{waits}", row.containers, row.threads);
        format!(
            "| {link} | {storm}{mark} | {containers} | {patches} | {} {baseline} | {} {candidate} | {ratio:.3} | {ci} | {verdict} |\n",
            comparison.baseline, comparison.candidate
        )
    });
    let withheld = comparison.withheld.iter().map(|why| format!("| {link} | {why} | | | | | | | withheld |\n"));
    rows.chain(withheld).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Arm, fixture};

    #[test]
    fn a_report_says_what_how_and_on_what() {
        let run = fixture::run(&[(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 200.0)]);
        let text = report(&run, &of_run(&run).unwrap());
        for part in [
            "# patched against mainline\n",
            "| detach, tmpfs, shared, 3 layers, 2 CPUs | 100 1/s | 200 1/s | 2.000 |",
            "umount_latency_ns_p99",
            "`cargo xtask bench --kernel patched` at mountlab 0123456789ab",
            "* Host: a host",
            "**Warning:** the host is busy",
            "* layer_content: 720 checks",
            "* failures: 0",
            "seed 1, margin 5 %",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }

    #[test]
    fn readers_have_a_section_of_their_own() {
        let arms = [(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 200.0)];
        let run = fixture::with_reader(fixture::run(&arms), "stat");
        let text = report(&run, &of_run(&run).unwrap());
        let (readers, calls) =
            (text.find("## What readers pay").unwrap(), text.find("## Latency of single calls").unwrap());
        assert!((readers..calls).contains(&text.find("reader_stat_tax_p99").unwrap()), "{text}");
    }

    #[test]
    fn a_boot_is_counted_once_in_the_cost() {
        let mut run = fixture::run(&[(Arm::Baseline, 100.0)]);
        assert_eq!(cost(&run), "");
        run.samples.iter_mut().for_each(|stored| stored.cost = Some(Cost { wall_s: 2.5, memory_mib: 300 }));
        assert!(cost(&run).contains("| 2 | 3 | 2.5 s | 300 MiB |"), "{}", cost(&run));
    }

    #[test]
    fn the_index_links_each_run() {
        let run = fixture::run(&[(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 50.0)]);
        let text = index(&[run], Path::new("results"));
        assert!(text.contains("| [mock/x-1](mock/x-1/report.md) | detach"), "{text}");
        assert!(text.contains("| slower |"), "{text}");
    }

    #[test]
    fn the_index_tells_storms_apart_and_takes_a_full_ledger_for_no_measurement() {
        let mut run = fixture::run(&[(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 50.0)]);
        run.manifest.surroundings.ledger = LedgerKind::Full;
        let text = index(&[run], Path::new("results"));
        assert!(text.contains("| 10 by 2, forks, waits | 0 | mainline 100 1/s |"), "{text}");
        assert!(text.contains("| no measurement |") && !text.contains("| slower |"), "{text}");
    }
}
