//! The times of a scripted guest: a stated mean per kernel, with seeded noise between boots and within them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2Serializer};
use mount_storms::protocol::{GuestEvent, Latency, Oracle, Sample, StormJob, StormPoint};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// Mean time of one container start at factor 1, ns.
const CONTAINER_NS: f64 = 10e6;
/// Mean latency of one call at factor 1, ns.
const CALL_NS: f64 = 20e3;
/// Standard deviation of boots around their kernel's mean, as a share of it.
const BOOT_NOISE: f64 = 0.02;
/// Standard deviation of iterations around their boot's mean.
const ITERATION_NOISE: f64 = 0.01;
/// Calls that each histogram holds.
const CALLS: usize = 100;
/// The calls of a storm.
const CALL_NAMES: [&str; 6] = ["open_tree", "mount_setattr", "move_mount", "overlay_mount", "umount", "umount_rootfs"];

/// Source of one boot's times. The same seed, kernel and folder give the same times.
pub struct Model {
    state: u64,
    mean_factor: f64,
}

impl Model {
    /// A model of one boot whose storms take `factor` times the usual.
    pub fn new(seed: u64, kernel: &str, dir: &Path, factor: f64) -> Model {
        let place = dir.file_name().unwrap_or_default().to_string_lossy();
        let digest = Sha256::digest(format!("{seed} {kernel} {place}"));
        let state = digest.iter().take(8).fold(0, |state, &byte| state << 8 | u64::from(byte));
        let mut model = Model { state, mean_factor: factor };
        model.mean_factor *= model.noise(BOOT_NOISE);
        model
    }

    /// The samples of a job; each with a failed oracle, and so without a time, if `wrong`.
    pub fn storm(&mut self, storm: &StormJob, wrong: bool) -> Vec<GuestEvent> {
        let order =
            storm.points.iter().flat_map(|point| (0..storm.iterations).map(move |iteration| (point, iteration)));
        order.map(|(point, iteration)| GuestEvent::Sample(self.sample(point, iteration, wrong))).collect()
    }

    fn sample(&mut self, point: &StormPoint, iteration: u32, wrong: bool) -> Sample {
        let factor = self.mean_factor * self.noise(ITERATION_NOISE);
        let elapsed = CONTAINER_NS * f64::from(point.containers) * factor;
        let failures =
            if wrong { vec!["layer_content: the script wants layer 0 to read wrong".into()] } else { vec![] };
        let checks = BTreeMap::from([("layer_content".to_owned(), u64::from(point.containers * point.layers))]);
        Sample {
            point: point.clone(),
            iteration,
            elapsed_ns: (!wrong).then_some(elapsed as u64),
            calls: CALL_NAMES.iter().map(|name| ((*name).to_owned(), self.latency(factor))).collect(),
            oracle: Oracle { checks, failures },
            leak: None,
            readers: BTreeMap::new(),
        }
    }

    fn latency(&mut self, factor: f64) -> Latency {
        let mut histogram = Histogram::<u64>::new(3).expect("three significant digits are allowed");
        for _ in 0..CALLS {
            histogram.saturating_record((CALL_NS * factor * self.noise(ITERATION_NOISE)) as u64);
        }
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&histogram, &mut bytes).expect("a Vec takes all bytes");
        Latency {
            count: histogram.len(),
            mean_ns: histogram.mean(),
            p50_ns: histogram.value_at_quantile(0.5),
            p99_ns: histogram.value_at_quantile(0.99),
            max_ns: histogram.max(),
            hdr_v2_base64: STANDARD.encode(bytes),
        }
    }

    /// A factor around 1 with this standard deviation: the sum of twelve uniform numbers is nearly normal, with variance 1 and mean 6.
    fn noise(&mut self, deviation: f64) -> f64 {
        let sum: f64 = (0..12).map(|_| self.uniform()).sum();
        1.0 + deviation * (sum - 6.0)
    }

    /// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014), as a number in 0..1.
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::Deserializer;
    use mount_storms::protocol::{Manner, Profile, Propagation, READER_PERIOD_US, Storage};

    fn job(iterations: u32) -> StormJob {
        let (profile, storage, propagation) = (Profile::Common, Storage::Tmpfs, Propagation::Shared);
        let point = StormPoint {
            profile,
            storage,
            propagation,
            cpus: 2,
            threads: 2,
            containers: 4,
            layers: 3,
            inspection_passes: 1,
        };
        StormJob {
            points: vec![point],
            iterations,
            warmup_iterations: 0,
            manner: Manner::CONTAINERD,
            readers: Vec::new(),
            reader_period_us: READER_PERIOD_US,
            surroundings: Default::default(),
        }
    }

    fn mean_ns(seed: u64, kernel: &str, factor: f64) -> f64 {
        let samples = Model::new(seed, kernel, Path::new("/r/boot-0"), factor).storm(&job(50), false);
        let times: Vec<f64> = samples
            .iter()
            .map(|event| match event {
                GuestEvent::Sample(sample) => sample.elapsed_ns.unwrap() as f64,
                other => panic!("{other:?}"),
            })
            .collect();
        times.iter().sum::<f64>() / times.len() as f64
    }

    #[test]
    fn the_same_seed_repeats_and_another_does_not() {
        assert_eq!(mean_ns(1, "mainline", 1.0), mean_ns(1, "mainline", 1.0));
        assert_ne!(mean_ns(1, "mainline", 1.0), mean_ns(2, "mainline", 1.0));
        assert_ne!(mean_ns(1, "mainline", 1.0), mean_ns(1, "patched", 1.0));
    }

    #[test]
    fn means_are_the_stated_ones() {
        let boots = 100;
        let mean = (0..boots).map(|seed| mean_ns(seed, "patched", 0.8)).sum::<f64>() / f64::from(boots as u32);
        let stated = 4.0 * CONTAINER_NS * 0.8;
        assert!((mean / stated - 1.0).abs() < 0.01, "{mean} is far from {stated}");
    }

    #[test]
    fn a_failed_oracle_withholds_the_time() {
        let events = Model::new(1, "x", Path::new("/r/boot-0"), 1.0).storm(&job(1), true);
        let GuestEvent::Sample(sample) = &events[0] else { panic!("{events:?}") };
        assert_eq!(sample.elapsed_ns, None);
        assert_eq!(sample.oracle.failures.len(), 1);
    }

    #[test]
    fn histograms_can_be_read_back() {
        let events = Model::new(1, "x", Path::new("/r/boot-0"), 1.0).storm(&job(1), false);
        let GuestEvent::Sample(sample) = &events[0] else { panic!("{events:?}") };
        let latency = &sample.calls["umount"];
        let bytes = STANDARD.decode(&latency.hdr_v2_base64).unwrap();
        let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!((histogram.len(), histogram.max()), (latency.count, latency.max_ns));
    }
}
