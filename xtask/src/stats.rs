//! Statistics of a comparison, as pure functions. A boot is one observation.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// Arithmetic mean.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// 95 % interval of mean(numerator) / mean(denominator), by Welch's t for the logarithm of the ratio: boots are few, and two kernels do not
/// vary alike. (Welch, The generalization of "Student's" problem, Biometrika 34, 1947; a mean's logarithm varies as the mean does, relative to
/// it.) A percentile bootstrap over as few boots is too narrow.
///
/// One boot of an arm says nothing of how boots vary: then the interval is everything.
pub fn ratio_ci95(numerator: &[f64], denominator: &[f64]) -> [f64; 2] {
    if numerator.len() < 2 || denominator.len() < 2 {
        return [0.0, f64::MAX];
    }
    let ratio = mean(numerator) / mean(denominator);
    let (one, other) = (relative_variance_of_mean(numerator), relative_variance_of_mean(denominator));
    let variance = one + other;
    if variance == 0.0 {
        return [ratio, ratio];
    }
    let part = |of: f64, values: &[f64]| of * of / (values.len() - 1) as f64;
    let freedom = variance * variance / (part(one, numerator) + part(other, denominator));
    let t = StudentsT::new(0.0, 1.0, freedom).map_or(f64::NAN, |student| student.inverse_cdf(0.975));
    let factor = (t * variance.sqrt()).exp();
    [ratio / factor, ratio * factor]
}

/// Variance of the mean of at least two values, in units of its square.
fn relative_variance_of_mean(values: &[f64]) -> f64 {
    let (mean, count) = (mean(values), values.len() as f64);
    let squares: f64 = values.iter().map(|value| (value / mean - 1.0).powi(2)).sum();
    squares / (count - 1.0) / count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::SplitMix64;

    #[test]
    fn equal_samples_give_a_point() {
        assert_eq!(ratio_ci95(&[2.0; 5], &[1.0; 5]), [2.0, 2.0]);
    }

    #[test]
    fn one_boot_says_nothing() {
        assert_eq!(ratio_ci95(&[2.0], &[1.0, 1.1]), [0.0, f64::MAX]);
    }

    /// Known answer: two arms of five that vary alike have eight degrees of freedom, of which t is 2.306.
    #[test]
    fn the_interval_is_students() {
        let (a, b) = ([10.0, 11.0, 9.0, 10.5, 9.5], [20.0, 22.0, 18.0, 21.0, 19.0]);
        let [low, high] = ratio_ci95(&a, &b);
        let expected = 2.306_f64 * (2.0 * 0.00625_f64 / 5.0).sqrt();
        assert!((high.ln() - 0.5_f64.ln() - expected).abs() < 1e-4, "{high} {expected}");
        assert!((low * high - 0.25).abs() < 1e-9, "{low} {high}");
    }

    /// Known answer: over many experiments without a difference 5 % exclude 1, however few the boots, and if one arm varies more.
    #[test]
    fn one_in_twenty_intervals_errs() {
        let mut random = SplitMix64(42);
        let mut draw =
            |spread: f64| 100.0 + spread * ((0..12).map(|_| random.next() as f64 / u64::MAX as f64).sum::<f64>() - 6.0);
        for (boots, spread) in [(2, 5.0), (3, 5.0), (5, 5.0), (8, 5.0), (5, 15.0)] {
            let errs = (0..1000).filter(|_| {
                let arms = [5.0, spread].map(|spread| (0..boots).map(|_| draw(spread)).collect::<Vec<f64>>());
                let [low, high] = ratio_ci95(&arms[0], &arms[1]);
                low > 1.0 || high < 1.0
            });
            let errs = errs.count();
            assert!((10..=75).contains(&errs), "{boots} boots, {spread}: {errs} of 1000");
        }
    }
}
