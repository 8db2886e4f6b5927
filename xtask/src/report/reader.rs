//! The reader tax: by what factor an unrelated reader, a health check first of all, is slower while containers start than in quiet.

use super::{storm, verdict};
use crate::compare::{Comparison, Row, Verdict};

/// The quantiles of a tax, by the ends of their metrics' names.
const QUANTILES: [&str; 3] = ["p50", "p99", "p999"];

/// What one reader pays beside one storm.
pub struct Tax<'a> {
    /// The storm, in words.
    pub storm: String,
    /// The reader's name.
    pub reader: &'a str,
    /// One row for each of [`QUANTILES`].
    rows: [&'a Row; 3],
}

impl Tax<'_> {
    /// "1.20 / 4.75 / 9.10 x": median, 99th and 99.9th percentile, on the baseline and on the candidate.
    pub fn cells(&self) -> [String; 2] {
        let told = |value: fn(&Row) -> f64| {
            let factors: Vec<String> = self.rows.iter().map(|row| format!("{:.2}", value(row))).collect();
            format!("{} x", factors.join(" / "))
        };
        [told(|row| row.baseline), told(|row| row.candidate)]
    }

    /// What the 99th percentiles say.
    pub fn verdict(&self) -> &'static str {
        verdict(self.p99())
    }

    fn p99(&self) -> Verdict {
        self.rows[1].verdict
    }
}

/// "stat" of "reader_stat_tax_p99" and "reader_stat_latency_ns_p50".
pub fn reader_of(metric: &str) -> Option<&str> {
    let rest = metric.strip_prefix("reader_")?;
    rest.split_once("_tax_").or_else(|| rest.split_once("_latency_")).map(|(reader, _)| reader)
}

/// All taxes, in the order of the comparison's rows.
pub fn taxes(comparison: &Comparison) -> Vec<Tax<'_>> {
    let medians = comparison.rows.iter().filter(|row| row.metric.ends_with("_tax_p50"));
    medians.filter_map(|median| tax(comparison, median)).collect()
}

fn tax<'a>(comparison: &'a Comparison, median: &'a Row) -> Option<Tax<'a>> {
    let reader = reader_of(&median.metric)?;
    let find = |quantile: &str| {
        let metric = format!("reader_{reader}_tax_{quantile}");
        let same = |row: &&Row| row.metric == metric && storm(row) == storm(median) && row.threads == median.threads;
        comparison.rows.iter().find(same)
    };
    let [p50, p99, p999] = QUANTILES.map(find);
    Some(Tax { storm: storm(median), reader, rows: [p50?, p99?, p999?] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_readers_name_is_in_its_metrics() {
        assert_eq!(reader_of("reader_stat_tax_p99"), Some("stat"));
        assert_eq!(reader_of("reader_openat2_latency_ns_p50"), Some("openat2"));
        assert_eq!(reader_of("umount_latency_ns_p99"), None);
    }
}
