//! Telling what a comparison found: on the terminal, as Markdown, as HTML with drawings, for CI.

mod curve;
pub mod html;
pub mod junit;
mod leaks;
mod markdown;
mod reader;
mod svg;
mod terminal;

use crate::compare::{Comparison, Row, Verdict};
use crate::results::{Arm, Run, write_atomically};
use anyhow::Result;
use mount_storms::protocol::StormPoint;

pub use markdown::{INDEX_HEAD, index};
pub use terminal::{comparison, table};

/// Writes comparison.json, report.md, report.html and the curves of a sweep into the run's folder.
///
/// # Errors
/// The folder cannot be written.
pub fn write(run: &Run, comparison: &Comparison) -> Result<()> {
    write_atomically(&run.dir.join("comparison.json"), &(serde_json::to_string_pretty(comparison)? + "\n"))?;
    for curve in curve::curves(run, comparison) {
        write_atomically(&run.dir.join(curve.file()), &curve.svg(mark(comparison))?)?;
    }
    write_atomically(&run.dir.join("report.md"), &markdown::report(run, comparison))?;
    write_atomically(&run.dir.join("report.html"), &html::report(run, comparison)?)
}

/// "faster".
fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Faster => "faster",
        Verdict::Slower => "slower",
        Verdict::Equivalent => "equivalent",
        Verdict::Inconclusive => "inconclusive",
    }
}

/// "detach, tmpfs, shared, 10 layers, 64 CPUs".
fn storm(row: &Row) -> String {
    format!("{}, {}, {}, {} layers, {} CPUs", row.profile, row.storage, row.propagation, row.layers, row.cpus)
}

/// The same of a run's storm.
fn storm_of(point: &StormPoint, run: &Run) -> String {
    let StormPoint { profile, storage, propagation, layers, .. } = point;
    let cpus = if point.cpus == 0 { run.manifest.machine.cpus } else { point.cpus };
    format!("{profile:?}, {storage:?}, {propagation:?}, {layers} layers, ").to_lowercase() + &format!("{cpus} CPUs")
}

/// "mainline", "patched".
fn kernel_of(arm: Arm, comparison: &Comparison) -> String {
    match arm {
        Arm::Baseline => comparison.baseline.clone(),
        Arm::Control => format!("{}, control", comparison.baseline),
        Arm::Candidate => comparison.candidate.clone(),
    }
}

/// "0.98 .. 1.02".
fn interval(ci: [f64; 2]) -> String {
    format!("{:.3} .. {:.3}", ci[0], ci[1])
}

/// A value with its unit in three or four digits: "84.1 1/s", "32.8 us".
fn value(value: f64, unit: &str) -> String {
    match unit {
        "ns" if value >= 1e6 => format!("{:.2} ms", value / 1e6),
        "ns" if value >= 1e3 => format!("{:.1} us", value / 1e3),
        "x" => format!("{value:.2} x"),
        _ if value >= 100.0 => format!("{value:.0} {unit}"),
        _ => format!("{value:.1} {unit}"),
    }
}

/// What stands beside every figure that no clock has measured.
fn mark(comparison: &Comparison) -> &'static str {
    if comparison.simulated { " (simulated)" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_sensible_digits() {
        assert_eq!(value(84.123, "1/s"), "84.1 1/s");
        assert_eq!(value(1234.5, "1/s"), "1234 1/s");
        assert_eq!(value(32_767.0, "ns"), "32.8 us");
        assert_eq!(value(2_500_000.0, "ns"), "2.50 ms");
    }
}
