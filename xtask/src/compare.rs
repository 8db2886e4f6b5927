//! Judging: from the samples of a run to ratios with intervals and verdicts. Reads values, boots nothing.

use crate::failure::{Exit, Failure};
use crate::kernel::Kernel;
use crate::results::{Arm, Manifest, Run, StoredSample};
use crate::stats::{mean, ratio_ci95};
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use mount_storms::protocol::{Latency, Sample, StormPoint};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of `comparison.json`.
pub const COMPARISON_VERSION: u32 = 1;

/// The quantiles that are told, and how many values each needs so that it is not just the largest of them.
pub const QUANTILES: [(&str, f64, u64); 3] = [("p50", 0.5, 2), ("p99", 0.99, 100), ("p999", 0.999, 1000)];

/// `comparison.json`: the stable face for scripts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Must equal [`COMPARISON_VERSION`].
    pub version: u32,
    /// Kind of machine: "kvm", "tcg", ...
    pub machine: String,
    /// Whether the figures come from a model of a machine.
    pub simulated: bool,
    /// Name of the baseline kernel.
    pub baseline: String,
    /// Name of the candidate kernel.
    pub candidate: String,
    /// Half-width of "equivalent".
    pub margin: f64,
    /// Why no number is published: failed oracles, in sentences. Rows are empty then for the storms concerned.
    pub withheld: Vec<String>,
    /// One row per storm and metric.
    pub rows: Vec<Row>,
}

/// One metric of one storm, candidate against baseline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// containerd profile: "detach".
    pub profile: String,
    /// "tmpfs", "ext4".
    pub storage: String,
    /// "shared", "private".
    pub propagation: String,
    /// Layers per container.
    pub layers: u32,
    /// Containers per iteration.
    pub containers: u32,
    /// Concurrent starts.
    pub threads: u32,
    /// CPUs of the guest.
    pub cpus: u32,
    /// "containers_per_s", "umount_latency_ns_p99".
    pub metric: String,
    /// "1/s", "ns".
    pub unit: String,
    /// Boots per arm.
    pub boots: u32,
    /// Mean over baseline boots.
    pub baseline: f64,
    /// Mean over candidate boots.
    pub candidate: f64,
    /// candidate / baseline.
    pub ratio: f64,
    /// 95 % interval of the ratio, over boots: [`crate::stats::ratio_ci95`].
    pub ratio_ci95: [f64; 2],
    /// The same interval for the A/A control: control / baseline.
    pub aa_ratio_ci95: [f64; 2],
    /// What the interval says.
    pub verdict: Verdict,
}

/// What a comparison says about one metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The candidate is better, beyond doubt and the control.
    Faster,
    /// The candidate is worse, beyond doubt and the control.
    Slower,
    /// The whole interval lies within the margin, and the control's reaches into it.
    Equivalent,
    /// The samples do not decide.
    Inconclusive,
}

/// The metric that decides: what a user feels.
pub const MAIN_METRIC: &str = "containers_per_s";

/// What stands in the candidate's place on a machine with one kernel: the baseline, measured a second time.
const NO_CANDIDATE: &str = "A/A control";

/// Values of one metric by arm: one number per boot.
type ByArm = BTreeMap<Arm, Vec<f64>>;

/// Compares the arms of a finished run.
///
/// # Errors
/// The run is not finished, or its files are malformed.
pub fn of_run(run: &Run) -> Result<Comparison> {
    finished(run)?;
    judged(run)
}

/// Compares the baselines of two runs, the second as the candidate; the A/A control is the first run's. Returned with the run that they
/// make together: what is told of this comparison is told from that.
///
/// # Errors
/// A run is not finished, or the runs were made on different machines, of different storms or in another manner.
pub fn of_two_runs(first: &Run, second: &Run) -> Result<(Run, Comparison)> {
    finished(first)?;
    finished(second)?;
    let (a, b) = (&first.manifest, &second.manifest);
    let differs = [
        ("machine", a.machine.kind != b.machine.kind),
        ("the machine's version", a.machine.version != b.machine.version),
        ("number of CPUs", a.machine.cpus != b.machine.cpus),
        ("memory", a.machine.memory_mib != b.machine.memory_mib),
        ("topology", a.machine.topology != b.machine.topology),
        ("host", !a.machine.has_virtual_time() && hardware(&a.host) != hardware(&b.host)),
        ("storms", a.points != b.points),
        ("iterations", (a.iterations, a.warmup_iterations) != (b.iterations, b.warmup_iterations)),
        ("how containers were started", a.manner != b.manner),
        ("readers or how often they look", (&a.readers, &a.reader_periods_us) != (&b.readers, &b.reader_periods_us)),
        ("peer namespaces or ledger", a.surroundings != b.surroundings),
    ];
    if let Some((what, _)) = differs.iter().find(|(_, differs)| *differs) {
        let message = format!("the two runs differ in {what}: a ratio between them would not be the kernels'");
        return Err(Failure::error(Exit::Usage, message));
    }
    let of_first = first.samples.iter().filter(|sample| sample.arm != Arm::Candidate).cloned();
    let of_second = second.samples.iter().filter(|sample| sample.arm == Arm::Baseline);
    let renamed = of_second.map(|sample| StoredSample { arm: Arm::Candidate, ..sample.clone() });
    let samples: Vec<StoredSample> = of_first.chain(renamed).collect();
    let [baseline, candidate] = told_apart([a.baseline.clone(), b.baseline.clone()]);
    let manifest = Manifest { baseline, candidate: Some(candidate), ..a.clone() };
    let both = Run { samples, manifest, dir: first.dir.clone() };
    let comparison = judged(&both)?;
    Ok((both, comparison))
}

/// A host in words, without its kernel: on bare metal that is what the two runs are to differ in.
fn hardware(host: &str) -> Vec<&str> {
    host.split(", ").filter(|part| !part.starts_with("Linux ")).collect()
}

/// Two kernels under names that differ: on a host both are called "running".
fn told_apart([mut one, mut other]: [Kernel; 2]) -> [Kernel; 2] {
    if one.name == other.name {
        let is_same = one.release == other.release;
        let word = |kernel: &Kernel| if is_same { "2nd run".to_owned() } else { kernel.release.clone() };
        other.name = format!("{}, {}", other.name, word(&other));
        if !is_same {
            one.name = format!("{}, {}", one.name, word(&one));
        }
    }
    [one, other]
}

/// A run that lacks boots has no comparison: what is missing is not missing by chance.
fn finished(run: &Run) -> Result<()> {
    let remaining = run.remaining().len();
    if remaining == 0 {
        return Ok(());
    }
    let dir = run.dir.display();
    let message =
        format!("{dir} is not finished: {remaining} boots are missing\nnext: cargo xtask bench --resume {dir}");
    Err(Failure::error(Exit::Unavailable, message))
}

fn judged(run: &Run) -> Result<Comparison> {
    let manifest = &run.manifest;
    let candidate = manifest.candidate.as_ref().map_or(NO_CANDIDATE, |kernel| &kernel.name);
    let mut comparison = Comparison {
        version: COMPARISON_VERSION,
        machine: manifest.machine.kind.clone(),
        simulated: manifest.machine.simulated,
        baseline: manifest.baseline.name.clone(),
        candidate: candidate.to_owned(),
        margin: manifest.margin,
        withheld: Vec::new(),
        rows: Vec::new(),
    };
    for point in &manifest.points {
        let of_point: Vec<&StoredSample> = run.samples.iter().filter(|stored| &stored.sample.point == point).collect();
        match failed_oracle(&of_point, manifest, candidate) {
            Some(why) => comparison.withheld.push(format!("{}: {why}", name(point))),
            None => comparison.rows.extend(rows(point, &of_point, run)?),
        }
    }
    Ok(comparison)
}

/// A storm in words.
pub fn name(point: &StormPoint) -> String {
    let StormPoint { profile, storage, propagation, cpus, threads, containers, layers, .. } = point;
    let words = format!(
        "{profile:?} on {storage:?}, {propagation:?} parent, {layers} layers, {containers} containers, {threads} threads"
    );
    // Runs from before sweeps name no CPUs.
    words.to_lowercase() + &if *cpus == 0 { String::new() } else { format!(" on {cpus} CPUs") }
}

/// One failed check anywhere withholds the storm's number: for either kernel, because a ratio needs both.
fn failed_oracle(samples: &[&StoredSample], manifest: &Manifest, candidate: &str) -> Option<String> {
    let failed =
        |stored: &&&StoredSample| !stored.sample.oracle.failures.is_empty() || stored.sample.elapsed_ns.is_none();
    let failing: Vec<_> = samples.iter().filter(failed).collect();
    let first = failing.first()?;
    let kernel = if first.arm == Arm::Candidate { candidate } else { &manifest.baseline.name };
    let what = first.sample.oracle.failures.first().map_or("no reason given", String::as_str);
    let (count, total) = (failing.len(), samples.len());
    Some(format!("{count} of {total} iterations failed their oracles, the first on {kernel}: {what}"))
}

fn rows(point: &StormPoint, samples: &[&StoredSample], run: &Run) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let metrics = metrics(samples)?;
    let boots: BTreeMap<Arm, usize> =
        metrics.first().into_iter().flat_map(|(_, values)| values).map(|(arm, values)| (*arm, values.len())).collect();
    for (metric, values) in metrics {
        // A metric that some boots lack (nobody looked there, or too few did) is left out: those are not any boots, but the fast ones.
        if values.iter().any(|(arm, values)| boots.get(arm) != Some(&values.len())) {
            continue;
        }
        // The host machine has no candidate: there the control alone is shown against the baseline. Nowhere else does it stand in for one.
        let in_its_place = if run.manifest.candidate.is_some() { Arm::Candidate } else { Arm::Control };
        let candidate = values.get(&in_its_place);
        let (Some(baseline), Some(control), Some(candidate)) =
            (values.get(&Arm::Baseline), values.get(&Arm::Control), candidate)
        else {
            continue;
        };
        let (ratio_ci95, aa_ratio_ci95) = (ratio_ci95(candidate, baseline), ratio_ci95(control, baseline));
        let ratio = mean(candidate) / mean(baseline);
        let higher_is_better = metric == MAIN_METRIC;
        rows.push(Row {
            profile: format!("{:?}", point.profile).to_lowercase(),
            storage: format!("{:?}", point.storage).to_lowercase(),
            propagation: format!("{:?}", point.propagation).to_lowercase(),
            layers: point.layers,
            containers: point.containers,
            threads: point.threads,
            cpus: if point.cpus == 0 { run.manifest.machine.cpus } else { point.cpus },
            unit: unit(&metric).to_owned(),
            metric,
            boots: baseline.len().min(candidate.len()) as u32,
            baseline: mean(baseline),
            candidate: mean(candidate),
            ratio,
            ratio_ci95,
            aa_ratio_ci95,
            verdict: verdict(ratio, ratio_ci95, aa_ratio_ci95, run.manifest.margin, higher_is_better),
        });
    }
    Ok(rows)
}

/// What the intervals say. An effect no larger than what the A/A control shows is none, whichever way it goes: chance has no direction.
pub fn verdict(ratio: f64, ci: [f64; 2], aa: [f64; 2], margin: f64, higher_is_better: bool) -> Verdict {
    let (low, high) = (1.0 / (1.0 + margin), 1.0 + margin);
    let control_agrees = aa[0] <= high && low <= aa[1];
    if low <= ci[0] && ci[1] <= high {
        return if control_agrees { Verdict::Equivalent } else { Verdict::Inconclusive };
    }
    let excludes_one = ci[0] > 1.0 || ci[1] < 1.0;
    let shown_by_control = aa[0].ln().abs().max(aa[1].ln().abs());
    let beyond_control = ratio.ln().abs() > shown_by_control;
    if !excludes_one || !beyond_control {
        return Verdict::Inconclusive;
    }
    if (ratio > 1.0) == higher_is_better { Verdict::Faster } else { Verdict::Slower }
}

/// Every metric of one storm, the main one first: one value per boot, whatever the number of iterations.
fn metrics(samples: &[&StoredSample]) -> Result<Vec<(String, ByArm)>> {
    let mut boots: BTreeMap<(Arm, u32), Vec<&Sample>> = BTreeMap::new();
    samples.iter().for_each(|stored| boots.entry((stored.arm, stored.boot)).or_default().push(&stored.sample));
    let mut throughput = ByArm::new();
    let mut latencies: BTreeMap<String, ByArm> = BTreeMap::new();
    for ((arm, _), samples) in boots {
        let rates: Vec<f64> = samples.iter().filter_map(|sample| containers_per_s(sample)).collect();
        throughput.entry(arm).or_default().push(mean(&rates));
        let calls = samples.iter().flat_map(|sample| &sample.calls).map(|(call, latency)| (call.as_str(), latency));
        for (call, histogram) in merged(calls)? {
            for (suffix, value) in quantiles(&histogram) {
                let values = latencies.entry(format!("{call}_latency_ns_{suffix}")).or_default();
                values.entry(arm).or_default().push(value);
            }
        }
        for (metric, value) in reader_metrics(&samples)? {
            latencies.entry(metric).or_default().entry(arm).or_default().push(value);
        }
    }
    Ok(std::iter::once((MAIN_METRIC.to_owned(), throughput)).chain(latencies).collect())
}

/// Containers per second of one iteration; nothing when its oracle failed.
pub fn containers_per_s(sample: &Sample) -> Option<f64> {
    sample.elapsed_ns.map(|ns| f64::from(sample.point.containers) * 1e9 / ns as f64)
}

/// Of each reader its latencies beside the storm, and its tax: by what factor they are longer than in quiet.
fn reader_metrics(samples: &[&Sample]) -> Result<Vec<(String, f64)>> {
    let readers = || samples.iter().flat_map(|sample| &sample.readers);
    let during = merged(readers().filter_map(|(name, seen)| Some((name.as_str(), seen.during.as_ref()?))))?;
    let before = merged(readers().filter_map(|(name, seen)| Some((name.as_str(), seen.before.as_ref()?))))?;
    let mut metrics = Vec::new();
    for (name, during) in &during {
        let in_quiet: BTreeMap<&str, f64> = before.get(name).into_iter().flat_map(quantiles).collect();
        for (suffix, value) in quantiles(during) {
            metrics.push((format!("reader_{name}_latency_ns_{suffix}"), value));
            if let Some(before) = in_quiet.get(suffix) {
                metrics.push((format!("reader_{name}_tax_{suffix}"), value / before.max(1.0)));
            }
        }
    }
    Ok(metrics)
}

/// Those of [`QUANTILES`] that there are values enough for.
fn quantiles(histogram: &Histogram<u64>) -> impl Iterator<Item = (&'static str, f64)> {
    QUANTILES
        .iter()
        .filter(|(_, _, least)| histogram.len() >= *least)
        .map(|(suffix, quantile, _)| (*suffix, histogram.value_at_quantile(*quantile) as f64))
}

/// One histogram for each name.
///
/// # Errors
/// A histogram that cannot be read.
pub fn merged<'a>(
    latencies: impl Iterator<Item = (&'a str, &'a Latency)>,
) -> Result<BTreeMap<&'a str, Histogram<u64>>> {
    let mut merged: BTreeMap<&str, Histogram<u64>> = BTreeMap::new();
    for (name, latency) in latencies {
        let histogram = decoded(latency).with_context(|| format!("the histogram of {name}"))?;
        match merged.get_mut(name) {
            Some(mine) => mine.add(histogram)?,
            None => drop(merged.insert(name, histogram)),
        }
    }
    Ok(merged)
}

/// What a metric is counted in.
fn unit(metric: &str) -> &'static str {
    match metric {
        MAIN_METRIC => "1/s",
        _ if metric.contains("_tax_") => "x",
        _ => "ns",
    }
}

fn decoded(latency: &Latency) -> Result<Histogram<u64>> {
    let bytes = BASE64.decode(&latency.hdr_v2_base64)?;
    Deserializer::new().deserialize(&mut bytes.as_slice()).map_err(|error| anyhow::anyhow!("{error:?}"))
}

impl Comparison {
    /// Whether figures of a storm may be shown: those of one that is withheld are not, anywhere.
    pub fn is_published(&self, point: &StormPoint) -> bool {
        let start = format!("{}:", name(point));
        !self.withheld.iter().any(|why| why.starts_with(&start))
    }

    /// The exit code that a script sees: withheld before slower before undecided. A control alone decides nothing.
    pub fn exit(&self) -> Exit {
        let any = |verdict| self.rows.iter().any(|row| row.metric == MAIN_METRIC && row.verdict == verdict);
        match () {
            () if !self.withheld.is_empty() => Exit::Oracle,
            () if self.candidate == NO_CANDIDATE => Exit::Success,
            () if any(Verdict::Slower) => Exit::Regression,
            () if any(Verdict::Inconclusive) => Exit::Inconclusive,
            () => Exit::Success,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;

    #[test]
    fn verdicts_follow_interval_margin_and_control() {
        let aa = [0.98, 1.02];
        let of = |ratio, ci, aa| verdict(ratio, ci, aa, 0.05, true);
        assert_eq!(of(1.5, [1.4, 1.6], aa), Verdict::Faster);
        assert_eq!(of(0.7, [0.6, 0.8], aa), Verdict::Slower);
        assert_eq!(of(1.01, [0.97, 1.04], aa), Verdict::Equivalent);
        assert_eq!(of(1.03, [1.01, 1.04], aa), Verdict::Equivalent);
        assert_eq!(of(1.0, [0.97, 1.04], [0.76, 0.81]), Verdict::Inconclusive);
        assert_eq!(of(1.1, [0.9, 1.3], aa), Verdict::Inconclusive);
        assert_eq!(of(1.1, [1.05, 1.15], [0.85, 1.2]), Verdict::Inconclusive);
        assert_eq!(of(0.92, [0.87, 0.98], [0.76, 0.81]), Verdict::Inconclusive);
        assert_eq!(of(1.1, [1.05, 1.15], [0.85, 1.01]), Verdict::Inconclusive);
        assert_eq!(of(1.3, [1.2, 1.4], [0.85, 1.01]), Verdict::Faster);
        assert_eq!(verdict(0.7, [0.6, 0.8], aa, 0.05, false), Verdict::Faster);
    }

    #[test]
    fn a_candidate_of_twice_the_rate_is_twice_as_fast() {
        let run = fixture::run(&[(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 200.0)]);
        let comparison = of_run(&run).unwrap();
        let row = &comparison.rows[0];
        assert_eq!((row.metric.as_str(), row.unit.as_str(), row.boots), (MAIN_METRIC, "1/s", 3));
        assert!((row.ratio - 2.0).abs() < 0.02, "{}", row.ratio);
        assert_eq!((row.verdict, comparison.exit()), (Verdict::Faster, Exit::Success));
        assert!(comparison.rows.iter().any(|row| row.metric == "umount_latency_ns_p99" && row.unit == "ns"));
    }

    #[test]
    fn a_slower_candidate_is_a_regression() {
        let run = fixture::run(&[(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 50.0)]);
        assert_eq!(of_run(&run).unwrap().exit(), Exit::Regression);
    }

    #[test]
    fn one_failed_oracle_withholds_the_storm() {
        let mut run = fixture::run(&[(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 200.0)]);
        let sample = run.samples.iter_mut().find(|stored| stored.arm == Arm::Candidate).unwrap();
        sample.sample.elapsed_ns = None;
        sample.sample.oracle.failures.push("idmapped_ownership: owned by (0, 0)".into());
        let comparison = of_run(&run).unwrap();
        assert!(comparison.rows.is_empty());
        assert!(comparison.withheld[0].contains("on patched") && comparison.withheld[0].contains("owned by (0, 0)"));
        assert_eq!(comparison.exit(), Exit::Oracle);
    }

    #[test]
    fn a_control_alone_is_shown_and_decides_nothing() {
        let mut run = fixture::run(&[(Arm::Baseline, 100.0), (Arm::Control, 150.0)]);
        run.manifest.candidate = None;
        run.manifest.boots.retain(|boot| boot.arm != Arm::Candidate);
        let comparison = of_run(&run).unwrap();
        assert_eq!((comparison.candidate.as_str(), comparison.exit()), (NO_CANDIDATE, Exit::Success));
        assert_eq!(comparison.rows[0].ratio_ci95, comparison.rows[0].aa_ratio_ci95);
    }

    #[test]
    fn a_reader_has_latencies_and_a_tax() {
        let arms = [(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 100.0)];
        let run = fixture::with_reader(fixture::run(&arms), "stat");
        let rows = of_run(&run).unwrap().rows;
        let tax = rows.iter().find(|row| row.metric == "reader_stat_tax_p99").unwrap();
        assert_eq!((tax.unit.as_str(), tax.verdict), ("x", Verdict::Faster));
        assert!((tax.baseline - 8.0).abs() < 0.05 && (tax.candidate - 2.0).abs() < 0.05, "{tax:?}");
        assert!(rows.iter().any(|row| row.metric == "reader_stat_latency_ns_p99" && row.unit == "ns"));
        assert!(!rows.iter().any(|row| row.metric.ends_with("p999")), "of 120 looks that is the longest");
    }

    #[test]
    fn what_some_boots_lack_is_not_judged_by_the_others() {
        let arms = [(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 100.0)];
        let mut run = fixture::with_reader(fixture::run(&arms), "stat");
        let without = run.samples.iter_mut().filter(|stored| stored.arm == Arm::Candidate && stored.boot < 2);
        without.for_each(|stored| stored.sample.readers.clear());
        let rows = of_run(&run).unwrap().rows;
        assert!(rows.iter().all(|row| !row.metric.starts_with("reader_") && row.boots == 3), "{rows:?}");
    }

    #[test]
    fn an_unfinished_run_says_how_to_go_on() {
        let mut run = fixture::run(&[(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 200.0)]);
        run.samples.retain(|stored| stored.boot != 2);
        assert!(of_run(&run).unwrap_err().to_string().contains("--resume"));
    }

    #[test]
    fn the_control_never_stands_in_for_a_candidate() {
        let arms = [(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 200.0)];
        let mut run = fixture::with_reader(fixture::run(&arms), "stat");
        let of_candidate = run.samples.iter_mut().filter(|stored| stored.arm == Arm::Candidate);
        of_candidate.for_each(|stored| stored.sample.readers.clear());
        let rows = of_run(&run).unwrap().rows;
        assert!(rows.iter().all(|row| !row.metric.starts_with("reader_")), "{rows:?}");
    }

    #[test]
    fn of_two_runs_each_has_to_be_finished_and_the_second_one_is_the_candidate() {
        let arms = [(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 200.0)];
        let (first, mut second) = (fixture::run(&arms), fixture::run(&[(Arm::Baseline, 300.0), arms[1], arms[2]]));
        second.manifest.baseline.name = "patched@3".into();
        let (both, comparison) = of_two_runs(&first, &second).unwrap();
        assert_eq!(
            (comparison.candidate.as_str(), both.manifest.candidate),
            ("patched@3", Some(second.manifest.baseline.clone()))
        );
        assert!((comparison.rows[0].ratio - 3.0).abs() < 0.02, "{}", comparison.rows[0].ratio);
        let of_candidate = both.samples.iter().filter(|stored| stored.arm == Arm::Candidate);
        let of_second = second.samples.iter().filter(|stored| stored.arm == Arm::Baseline);
        assert!(of_candidate.map(|stored| &stored.sample).eq(of_second.map(|stored| &stored.sample)));
        let names = |one: &str, other: &str| {
            let running =
                |release: &str| Kernel { name: "running".into(), release: release.into(), ..Kernel::default() };
            told_apart([running(one), running(other)]).map(|kernel| kernel.name)
        };
        assert_eq!(names("7.3.4", "7.3.4-fix"), ["running, 7.3.4", "running, 7.3.4-fix"]);
        assert_eq!(names("7.3.4", "7.3.4"), ["running", "running, 2nd run"]);
        assert_eq!(
            hardware("2 x CPU, 24 GiB, Linux 7.3.4, Debian"),
            hardware("2 x CPU, 24 GiB, Linux 7.3.4-fix, Debian")
        );
        let elsewhere =
            Run { manifest: Manifest { host: "another".into(), ..second.manifest.clone() }, ..second.clone() };
        assert!(of_two_runs(&first, &elsewhere).unwrap_err().to_string().contains("differ in host"));
        second.samples.retain(|stored| stored.arm == Arm::Control);
        assert!(of_two_runs(&first, &second).unwrap_err().to_string().contains("--resume"));
        assert!(of_two_runs(&second, &first).unwrap_err().to_string().contains("--resume"));
    }

    #[test]
    fn two_runs_of_different_shape_are_not_compared() {
        let arms = [(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 200.0)];
        let (first, mut second) = (fixture::run(&arms), fixture::run(&arms));
        assert_eq!(of_two_runs(&first, &second).unwrap().1.rows[0].verdict, Verdict::Equivalent);
        second.manifest.manner.shims = !second.manifest.manner.shims;
        assert!(of_two_runs(&first, &second).unwrap_err().to_string().contains("how containers were started"));
        second.manifest.manner = first.manifest.manner;
        second.manifest.warmup_iterations += 1;
        assert!(of_two_runs(&first, &second).unwrap_err().to_string().contains("iterations"));
        let mut second = fixture::run(&arms);
        second.manifest.surroundings.peer_namespaces = 8;
        assert!(of_two_runs(&first, &second).unwrap_err().to_string().contains("peer namespaces"));
        second.manifest.machine.cpus = 8;
        assert!(of_two_runs(&first, &second).unwrap_err().to_string().contains("number of CPUs"));
    }
}
