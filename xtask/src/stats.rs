//! Statistics of a comparison, as pure functions. A boot is one observation.

use crate::plan::SplitMix64;

/// Resamples of the bootstrap: enough that the ends of a 95 % interval are stable to its third digit.
const RESAMPLES: usize = 10_000;

/// Arithmetic mean.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// 95 % percentile bootstrap interval of mean(numerator) / mean(denominator): both are resampled with replacement.
/// The same seed gives the same interval. With few boots the interval is known to be somewhat too narrow.
pub fn ratio_ci95(numerator: &[f64], denominator: &[f64], seed: u64) -> [f64; 2] {
    let mut random = SplitMix64(seed);
    let mut ratios: Vec<f64> = (0..RESAMPLES)
        .map(|_| resampled_mean(numerator, &mut random) / resampled_mean(denominator, &mut random))
        .collect();
    ratios.sort_by(f64::total_cmp);
    [quantile(&ratios, 0.025), quantile(&ratios, 0.975)]
}

fn resampled_mean(values: &[f64], random: &mut SplitMix64) -> f64 {
    (0..values.len()).map(|_| values[random.below(values.len())]).sum::<f64>() / values.len() as f64
}

/// Quantile of sorted values, by linear interpolation.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + (sorted[high] - sorted[low]) * part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_samples_give_a_point() {
        assert_eq!(ratio_ci95(&[2.0; 5], &[1.0; 5], 1), [2.0, 2.0]);
    }

    #[test]
    fn the_interval_holds_the_ratio_and_is_reproducible() {
        let (a, b) = ([10.0, 11.0, 9.0, 10.5, 9.5], [5.0, 5.5, 4.5, 5.2, 4.8]);
        let [low, high] = ratio_ci95(&a, &b, 9);
        assert!(low < 2.0 && 2.0 < high && low > 1.7 && high < 2.3, "{low} {high}");
        assert_eq!([low, high], ratio_ci95(&a, &b, 9));
    }

    /// Known answer: over many experiments without a difference, about 5 % (a little more with eight boots) exclude 1.
    #[test]
    fn about_one_in_twenty_intervals_errs() {
        let mut random = SplitMix64(42);
        let mut draw = || (0..12).map(|_| random.next() as f64 / u64::MAX as f64).sum::<f64>() - 6.0;
        let mut arm = || (0..8).map(|_| 100.0 + draw()).collect::<Vec<f64>>();
        let errs = (0..200).filter(|&seed| {
            let [low, high] = ratio_ci95(&arm(), &arm(), seed);
            low > 1.0 || high < 1.0
        });
        let errs = errs.count();
        assert!((4..=30).contains(&errs), "{errs} of 200");
    }

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0], 0.25), 1.25);
    }
}
