//! Where things are in the measured kernel: what the driver read from its vmlinux (pure).
//!
//! A text file, one line each: `function NAME START END`, `data NAME ADDRESS`, `entry ADDRESS`; addresses in hexadecimal, END excluded. Only
//! what evidence needs has a name; an `entry` is the first instruction of any function, by which a stack is known to lack a frame.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The kernel's symbols.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    functions: BTreeMap<String, Range<u64>>,
    data: BTreeMap<String, u64>,
    entries: BTreeSet<u64>,
}

impl Symbols {
    /// Reads the file's text.
    ///
    /// # Errors
    /// The line that is none of the three kinds.
    pub fn parse(text: &str) -> Result<Symbols, String> {
        let mut symbols = Symbols::default();
        for line in text.lines() {
            symbols.add(line).ok_or_else(|| format!("'{line}' is no symbol"))?;
        }
        Ok(symbols)
    }

    fn add(&mut self, line: &str) -> Option<()> {
        let hex = |word: &str| u64::from_str_radix(word, 16).ok();
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["function", name, start, end] => drop(self.functions.insert((*name).to_owned(), hex(start)?..hex(end)?)),
            ["data", name, address] => drop(self.data.insert((*name).to_owned(), hex(address)?)),
            ["entry", address] => drop(self.entries.insert(hex(address)?)),
            _ => return None,
        }
        Some(())
    }

    /// The named function in which an address lies.
    pub fn function_at(&self, address: u64) -> Option<(&str, &Range<u64>)> {
        self.functions.iter().find(|(_, range)| range.contains(&address)).map(|(name, range)| (name.as_str(), range))
    }

    /// Where a variable is.
    pub fn data(&self, name: &str) -> Option<u64> {
        self.data.get(name).copied()
    }

    /// Whether a function begins here.
    pub fn is_entry(&self, address: u64) -> bool {
        self.entries.contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_line_is_read() {
        let text = "function down_write ffffffff81000100 ffffffff81000140\ndata mount_lock ffffffff82000000\nentry ffffffff81000100\n";
        let symbols = Symbols::parse(text).unwrap();
        assert_eq!(symbols.function_at(0xffff_ffff_8100_013f).unwrap().0, "down_write");
        assert_eq!(symbols.function_at(0xffff_ffff_8100_0140), None);
        assert_eq!(symbols.data("mount_lock"), Some(0xffff_ffff_8200_0000));
        assert!(symbols.is_entry(0xffff_ffff_8100_0100) && !symbols.is_entry(0xffff_ffff_8100_0101));
    }

    #[test]
    fn another_line_is_named() {
        assert!(Symbols::parse("function x 1").unwrap_err().contains("'function x 1'"));
        assert!(Symbols::parse("data x zz").is_err());
    }
}
