//! What a kernel's console says about its health. The policy itself is data of its own; here it is only applied.

/// Words that begin a panic (kernel/panic.c, `vpanic`).
const PANIC: &str = "Kernel panic - not syncing";

/// Words that no healthy kernel prints (kernel/panic.c, lib/bug.c, kernel/locking/lockdep.c, mm/kasan/report.c, kernel/rcu).
const SPLATS: [&str; 8] = [
    "WARNING: ",
    "BUG: ",
    "Oops: ",
    "INFO: task ",
    "INFO: possible recursive locking",
    "rcu: INFO: ",
    "kernel BUG at ",
    "general protection fault",
];

/// The first line that says that the kernel panicked.
pub fn panic_line(console: &str) -> Option<String> {
    console.lines().find(|line| line.contains(PANIC)).map(str::to_owned)
}

/// The lines that the splat policy does not allow.
pub fn judge(console: &str) -> Vec<String> {
    console.lines().filter(|line| SPLATS.iter().any(|splat| line.contains(splat))).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_found_behind_its_prefix() {
        let console = "<6>[0.1] Linux\n<0>[1.0] Kernel panic - not syncing: VFS\n<0>[1.1] end\n";
        assert_eq!(panic_line(console).unwrap(), "<0>[1.0] Kernel panic - not syncing: VFS");
        assert_eq!(panic_line("all is well\n"), None);
    }

    #[test]
    fn a_warning_of_the_kernel_is_a_splat() {
        assert_eq!(judge("<4>[1.0] WARNING: CPU: 0 PID: 1 at fs/namespace.c:1\nfine\n").len(), 1);
        assert!(judge("<4>[0.0] tsc: Unable to calibrate against PIT\n").is_empty());
    }
}
