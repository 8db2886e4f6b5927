//! The guest's memory in the host's: found in /proc/self/maps, so that a word can be looked at without asking QEMU.
#![allow(unsafe_code)]

use std::fs;

/// The guest's RAM that lies at guest-physical 0. The `pc` machine puts up to 3 GiB there (hw/i386/pc_piix.c, `below_4g_mem_size`); what
/// lies above 4 GiB is not known to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ram {
    base: usize,
    size: usize,
    /// A word was found where it should be that cannot be there by chance.
    proven: bool,
}

/// Most RAM below 4 GiB (hw/i386/pc_piix.c: 0xe0000000 with all of it there, 0xc0000000 with more).
const MOST_LOW: usize = 0xc000_0000;

/// Kernel pointers are above it.
const LARGE: u64 = 1 << 40;

impl Ram {
    /// The largest anonymous writable mapping of this process: QEMU maps the guest's RAM as one (softmmu/physmem.c). What is found is only
    /// used after it has proven right: see [`Ram::look`].
    pub fn find() -> Ram {
        parse(&fs::read_to_string("/proc/self/maps").unwrap_or_default())
    }

    /// The 32-bit word at a guest-physical address, if its place is proven.
    pub fn word(&self, physical: u64) -> Option<u64> {
        let physical = usize::try_from(physical).ok()?;
        let within = self.proven && physical + 4 <= self.size.min(MOST_LOW);
        within.then(|| read(self.base + physical, 4))
    }

    /// Where a guest-physical word lies in the host, if it is there and holds `value` now. Nothing is told before a large value has been
    /// found in its place: a zero can be anywhere.
    pub fn look(&mut self, physical: u64, size: u8, value: u64) -> Option<usize> {
        let physical = usize::try_from(physical).ok()?;
        if physical + usize::from(size) > self.size.min(MOST_LOW) {
            return None;
        }
        let at = self.base + physical;
        let holds = read(at, size) == value;
        self.proven |= holds && value > LARGE;
        (holds && self.proven).then_some(at)
    }
}

/// Reads a word at an address that [`Ram::look`] gave.
pub fn read(at: usize, size: u8) -> u64 {
    // SAFETY: within a mapping of this process that is never unmapped, QEMU's RAM; nobody writes meanwhile, because we are the carrier.
    unsafe {
        match size {
            1 => u64::from(*(at as *const u8)),
            2 => u64::from((at as *const u16).read_unaligned()),
            4 => u64::from((at as *const u32).read_unaligned()),
            _ => (at as *const u64).read_unaligned(),
        }
    }
}

/// The largest line "START-END rw-p 00000000 00:00 0 [NAME]" without a file.
fn parse(maps: &str) -> Ram {
    let anonymous = maps.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next()?, words.next()?);
        let inode = words.nth(2)?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        (rights.starts_with("rw") && inode == "0").then_some(Ram { base: start, size: end - start, proven: false })
    });
    anonymous.max_by_key(|ram| ram.size).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_anonymous_mapping_is_found() {
        let maps = "55d0-55e0 r-xp 00000000 08:01 42 /usr/bin/q\n7f0000000000-7f0080000000 rw-p 00000000 00:00 0 \n\
                    7f1000000000-7f1001000000 rw-p 00000000 00:00 0\n7f2000000000-7fff00000000 r--p 00000000 00:00 0\n";
        assert_eq!(parse(maps), Ram { base: 0x7f00_0000_0000, size: 0x8000_0000, proven: false });
        assert_eq!(parse(""), Ram::default());
    }

    #[test]
    fn a_word_is_given_only_if_it_holds_what_the_guest_found() {
        let words: Vec<u64> = vec![7, 8, u64::MAX];
        let base = words.as_ptr() as usize;
        let mut ram = Ram { base, size: 24, proven: false };
        assert_eq!(ram.look(8, 8, 8), None, "not proven");
        assert_eq!(ram.look(16, 8, u64::MAX), Some(base + 16));
        assert_eq!(ram.look(8, 4, 8), Some(base + 8));
        assert_eq!(ram.look(8, 4, 9), None);
        assert_eq!(ram.look(22, 4, 0), None);
        assert_eq!(read(base + 8, 1), 8);
    }
}
