//! report.html: the same as report.md for a browser, in one file, with a drawing per storm.

use super::curve::curves;
use super::reader::reader_of;
use super::{interval, mark, storm, storm_of, svg, value, verdict};
use crate::compare::{Comparison, MAIN_METRIC, Row, containers_per_s};
use crate::results::{Arm, Run};
use crate::stats::mean;
use anyhow::Result;
use mount_storms::protocol::StormPoint;
use std::collections::BTreeMap;

const STYLE: &str = "\
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #8884}th:first-child,td:first-child{text-align:left}\
.faster{color:#087f5b;font-weight:600}.slower,.withheld{color:#c92a2a;font-weight:600}.inconclusive{opacity:.7}\
figure{margin:1rem 0;display:inline-block;background:#fff;border-radius:4px}.scroll{overflow-x:auto}\
@media(prefers-color-scheme:dark){.faster{color:#63e6be}.slower,.withheld{color:#ffa8a8}}";

/// The page.
///
/// # Errors
/// A drawing failed.
pub fn report(run: &Run, comparison: &Comparison) -> Result<String> {
    let title = format!("{} against {}{}", comparison.candidate, comparison.baseline, mark(comparison));
    let title = escaped(&title);
    let withheld: String =
        comparison.withheld.iter().map(|why| format!("<p class=withheld>No number for {}</p>", escaped(why))).collect();
    let (main, others): (Vec<&Row>, Vec<&Row>) = comparison.rows.iter().partition(|row| row.metric == MAIN_METRIC);
    let (readers, calls): (Vec<&Row>, Vec<&Row>) = others.into_iter().partition(|row| reader_of(&row.metric).is_some());
    let published = run.manifest.points.iter().filter(|point| comparison.is_published(point));
    let figures = published.map(|point| figure(run, comparison, point));
    let figures = figures.collect::<Result<String>>()?;
    let info = &run.manifest.machine;
    Ok(format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>{title}</title>\
         <style>{STYLE}</style>\n<h1>{title}</h1>\n<p>{} {}, {} CPUs; host: {}; started {}.</p>\n{}{withheld}\n\
         {}<h2>Containers per second{}</h2>\n{}\n{figures}\n<h2>What readers pay, boot by boot{}</h2>\n{}\n\
         <h2>Latency of single calls{}</h2>\n{}\n\
         <p>How to read this, and how to repeat it: report.md beside this file.</p>\n</html>\n",
        escaped(&info.kind),
        escaped(&info.version),
        info.cpus,
        escaped(&run.manifest.host),
        escaped(&run.manifest.started),
        warnings(run),
        scaling(run, comparison)?,
        mark(comparison),
        table(comparison, &main),
        mark(comparison),
        table(comparison, &readers),
        mark(comparison),
        table(comparison, &calls),
    ))
}

/// The curves of a sweep.
fn scaling(run: &Run, comparison: &Comparison) -> Result<String> {
    let figures = curves(run, comparison)
        .into_iter()
        .map(|curve| Ok(format!("<figure>{}</figure>\n", curve.svg(mark(comparison))?)));
    let figures = figures.collect::<Result<String>>()?;
    Ok(if figures.is_empty() { figures } else { format!("<h2>Scaling{}</h2>\n{figures}", mark(comparison)) })
}

fn warnings(run: &Run) -> String {
    run.manifest
        .warnings
        .iter()
        .map(|warning| format!("<p><strong>Warning:</strong> {}</p>\n", escaped(warning)))
        .collect()
}

fn table(comparison: &Comparison, rows: &[&Row]) -> String {
    let head = format!(
        "<tr><th>storm<th>{}<th>{}<th>ratio<th>95 % interval<th>A/A control<th>verdict",
        escaped(&comparison.baseline),
        escaped(&comparison.candidate)
    );
    let lines: String = rows.iter().map(|row| line(row)).collect();
    format!("<div class=scroll><table>{head}\n{lines}</table></div>")
}

fn line(row: &Row) -> String {
    let first = if row.metric == MAIN_METRIC { storm(row) } else { format!("{}: {}", storm(row), row.metric) };
    let (baseline, candidate) = (value(row.baseline, &row.unit), value(row.candidate, &row.unit));
    let (ci, aa, verdict) = (interval(row.ratio_ci95), interval(row.aa_ratio_ci95), verdict(row.verdict));
    format!(
        "<tr><td>{first}<td>{baseline}<td>{candidate}<td>{:.3}<td>{ci}<td>{aa}<td class={verdict}>{verdict}\n",
        row.ratio
    )
}

fn figure(run: &Run, comparison: &Comparison, point: &StormPoint) -> Result<String> {
    let mut arms: BTreeMap<Arm, BTreeMap<u32, Vec<f64>>> = BTreeMap::new();
    for stored in run.samples.iter().filter(|stored| &stored.sample.point == point) {
        if let Some(rate) = containers_per_s(&stored.sample) {
            arms.entry(stored.arm).or_default().entry(stored.boot).or_default().push(rate);
        }
    }
    let kernel = |arm| match arm {
        Arm::Baseline => run.manifest.baseline.name.clone(),
        Arm::Control => "A/A control".to_owned(),
        Arm::Candidate => run.manifest.candidate.as_ref().map_or_else(String::new, |kernel| kernel.name.clone()),
    };
    let per_boot = |boots: BTreeMap<u32, Vec<f64>>| boots.values().map(|rates| mean(rates)).collect();
    let arms: Vec<(String, Vec<f64>)> = arms.into_iter().map(|(arm, boots)| (kernel(arm), per_boot(boots))).collect();
    let title = storm_of(point, run) + mark(comparison);
    Ok(format!("<figure>{}</figure>\n", svg::dots(&title, "containers per second", &arms)?))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::of_run;
    use crate::results::fixture;

    #[test]
    fn the_page_has_table_drawing_and_warning() {
        let mut run = fixture::run(&[(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 200.0)]);
        run.manifest.host = "a <host>".into();
        let page = report(&run, &of_run(&run).unwrap()).unwrap();
        for part in ["<td class=faster>faster", "<svg", "the host is busy", "a &lt;host&gt;", "umount_latency_ns_p50"] {
            assert!(page.contains(part), "{part} is missing");
        }
    }

    #[test]
    fn a_withheld_storm_has_no_drawing() {
        let mut run = fixture::run(&[(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 200.0)]);
        run.samples[0].sample.oracle.failures.push("layer_content: wrong".into());
        let page = report(&run, &of_run(&run).unwrap()).unwrap();
        assert!(page.contains("No number for detach") && !page.contains("<svg"));
    }
}
