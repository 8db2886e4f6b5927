//! What a series can have to do with: the functions of the files that it changes, and of those that include a header of theirs.

use super::apply::Overlay;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Functions, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Defined in a file that the series changes.
    changed: BTreeSet<String>,
    /// Defined in a file that includes a changed header: what is inline there is compiled into them.
    including: BTreeSet<String>,
}

impl Reach {
    /// Of changed files; nothing if they include a header of all the kernel, which reaches everything.
    pub fn of(base: &Path, overlay: &Overlay) -> Option<Reach> {
        let mut reach = Reach::default();
        for (path, text) in overlay {
            if path.starts_with("include/") || path.contains("/include/") {
                return None;
            }
            let before = fs::read_to_string(base.join(path)).unwrap_or_default();
            reach.changed.extend(functions(&before));
            reach.changed.extend(functions(text.as_deref().unwrap_or_default()));
            if let (Some(folder), Some(header)) = (Path::new(path).parent(), path.rsplit('/').next())
                && header.ends_with(".h")
            {
                including(&base.join(folder), header, &mut reach.including);
            }
        }
        Some(reach)
    }

    /// Whether it has to do with a report: with one of the two functions that it names, or with one that called them. What an interrupt
    /// interrupted has not called it.
    pub fn touches(&self, (one, other): (&str, &str), report: &str) -> bool {
        if [one, other].iter().any(|name| self.changed.contains(*name) || self.including.contains(*name)) {
            return true;
        }
        let mut interrupted = false;
        report.lines().any(|line| {
            let name = line.trim().split(['+', '.']).next().unwrap_or_default();
            // A stack begins below "read to 0x1 of 8 bytes by task 1 on cpu 0:".
            interrupted = !line.contains(" bytes by ") && (interrupted || name.starts_with("asm_"));
            !interrupted && self.changed.contains(name)
        })
    }
}

/// Adds the functions of the C files in a folder, and in folders of it, that include the header.
fn including(folder: &Path, header: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            including(&path, header, found);
        } else if path.extension().is_some_and(|extension| extension == "c") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let is_include = |line: &str| {
                let name = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
                name.is_some_and(|name| name.rsplit('/').next() == Some(header))
            };
            if text.lines().any(|line| is_include(line.trim())) {
                found.extend(functions(&text));
            }
        }
    }
}

/// Names of the functions that a source file defines, as the kernel's style has them: from the first column on. A line too many does no
/// harm: a macro's name is on no stack.
fn functions(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')) {
        let Some((head, rest)) = line.split_once('(').filter(|_| !line.trim_end().ends_with(';')) else { continue };
        let name: String = head.chars().rev().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let name: String = name.chars().rev().collect();
        if name.starts_with("SYSCALL_DEFINE") {
            let call = rest.split([',', ')']).next().unwrap_or_default().trim();
            found.extend(["__do_sys_", "__se_sys_", "__x64_sys_"].map(|prefix| format!("{prefix}{call}")));
        } else if !name.is_empty() {
            found.push(name);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMESPACE: &str = "#include \"mount.h\"\nstatic struct mount *skip(struct mount *m)\n{\n\tcall(m);\n}\n\
        EXPORT_SYMBOL(skip);\nSYSCALL_DEFINE2(umount, char __user *, name, int, flags)\n{\n}\nint declared(void);\nint\nalone(void)\n{\n}\n";

    fn reach(header: bool) -> Option<Reach> {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir_all(base.path().join("fs/proc")).unwrap();
        fs::write(base.path().join("fs/namespace.c"), NAMESPACE).unwrap();
        fs::write(
            base.path().join("fs/namei.c"),
            "#include \"internal.h\"\n#include \"mount.h\"\nint walk(int a)\n{\n}\n",
        )
        .unwrap();
        fs::write(base.path().join("fs/proc/root.c"), "#include \"../mount.h\"\nint show(int a)\n{\n}\n").unwrap();
        fs::write(base.path().join("fs/dcache.c"), "int lookup(int a)\n{\n}\n").unwrap();
        let changed = if header { "fs/mount.h" } else { "fs/namespace.c" };
        Reach::of(base.path(), &Overlay::from([(changed.to_owned(), Some("int added(int a)\n{\n".to_owned()))]))
    }

    #[test]
    fn functions_begin_in_the_first_column() {
        assert_eq!(functions(NAMESPACE), ["skip", "__do_sys_umount", "__se_sys_umount", "__x64_sys_umount", "alone"]);
    }

    #[test]
    fn a_report_is_touched_by_its_functions_and_by_their_callers() {
        let reach = reach(false).unwrap();
        assert!(reach.touches(("skip", "tick"), "") && reach.touches(("tick", "added"), ""));
        let stack = "read to 0x1 of 8 bytes by task 1 on cpu 0:\n lookup+0x1/0x2\n alone.isra.0+0x3/0x4\n";
        assert!(reach.touches(("lookup", "tick"), stack));
        assert!(!reach.touches(("lookup", "tick"), &stack.replace("alone", "walk")));
        let interrupted = stack.replace(" alone", " asm_sysvec_apic_timer_interrupt+0x1/0x2\n alone");
        assert!(!reach.touches(("lookup", "tick"), &interrupted));
        assert!(reach.touches(("lookup", "tick"), &(interrupted + stack)));
    }

    #[test]
    fn a_header_reaches_the_files_that_include_it_but_not_their_callers() {
        let reach = reach(true).unwrap();
        assert!(reach.touches(("walk", "tick"), "") && reach.touches(("show", "tick"), ""));
        assert!(!reach.touches(("lookup", "tick"), " walk+0x1/0x2\n"));
    }

    #[test]
    fn a_header_of_all_the_kernel_reaches_everything() {
        let overlay = Overlay::from([("include/linux/mount.h".to_owned(), Some(String::new()))]);
        assert_eq!(Reach::of(Path::new("/nowhere"), &overlay), None);
    }
}
