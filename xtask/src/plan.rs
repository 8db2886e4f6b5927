//! The order of boots: blocks of one boot per arm, each in an order drawn by the seed, so that drift hits all arms alike.

use crate::results::{Arm, PlannedBoot};

/// Plans `boots_per_arm` boots of each arm on each number of CPUs. All boots of a block share the guest's seed: they run the same storm.
pub fn plan(boots_per_arm: u32, has_candidate: bool, cpus: &[u32], seed: u64) -> Vec<PlannedBoot> {
    let arms: &[Arm] =
        if has_candidate { &[Arm::Baseline, Arm::Control, Arm::Candidate] } else { &[Arm::Baseline, Arm::Control] };
    let mut random = SplitMix64(seed);
    let mut boots = Vec::new();
    let mut orders = Vec::new();
    for boot in 0..boots_per_arm {
        if orders.is_empty() {
            orders = balanced_orders(arms, &mut random);
        }
        let order = orders.pop().unwrap_or_default();
        let guest_seed = random.next();
        for &cpus in cpus {
            for &arm in &order {
                boots.push(PlannedBoot { position: boots.len() as u32, arm, boot, cpus, seed: guest_seed });
            }
        }
    }
    boots
}

/// One order per arm: a shuffled order and all its rotations, shuffled. Within these each arm stands once at each place.
fn balanced_orders(arms: &[Arm], random: &mut SplitMix64) -> Vec<Vec<Arm>> {
    let mut first = arms.to_vec();
    random.shuffle(&mut first);
    let rotated = |by: usize| first[by..].iter().chain(&first[..by]).copied().collect();
    let mut orders: Vec<Vec<Arm>> = (0..first.len()).map(rotated).collect();
    random.shuffle(&mut orders);
    orders
}

/// splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): the same sequence on every
/// platform and version, which a run that is to be repeated needs and a general crate does not promise.
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`; the bias of the multiplication is below 2^-32 for every bound that occurs here.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_the_published_one() {
        let mut random = SplitMix64(1_234_567);
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn one_seed_one_plan() {
        assert_eq!(plan(5, true, &[2], 7), plan(5, true, &[2], 7));
        assert_ne!(plan(5, true, &[2], 7), plan(5, true, &[2], 8));
    }

    #[test]
    fn every_block_has_each_arm_once_and_one_seed() {
        let boots = plan(6, true, &[2], 3);
        assert_eq!(boots.len(), 18);
        for (number, block) in boots.chunks(3).enumerate() {
            let mut arms: Vec<Arm> = block.iter().map(|boot| boot.arm).collect();
            arms.sort();
            assert_eq!(arms, [Arm::Baseline, Arm::Control, Arm::Candidate]);
            assert!(block.iter().all(|boot| boot.boot == number as u32 && boot.seed == block[0].seed));
        }
    }

    #[test]
    fn each_arm_stands_at_each_place_equally_often() {
        let boots = plan(6, true, &[2], 3);
        for arm in [Arm::Baseline, Arm::Control, Arm::Candidate] {
            for place in 0..3 {
                let times = boots.chunks(3).filter(|block| block[place].arm == arm).count();
                assert_eq!(times, 2, "{arm:?} at place {place}");
            }
        }
    }

    #[test]
    fn a_sweep_visits_each_number_of_cpus_in_each_block() {
        let boots = plan(2, true, &[8, 1], 3);
        assert_eq!(boots.len(), 12);
        let first: Vec<u32> = boots[..6].iter().map(|boot| boot.cpus).collect();
        assert_eq!(first, [8, 8, 8, 1, 1, 1]);
        assert_eq!(
            boots[..3].iter().map(|boot| boot.arm).collect::<Vec<_>>(),
            boots[3..6].iter().map(|boot| boot.arm).collect::<Vec<_>>()
        );
    }

    #[test]
    fn without_a_candidate_two_arms_are_left() {
        let boots = plan(2, false, &[2], 1);
        assert_eq!(boots.len(), 4);
        assert!(boots.iter().all(|boot| boot.arm != Arm::Candidate));
    }
}
