//! The reader tax: by what factor an unrelated reader, a health check first of all, is slower while containers start than in quiet. Told from
//! the looks of all boots of a kernel together: those of one short storm are too few for a high quantile. The verdict is a boot's: see
//! [`crate::compare`].

use super::{kernel_of, storm, storm_of, value, verdict};
use crate::compare::{Comparison, QUANTILES, merged};
use crate::results::{Arm, Run, StoredSample};
use hdrhistogram::Histogram;
use mount_storms::protocol::{Latency, ReaderSample};

/// The header of [`Tax::cells`].
pub const HEADER: [&str; 8] = [
    "storm",
    "reader",
    "kernel",
    "in quiet: p50 / p99 / p99.9",
    "during the storm",
    "tax",
    "looks in quiet, during",
    "p99 by boots",
];

/// How to read it.
pub const READING: &str = "\
All boots of a kernel together, without those of the control. The tax is a quantile during the storm over the same one in quiet. A quantile of fewer than 100 (p99) or 1000 \
looks (p99.9) is not told: it would be the longest. The last column compares the boots' own p99 with the baseline's, if each boot has as \
many looks.";

/// What one reader saw beside one storm on one kernel.
pub struct Tax {
    storm: String,
    reader: String,
    kernel: String,
    before: Histogram<u64>,
    during: Histogram<u64>,
    verdict: &'static str,
}

impl Tax {
    /// One for each of [`HEADER`].
    pub fn cells(&self) -> [String; 8] {
        let joined = |cell: &dyn Fn(f64, u64) -> Option<String>| {
            let cells = QUANTILES.map(|(_, quantile, least)| cell(quantile, least).unwrap_or_else(|| "-".into()));
            cells.join(" / ")
        };
        let of = |histogram: &Histogram<u64>| joined(&|q, least| Some(value(at(histogram, q, least)?, "ns")));
        let tax = |q, least| {
            let factor = at(&self.during, q, least)? / at(&self.before, q, least)?.max(1.0);
            Some(format!("{factor:.2}"))
        };
        [
            self.storm.clone(),
            self.reader.clone(),
            self.kernel.clone(),
            of(&self.before),
            of(&self.during),
            joined(&tax) + " x",
            format!("{}, {}", self.before.len(), self.during.len()),
            self.verdict.to_owned(),
        ]
    }
}

/// A quantile, if there are looks enough.
fn at(histogram: &Histogram<u64>, quantile: f64, least: u64) -> Option<f64> {
    (histogram.len() >= least).then(|| histogram.value_at_quantile(quantile) as f64)
}

/// "stat" of "reader_stat_tax_p99" and "reader_stat_latency_ns_p50".
pub fn reader_of(metric: &str) -> Option<&str> {
    let rest = metric.strip_prefix("reader_")?;
    rest.split_once("_tax_").or_else(|| rest.split_once("_latency_")).map(|(reader, _)| reader)
}

/// All taxes of storms that are not withheld, storm by storm, the baseline's before the candidate's.
///
/// # Errors
/// A histogram that cannot be read.
pub fn taxes(run: &Run, comparison: &Comparison) -> anyhow::Result<Vec<Tax>> {
    let mut taxes = Vec::new();
    for point in run.manifest.points.iter().filter(|point| comparison.is_published(point)) {
        let storm = storm_of(point, run);
        let names = run.manifest.readers.iter().map(|reader| reader.name());
        for reader in names {
            for arm in [Arm::Baseline, Arm::Candidate] {
                let of_arm = |stored: &&StoredSample| stored.arm == arm && stored.sample.point == *point;
                let seen = || run.samples.iter().filter(of_arm).filter_map(|stored| stored.sample.readers.get(reader));
                let all = |part: fn(&ReaderSample) -> Option<&Latency>| {
                    let histogram = merged(seen().filter_map(part).map(|latency| (reader, latency)))?.remove(reader);
                    anyhow::Ok(histogram)
                };
                let parts = (all(|seen| seen.before.as_ref())?, all(|seen| seen.during.as_ref())?);
                let (Some(before), Some(during)) = parts else { continue };
                let verdict = if arm == Arm::Candidate { verdict_of(comparison, &storm, reader) } else { "" };
                let kernel = kernel_of(arm, comparison);
                taxes.push(Tax { storm: storm.clone(), reader: reader.to_owned(), kernel, before, during, verdict });
            }
        }
    }
    Ok(taxes)
}

fn verdict_of(comparison: &Comparison, name: &str, reader: &str) -> &'static str {
    let metric = format!("reader_{reader}_tax_p99");
    let row = comparison.rows.iter().find(|row| row.metric == metric && storm(row) == name);
    row.map_or("too few looks", |row| verdict(row.verdict))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::of_run;
    use crate::results::fixture;

    #[test]
    fn a_readers_name_is_in_its_metrics() {
        assert_eq!(reader_of("reader_stat_tax_p99"), Some("stat"));
        assert_eq!(reader_of("reader_openat2_latency_ns_p50"), Some("openat2"));
        assert_eq!(reader_of("umount_latency_ns_p99"), None);
    }

    #[test]
    fn looks_of_all_boots_are_put_together_and_too_few_are_said() {
        let arms = [(Arm::Baseline, 100.0), (Arm::Control, 100.0), (Arm::Candidate, 100.0)];
        let run = fixture::with_reader(fixture::run(&arms), "stat");
        let told: Vec<_> = taxes(&run, &of_run(&run).unwrap()).unwrap().iter().map(Tax::cells).collect();
        assert_eq!(told.len(), 2);
        // Three boots of two iterations of sixty looks each.
        assert_eq!(
            told[0][2..],
            ["mainline", "1.00 ms / 1.00 ms / -", "8.00 ms / 8.00 ms / -", "8.00 / 8.00 / - x", "360, 360", ""]
        );
        assert_eq!((told[1][2].as_str(), told[1][7].as_str()), ("patched", "faster"));
    }
}
