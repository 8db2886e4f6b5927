//! Latencies of calls, by name of the call.

use crate::protocol::Latency;
use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2Serializer};
use std::collections::BTreeMap;
use std::time::Instant;

/// Significant decimal digits of a recorded value: quantiles are exact within 1 %.
const DIGITS: u8 = 2;

/// Histograms of one thread; merged after the storm so that recording takes no lock.
#[derive(Debug, Default)]
pub struct Calls {
    by_name: BTreeMap<&'static str, Histogram<u64>>,
}

impl Calls {
    /// Runs `call` and records how long it took, whether it succeeded or not.
    pub fn time<T>(&mut self, name: &'static str, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let value = call();
        self.record(name, start.elapsed().as_nanos() as u64);
        value
    }

    /// Records one latency, ns.
    pub fn record(&mut self, name: &'static str, ns: u64) {
        // An hour; longer waits are cut to it, and no storm lasts that long.
        let new = || Histogram::new_with_bounds(1, 3_600_000_000_000, DIGITS).expect("valid bounds");
        self.by_name.entry(name).or_insert_with(new).saturating_record(ns.max(1));
    }

    /// Adds another thread's.
    pub fn merge(&mut self, other: Calls) {
        for (name, histogram) in other.by_name {
            match self.by_name.get_mut(name) {
                Some(mine) => mine.add(histogram).expect("all histograms have the same bounds"),
                None => drop(self.by_name.insert(name, histogram)),
            }
        }
    }

    /// As they are sent to the host.
    ///
    /// # Errors
    /// Serialization failed.
    pub fn latencies(&self) -> Result<BTreeMap<String, Latency>> {
        self.by_name.iter().map(|(name, histogram)| Ok(((*name).to_owned(), latency(histogram)?))).collect()
    }
}

fn latency(histogram: &Histogram<u64>) -> Result<Latency> {
    let mut bytes = Vec::new();
    V2Serializer::new().serialize(histogram, &mut bytes)?;
    Ok(Latency {
        count: histogram.len(),
        mean_ns: histogram.mean(),
        p50_ns: histogram.value_at_quantile(0.5),
        p99_ns: histogram.value_at_quantile(0.99),
        max_ns: histogram.max(),
        hdr_v2_base64: BASE64.encode(bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::Deserializer;

    #[test]
    fn quantiles_survive_merging_and_the_wire() {
        let (mut one, mut two) = (Calls::default(), Calls::default());
        (1..=50).for_each(|n| one.record("umount", n * 1000));
        (51..=100).for_each(|n| two.record("umount", n * 1000));
        two.record("open_tree", 5);
        one.merge(two);
        let latencies = one.latencies().unwrap();
        let umount = &latencies["umount"];
        assert_eq!(umount.count, 100);
        assert!((49_000..=51_000).contains(&umount.p50_ns), "{}", umount.p50_ns);
        assert_eq!(latencies["open_tree"].count, 1);
        let bytes = BASE64.decode(&umount.hdr_v2_base64).unwrap();
        let back: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!(back.len(), 100);
    }
}
