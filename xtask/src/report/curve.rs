//! The scaling curve: throughput against the number of CPUs, for each kernel of a sweep.

use super::{interval, svg};
use crate::compare::{Comparison, containers_per_s};
use crate::results::{Arm, Run};
use crate::stats::{mean, ratio_ci95};
use anyhow::Result;
use mount_storms::protocol::StormPoint;
use std::collections::{BTreeMap, BTreeSet};

/// One kernel on one number of CPUs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// CPUs.
    pub cpus: u32,
    /// Mean over boots, containers per second.
    pub mean: f64,
    /// The slowest boot's.
    pub low: f64,
    /// The fastest boot's.
    pub high: f64,
    /// Boots.
    pub boots: usize,
    /// This mean over that on the CPUs before, and the 95 % interval of that ratio; none for the fewest CPUs.
    pub step: Option<(f64, [f64; 2])>,
}

/// A kernel's places, by ascending number of CPUs.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The kernel.
    pub name: String,
    /// Its places.
    pub places: Vec<Place>,
}

/// All kernels in one kind of storm.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// "detach, tmpfs, shared parent, 10 layers".
    pub storm: String,
    /// The numbers of CPUs that it was made on, those where it is withheld as well.
    pub cpus: BTreeSet<u32>,
    /// Baseline first.
    pub lines: Vec<Line>,
}

/// The curves of a run; none if it is no sweep. The control counts as the baseline: it is the same kernel. Where a storm is withheld the curve
/// has a gap.
pub fn curves(run: &Run, comparison: &Comparison) -> Vec<Curve> {
    if run.manifest.cpus().len() < 2 {
        return Vec::new();
    }
    let published: Vec<&StormPoint> =
        run.manifest.points.iter().filter(|point| comparison.is_published(point)).collect();
    let storms: BTreeSet<String> = published.iter().copied().map(storm).collect();
    let curve = |of_storm: String| {
        let cpus =
            run.manifest.points.iter().filter(|point| storm(point) == of_storm).map(|point| point.cpus).collect();
        Curve { cpus, lines: lines(run, &published, &of_storm), storm: of_storm }
    };
    storms.into_iter().map(curve).collect()
}

/// What the points of one curve have in common.
fn storm(point: &StormPoint) -> String {
    let StormPoint { profile, storage, propagation, layers, .. } = point;
    format!("{profile:?}, {storage:?}, {propagation:?} parent, {layers} layers").to_lowercase()
}

/// Rates of the iterations of each boot.
type Rates = BTreeMap<(Arm, u32), Vec<f64>>;

fn lines(run: &Run, published: &[&StormPoint], of_storm: &str) -> Vec<Line> {
    let mut boots: BTreeMap<(bool, u32), Rates> = BTreeMap::new();
    let shown = |point: &StormPoint| published.contains(&point) && storm(point) == of_storm;
    for stored in run.samples.iter().filter(|stored| shown(&stored.sample.point)) {
        if let Some(rate) = containers_per_s(&stored.sample) {
            let place = boots.entry((stored.arm == Arm::Candidate, stored.sample.point.cpus)).or_default();
            place.entry((stored.arm, stored.boot)).or_default().push(rate);
        }
    }
    let names = [(false, Some(&run.manifest.baseline)), (true, run.manifest.candidate.as_ref())];
    let line = |(is_candidate, kernel): (bool, Option<&crate::kernel::Kernel>)| {
        let of_line = boots.iter().filter(|((candidate, _), _)| *candidate == is_candidate);
        let rates: Vec<(u32, Vec<f64>)> =
            of_line.map(|((_, cpus), boots)| (*cpus, boots.values().map(|rates| mean(rates)).collect())).collect();
        let before = std::iter::once(None).chain(rates.iter().map(Some));
        let places =
            rates.iter().zip(before).map(|((cpus, rates), before)| place(*cpus, rates, before.map(|(_, rates)| rates)));
        Some(Line { name: kernel?.name.clone(), places: places.collect() })
    };
    names.into_iter().filter_map(line).filter(|line| !line.places.is_empty()).collect()
}

fn place(cpus: u32, rates: &[f64], before: Option<&Vec<f64>>) -> Place {
    let low = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let high = rates.iter().copied().fold(0.0, f64::max);
    let step = before.map(|before| (mean(rates) / mean(before), ratio_ci95(rates, before)));
    Place { cpus, mean: mean(rates), low, high, boots: rates.len(), step }
}

impl Place {
    /// "mean (slowest .. fastest boot)".
    pub fn shown(&self) -> String {
        format!("{:.0} ({:.0} .. {:.0})", self.mean, self.low, self.high)
    }
}

impl Line {
    /// Its places without those between which one of `cpus` is missing: what may be joined.
    pub fn unbroken(&self, cpus: &BTreeSet<u32>) -> Vec<Vec<Place>> {
        let has = |cpus: u32| self.places.iter().find(|place| place.cpus == cpus).copied();
        let known: Vec<Option<Place>> = cpus.iter().map(|cpus| has(*cpus)).collect();
        let parts = known.split(Option::is_none).map(|part| part.iter().flatten().copied().collect::<Vec<Place>>());
        parts.filter(|part| !part.is_empty()).collect()
    }
}

impl Curve {
    /// As a Markdown table: two rows for each kernel, "mean (slowest .. fastest boot)" for each number of CPUs, and what the step from the
    /// number before brings.
    pub fn markdown(&self) -> String {
        let cpus = &self.cpus;
        let head: String = cpus.iter().map(|cpus| format!(" {cpus} |")).collect();
        let mut text = format!("| CPUs |{head}\n|---|{}\n", "---:|".repeat(cpus.len()));
        for line in &self.lines {
            let of = |cpus: u32| line.places.iter().find(|place| place.cpus == cpus);
            let cell = |cpus: u32| match of(cpus) {
                Some(place) => format!(" {} |", place.shown()),
                None => " withheld |".to_owned(),
            };
            let step = |cpus: u32| match of(cpus).and_then(|place| place.step) {
                Some((ratio, ci)) => format!(" {ratio:.3} ({}) |", interval(ci)),
                None => " |".to_owned(),
            };
            let row = |cell: &dyn Fn(u32) -> String| cpus.iter().copied().map(cell).collect::<String>();
            text += &format!(
                "| {} |{}\n| {}, ratio to the CPUs before |{}\n",
                line.name,
                row(&cell),
                line.name,
                row(&step)
            );
        }
        text
    }

    /// As a drawing.
    ///
    /// # Errors
    /// The drawing library's.
    pub fn svg(&self, mark: &str) -> Result<String> {
        svg::curve(&format!("{}{mark}", self.storm), "containers per second", self)
    }

    /// File of the drawing: "curve-detach-tmpfs-shared-parent-10-layers.svg".
    pub fn file(&self) -> String {
        format!("curve-{}.svg", self.storm.replace([',', ' '], "-").replace("--", "-"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::of_run;
    use crate::results::fixture;

    fn sweep() -> Run {
        let mut run = fixture::run(&[(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 200.0)]);
        let mut more = run.clone();
        for stored in &mut more.samples {
            stored.sample.point.cpus = 8;
            stored.sample.elapsed_ns = stored.sample.elapsed_ns.map(|ns| ns / 3);
        }
        more.manifest.boots.iter_mut().for_each(|boot| boot.cpus = 8);
        more.manifest.points.iter_mut().for_each(|point| point.cpus = 8);
        run.samples.extend(more.samples);
        run.manifest.boots.extend(more.manifest.boots);
        run.manifest.points.extend(more.manifest.points);
        run
    }

    fn of(run: &Run) -> Vec<Curve> {
        curves(run, &of_run(run).unwrap())
    }

    #[test]
    fn a_sweep_has_a_line_for_each_kernel() {
        let curves = of(&sweep());
        assert_eq!((curves.len(), curves[0].lines.len()), (1, 2));
        let places = &curves[0].lines[1].places;
        assert_eq!((curves[0].lines[1].name.as_str(), places[0].cpus, places[1].cpus), ("patched", 2, 8));
        assert!((places[1].mean / places[0].mean - 3.0).abs() < 0.01, "{places:?}");
        assert_eq!((places[0].boots, curves[0].lines[0].places[0].boots), (3, 6));
        assert!(places[0].low < places[0].mean && places[0].mean < places[0].high);
    }

    #[test]
    fn a_withheld_storm_is_a_gap_for_both_kernels() {
        let mut run = sweep();
        let failed = run.samples.iter_mut().find(|stored| stored.key() == (Arm::Candidate, 8, 1)).unwrap();
        failed.sample.elapsed_ns = None;
        failed.sample.oracle.failures.push("layer_content: wrong".into());
        let curves = of(&run);
        let cpus = curves[0].lines.iter().map(|line| line.places.iter().map(|place| place.cpus).collect::<Vec<_>>());
        assert_eq!(cpus.collect::<Vec<_>>(), [[2], [2]]);
        assert!(curves[0].markdown().contains("| withheld |"), "{}", curves[0].markdown());
        let place = |cpus| Place { cpus, mean: 1.0, low: 1.0, high: 1.0, boots: 1, step: None };
        let line = Line { name: "mainline".into(), places: [8, 64].map(place).into() };
        assert_eq!(line.unbroken(&[8, 64].into()).len(), 1);
        assert_eq!(line.unbroken(&[8, 32, 64].into()).len(), 2, "no line is drawn past what is withheld");
    }

    #[test]
    fn one_number_of_cpus_is_no_curve() {
        let arms = [(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 200.0)];
        assert!(of(&fixture::run(&arms)).is_empty());
    }

    #[test]
    fn a_curve_is_a_table_and_a_drawing() {
        let curve = &of(&sweep())[0];
        let text = curve.markdown();
        assert!(text.starts_with("| CPUs | 2 | 8 |\n|---|---:|---:|\n| mainline | 100 ("), "{text}");
        assert!(text.contains("\n| patched, ratio to the CPUs before | | 3.000 (2.9"), "{text}");
        let svg = curve.svg(" (simulated)").unwrap();
        assert!(svg.contains("(simulated)") && svg.contains("patched") && svg.contains("<polyline"), "{svg}");
        assert_eq!(curve.file(), "curve-detach-tmpfs-shared-parent-3-layers.svg");
    }
}
