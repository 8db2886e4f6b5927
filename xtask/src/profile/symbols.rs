//! A kernel's symbols, from its vmlinux: where the simulator has to look, and which function an address is in.

use anyhow::{Context, Result};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Functions whose calls are evidence (kernel/locking/rwsem.c, arch/x86/entry/entry_64.S, arch/x86/kernel/process_64.c,
/// kernel/rcu/tree_exp.h).
const FUNCTIONS: [&str; 11] = [
    "down_write",
    "down_write_killable",
    "down_read",
    "down_read_killable",
    "down_read_interruptible",
    "up_write",
    "up_read",
    "downgrade_write",
    "__switch_to_asm",
    "__switch_to",
    "synchronize_rcu_expedited",
];

/// Variables that are evidence (fs/namespace.c).
const DATA: [&str; 2] = ["namespace_sem", "mount_lock"];

/// Lowest address of the kernel's own text (`__START_KERNEL_map`); below is user space, as far as samples go.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// Symbols of one kernel.
#[derive(Debug, Default)]
pub struct Symbols {
    /// Start, size and name of each function.
    functions: BTreeMap<u64, (u64, String)>,
    data: BTreeMap<String, u64>,
}

impl Symbols {
    /// Reads a vmlinux.
    ///
    /// # Errors
    /// It cannot be read, or lacks a symbol that evidence needs.
    pub fn read(vmlinux: &Path) -> Result<Symbols> {
        let bytes = fs::read(vmlinux).with_context(|| format!("cannot read {}", vmlinux.display()))?;
        let file = object::File::parse(&*bytes).with_context(|| format!("{} is no ELF file", vmlinux.display()))?;
        let mut symbols = Symbols::default();
        for symbol in file.symbols() {
            let Ok(name) = symbol.name() else { continue };
            if is_function(&file, &symbol) {
                symbols.add_function(symbol.address(), symbol.size(), name);
            } else if DATA.contains(&name) {
                symbols.data.insert(name.to_owned(), symbol.address());
            }
        }
        symbols.check().with_context(|| format!("{}", vmlinux.display()))?;
        Ok(symbols)
    }

    /// Where several symbols share an address, the one with a size is the function and the others are its labels.
    fn add_function(&mut self, address: u64, size: u64, name: &str) {
        let known = self.functions.get(&address).map_or(0, |(size, _)| *size);
        if size > known || !self.functions.contains_key(&address) {
            self.functions.insert(address, (size, name.to_owned()));
        }
    }

    fn check(&self) -> Result<()> {
        let missing = |name: &&&str| !self.data.contains_key(**name) && !self.has_function(name);
        // These two are fast paths that a configuration may leave out.
        let needed = DATA.iter().chain(&FUNCTIONS).filter(|name| !name.ends_with("able"));
        match needed.clone().find(missing) {
            Some(name) => anyhow::bail!("there is no symbol {name}: evidence would be about something else"),
            None => Ok(()),
        }
    }

    fn has_function(&self, name: &str) -> bool {
        self.functions.values().any(|(_, found)| found == name)
    }

    /// The file that the simulator reads (simulator/src/symbols.rs).
    pub fn for_simulator(&self) -> String {
        let mut text = String::new();
        for (start, (size, name)) in &self.functions {
            let _ = writeln!(text, "entry {start:x}");
            if FUNCTIONS.contains(&name.as_str()) {
                let _ = writeln!(text, "function {name} {start:x} {:x}", start + size);
            }
        }
        for (name, address) in &self.data {
            let _ = writeln!(text, "data {name} {address:x}");
        }
        text
    }

    /// The function that an address is in; user space has no names. A function of unknown size, written in assembly, reaches to the next one.
    pub fn name(&self, address: u64) -> &str {
        if address < KERNEL_MAP {
            return "user space";
        }
        match self.functions.range(..=address).next_back() {
            Some((start, (size, name))) if *size == 0 || address < start + size => plain(name),
            _ => "unknown",
        }
    }
}

/// Functions have a size, labels of assembly code have none and lie in executable sections all the same.
fn is_function<'data>(file: &object::File<'data>, symbol: &object::Symbol<'data, '_>) -> bool {
    let is_code = || {
        let section = symbol.section_index().and_then(|index| file.section_by_index(index).ok());
        section.is_some_and(|section| section.kind() == SectionKind::Text)
    };
    match symbol.kind() {
        SymbolKind::Text => true,
        SymbolKind::Unknown | SymbolKind::Label => is_code(),
        _ => false,
    }
}

/// A function's name without what the compiler has added to its parts and copies (`.constprop.0`, `.isra.0`, `.cold`).
fn plain(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols() -> Symbols {
        let function = |start: u64, size: u64, name: &str| (KERNEL_MAP + start, (size, name.to_owned()));
        Symbols {
            functions: [function(0x100, 0x40, "down_write"), function(0x200, 0x10, "d_walk.constprop.0")].into(),
            data: [("mount_lock".to_owned(), KERNEL_MAP + 0x9000)].into(),
        }
    }

    #[test]
    fn addresses_have_names() {
        let symbols = symbols();
        assert_eq!(symbols.name(KERNEL_MAP + 0x13f), "down_write");
        assert_eq!(symbols.name(KERNEL_MAP + 0x140), "unknown");
        assert_eq!(symbols.name(KERNEL_MAP + 0x205), "d_walk");
        assert_eq!(symbols.name(0x40_1000), "user space");
        let mut symbols = symbols;
        symbols.add_function(KERNEL_MAP + 0x300, 0, "entry_SYSCALL_64");
        symbols.add_function(KERNEL_MAP + 0x100, 0, "a_label");
        assert_eq!(symbols.name(KERNEL_MAP + 0x377), "entry_SYSCALL_64");
        assert_eq!(symbols.name(KERNEL_MAP + 0x100), "down_write");
    }

    #[test]
    fn the_simulator_is_told_what_it_needs() {
        let text = symbols().for_simulator();
        assert!(text.contains("function down_write ffffffff80000100 ffffffff80000140\n"), "{text}");
        assert!(text.contains("data mount_lock ffffffff80009000\n") && text.contains("entry ffffffff80000200\n"));
        assert!(!text.contains("d_walk"));
    }

    #[test]
    fn a_kernel_without_the_locks_is_refused() {
        assert!(symbols().check().unwrap_err().to_string().contains("no symbol namespace_sem"));
    }
}
