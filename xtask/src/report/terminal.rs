//! The answer on stdout: one line per storm, the control beside the effect.

use super::curve::{Curve, Line, Place, curves};
use super::reader::{HEADER, Tax, taxes};
use super::{interval, mark, storm, value, verdict};
use crate::compare::{Comparison, MAIN_METRIC};
use crate::results::{Arm, Run};

/// The tables of a run, and where its report is.
pub fn table(run: &Run, comparison: &Comparison) -> String {
    self::comparison(run, comparison) + &format!("report: {}\n", run.dir.join("report.md").display())
}

/// The tables.
pub fn comparison(run: &Run, comparison: &Comparison) -> String {
    let header =
        ["storm", &comparison.baseline, &comparison.candidate, "ratio", "95 % interval", "A/A control", "verdict"];
    let mut lines = vec![header.map(str::to_owned)];
    for row in comparison.rows.iter().filter(|row| row.metric == MAIN_METRIC) {
        lines.push([
            storm(row),
            value(row.baseline, &row.unit),
            value(row.candidate, &row.unit),
            format!("{:.3}", row.ratio),
            interval(row.ratio_ci95),
            interval(row.aa_ratio_ci95),
            verdict(row.verdict).to_owned(),
        ]);
    }
    let mut text = String::new();
    if lines.len() > 1 {
        text += &format!("containers per second{}, {}\n{}", mark(comparison), where_measured(run), aligned(&lines));
    }
    for curve in curves(run, comparison) {
        text += &format!("{}{}: mean (slowest .. fastest boot) by CPUs\n", curve.storm, mark(comparison));
        text += &aligned_curve(&curve);
    }
    text += &reader_tax(run, comparison);
    for why in &comparison.withheld {
        text += &format!("no number for {why}\n");
    }
    text
}

/// One line per storm, reader and kernel.
fn reader_tax(run: &Run, comparison: &Comparison) -> String {
    let taxes = match taxes(run, comparison) {
        Ok(taxes) => taxes,
        Err(error) => return format!("no reader tax: {error:#}\n"),
    };
    if taxes.is_empty() {
        return String::new();
    }
    let lines: Vec<_> = [HEADER.map(str::to_owned)].into_iter().chain(taxes.iter().map(Tax::cells)).collect();
    format!("what readers pay{}\n{}", mark(comparison), aligned(&lines))
}

/// A curve's table in columns: one line for each number of CPUs, one column for each kernel.
fn aligned_curve(curve: &Curve) -> String {
    let cell = |line: &Line, cpus: u32| line.places.iter().find(|place| place.cpus == cpus).map(Place::shown);
    let name = |at: usize| curve.lines.get(at).map_or(String::new(), |line| line.name.clone());
    let mut lines = vec![["CPUs".to_owned(), name(0), name(1)]];
    let cell_of = |at: usize, cpus| curve.lines.get(at).map(|line| cell(line, cpus).unwrap_or("withheld".into()));
    let row =
        |cpus: u32| [cpus.to_string(), cell_of(0, cpus).unwrap_or_default(), cell_of(1, cpus).unwrap_or_default()];
    lines.extend(curve.cpus.iter().copied().map(row));
    aligned(&lines)
}

/// "tcg, 2 CPUs, 5 boots each".
fn where_measured(run: &Run) -> String {
    let info = &run.manifest.machine;
    let of = |arm| run.samples.iter().filter(move |stored| stored.arm == arm).map(|stored| stored.boot);
    let count = |arm| of(arm).collect::<std::collections::BTreeSet<u32>>().len();
    let boots = match (count(Arm::Baseline), count(Arm::Candidate)) {
        (baseline, candidate) if baseline == candidate || candidate == 0 => format!("{baseline} boots each"),
        (baseline, candidate) => format!("{baseline} and {candidate} boots"),
    };
    let cpus: Vec<String> = run.manifest.cpus().iter().map(u32::to_string).collect();
    format!("{}, {} CPUs, {boots}", info.kind, cpus.join(", "))
}

fn aligned<const N: usize>(lines: &[[String; N]]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for line in lines {
        let cells: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += &format!("  {}\n", cells.join("  ").trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::of_run;
    use crate::results::{Arm, fixture};

    fn run() -> Run {
        fixture::run(&[(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 200.0)])
    }

    #[test]
    fn effect_and_control_stand_side_by_side() {
        let run = run();
        let text = table(&run, &of_run(&run).unwrap());
        assert!(text.starts_with("containers per second, mock, 2 CPUs, 3 boots each\n"), "{text}");
        let row = text.lines().nth(2).unwrap();
        for part in ["detach, tmpfs, shared, 3 layers", "100 1/s", "200 1/s", "2.000", "faster"] {
            assert!(row.contains(part), "{part} is missing in: {row}");
        }
        assert_eq!(row.matches(" .. ").count(), 2, "{row}");
    }

    #[test]
    fn what_readers_pay_stands_below_what_containers_get() {
        let run = fixture::with_reader(run(), "stat");
        let text = table(&run, &of_run(&run).unwrap());
        let tax = text.lines().skip_while(|line| !line.starts_with("what readers pay")).nth(3).unwrap();
        assert!(tax.contains("stat") && tax.contains("2.00 / 2.00 / - x") && tax.ends_with("faster"), "{text}");
    }

    #[test]
    fn simulated_figures_say_so() {
        let run = run();
        let comparison = Comparison { simulated: true, ..of_run(&run).unwrap() };
        assert!(table(&run, &comparison).starts_with("containers per second (simulated)"));
    }

    #[test]
    fn a_withheld_storm_has_a_reason_and_no_figure() {
        let run = run();
        let comparison =
            Comparison { rows: Vec::new(), withheld: vec!["detach: owned by 0".into()], ..of_run(&run).unwrap() };
        let text = table(&run, &comparison);
        assert!(text.starts_with("no number for detach: owned by 0\n"), "{text}");
    }
}
