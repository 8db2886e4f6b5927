//! A set of small numbers that can be walked in a circle.

/// Most members a set can have. QEMU's `pc` machine has at most 255 CPUs, `q35` 4096; CONFIG_NR_CPUS of the lab's kernels is 512.
pub const MOST: usize = 512;
const WORDS: usize = MOST / 64;

/// A set of numbers below [`MOST`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits([u64; WORDS]);

impl Bits {
    /// The empty set.
    pub const fn new() -> Bits {
        Bits([0; WORDS])
    }

    /// Adds a number.
    pub fn insert(&mut self, number: usize) {
        self.0[number / 64] |= 1 << (number % 64);
    }

    /// Removes a number.
    pub fn remove(&mut self, number: usize) {
        self.0[number / 64] &= !(1 << (number % 64));
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The smallest member above `number`, else the smallest of all.
    pub fn next_after(&self, number: usize) -> Option<usize> {
        self.at_or_above(number + 1).or_else(|| self.at_or_above(0))
    }

    /// The members in ascending order, as they are now.
    pub fn iter(&self) -> impl Iterator<Item = usize> + use<> {
        let set = self.clone();
        let mut from = 0;
        std::iter::from_fn(move || {
            let found = set.at_or_above(from)?;
            from = found + 1;
            Some(found)
        })
    }

    fn at_or_above(&self, number: usize) -> Option<usize> {
        let first = number / 64;
        for word in first..WORDS {
            let below = if word == first { !0 << (number % 64) } else { !0 };
            let left = self.0[word] & below;
            if left != 0 {
                return Some(word * 64 + left.trailing_zeros() as usize);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_walked_in_a_circle() {
        let mut bits = Bits::new();
        assert!(bits.is_empty() && bits.next_after(5).is_none());
        for number in [3, 63, 64, 511] {
            bits.insert(number);
        }
        let mut at = 0;
        let walk: Vec<usize> = (0..5)
            .map(|_| {
                at = bits.next_after(at).unwrap();
                at
            })
            .collect();
        assert_eq!(walk, [3, 63, 64, 511, 3]);
        bits.remove(511);
        assert_eq!(bits.iter().collect::<Vec<_>>(), [3, 63, 64]);
    }
}
