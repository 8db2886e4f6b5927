//! Allocations that fail on demand: each in its turn, or all below one function, for code that tries again
//! (Documentation/fault-injection/fault-injection.rst, "/proc/self/task/TID/fail-nth" and "require-start").

use crate::call::{Call, Refusal};
use crate::requirement;
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where debugfs is mounted: in the trial's own namespace, and outside of its scratch.
const DEBUGFS: &str = "/sys/kernel/debug";

/// More allocations than any call of a trial makes; one that makes more fails its trial.
const MOST: u32 = 2000;

/// What counts as an allocation. Whoever may wait for memory counts (all of a mount's allocations may), and nothing is said of it, because
/// a stack in the log would be a splat. Single pages do not count: slab takes them whenever a slab is full, so that a number would mean another
/// allocation in each run, and it complains when it gets none.
const CHOICE: [(&str, &str); 9] = [
    ("failslab/ignore-gfp-wait", "N"),
    ("failslab/verbose", "0"),
    ("fail_page_alloc/ignore-gfp-wait", "N"),
    ("fail_page_alloc/ignore-gfp-highmem", "N"),
    ("fail_page_alloc/min-order", "1"),
    ("fail_page_alloc/verbose", "0"),
    // For whoever says that it is to fail, in [`Faults::below`].
    ("failslab/task-filter", "Y"),
    ("failslab/interval", "1"),
    ("failslab/times", "-1"),
];

/// All of the kernel, as where an allocation may come from.
const ANYWHERE: (u64, u64) = (0, u64::MAX);

/// The injection of faults into this thread's calls.
#[derive(Debug)]
pub struct Faults {
    nth: File,
}

/// One call under a fault.
#[derive(Debug)]
pub struct Tried<T> {
    /// Which of its allocations was to fail, from 1.
    pub nth: u32,
    /// Whether it made so many.
    pub injected: bool,
    /// What came of the call.
    pub outcome: Call<T>,
}

impl Faults {
    /// Chooses what counts as an allocation, for this thread's calls.
    ///
    /// # Errors
    /// A [`crate::call::Skip`] where the kernel has no fault injection.
    pub fn of_this_thread() -> Result<Faults> {
        requirement::fault_injection()?;
        if !Path::new(DEBUGFS).join("failslab").exists() {
            nix::mount::mount(Some("debugfs"), DEBUGFS, Some("debugfs"), nix::mount::MsFlags::empty(), None::<&str>)
                .context("cannot mount debugfs")?;
        }
        CHOICE.iter().try_for_each(|(file, value)| set(file, value))?;
        let nth = OpenOptions::new().read(true).write(true).open("/proc/thread-self/fail-nth")?;
        Ok(Faults { nth })
    }

    /// Makes a call whose `nth` allocation fails. Whatever the call needs of user space must be there before: what the kernel does for
    /// this thread meanwhile, a page fault among it, counts.
    fn one<T>(&self, nth: u32, call: &mut dyn FnMut() -> rustix::io::Result<T>) -> Result<Tried<T>> {
        let wanted = nth.to_string();
        let mut left = [0; 16];
        self.nth.write_at(wanted.as_bytes(), 0).context("cannot write fail-nth")?;
        let outcome = call();
        let length = self.nth.read_at(&mut left, 0).context("cannot read fail-nth")?;
        self.nth.write_at(b"0", 0).context("cannot write fail-nth")?;
        let left = String::from_utf8_lossy(&left[..length]).trim().parse::<u32>().context("fail-nth is no number")?;
        let outcome = outcome.map_err(|errno| Refusal {
            call: format!("the call whose allocation {nth} fails"),
            errno: Errno::from_raw(errno.raw_os_error()),
        });
        Ok(Tried { nth, injected: left == 0, outcome })
    }

    /// Makes a call while every allocation fails that is made below a function of the kernel.
    ///
    /// # Errors
    /// The kernel has no such function, or has no filter for it.
    pub fn below<T>(&self, function: &str, call: impl FnOnce() -> rustix::io::Result<T>) -> Result<Call<T>> {
        from(addresses(function)?)?;
        set("failslab/probability", "100")?;
        fs::write("/proc/thread-self/make-it-fail", "1").context("cannot write make-it-fail")?;
        let outcome = call();
        fs::write("/proc/thread-self/make-it-fail", "0").context("cannot write make-it-fail")?;
        set("failslab/probability", "0")?;
        from(ANYWHERE)?;
        Ok(outcome.map_err(|errno| Refusal {
            call: format!("the call without memory below {function}()"),
            errno: Errno::from_raw(errno.raw_os_error()),
        }))
    }

    /// Makes a call again and again, its first allocation failing, then its second, and so on, until it makes no more and succeeds.
    /// `after` looks at each attempt, and undoes what succeeded. Returns how many allocations failed.
    ///
    /// # Errors
    /// Those of `after`; a call that is refused although nothing failed, or none of whose allocations can fail.
    pub fn each<T>(
        &self,
        mut call: impl FnMut() -> rustix::io::Result<T>,
        mut after: impl FnMut(Tried<T>) -> Result<()>,
    ) -> Result<u32> {
        for nth in 1..=MOST {
            let tried = self.one(nth, &mut call)?;
            if tried.injected {
                after(tried).with_context(|| format!("allocation {nth}"))?;
                continue;
            }
            if let Err(refusal) = tried.outcome {
                return Err(refusal).context("none of its allocations failed");
            }
            after(tried).context("nothing failed")?;
            ensure!(nth > 1, "the call makes no allocation that can fail");
            return Ok(nth - 1);
        }
        anyhow::bail!("the call makes more than {MOST} allocations")
    }
}

fn set(file: &str, value: &str) -> Result<()> {
    let file = Path::new(DEBUGFS).join(file);
    fs::write(&file, value).with_context(|| format!("cannot write {}", file.display()))
}

/// Chooses the code below which slab's allocations fail.
fn from((start, end): (u64, u64)) -> Result<()> {
    set("failslab/require-start", &format!("{start:#x}"))?;
    set("failslab/require-end", &format!("{end:#x}"))
}

/// Where a function of the kernel begins, and where the next one does.
fn addresses(function: &str) -> Result<(u64, u64)> {
    let symbols = fs::read_to_string("/proc/kallsyms").context("cannot read kallsyms")?;
    range(&symbols, function).with_context(|| format!("the kernel has no function {function}()"))
}

fn range(symbols: &str, function: &str) -> Option<(u64, u64)> {
    let symbol = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((address, words.nth(1)? == function))
    };
    let symbols: Vec<(u64, bool)> = symbols.lines().filter_map(symbol).collect();
    let start = symbols.iter().find(|(_, is_it)| *is_it)?.0;
    let end = symbols.iter().map(|(address, _)| *address).filter(|address| *address > start).min()?;
    Some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_ends_where_the_next_one_begins() {
        let symbols =
            "ffffffff81000020 T b\nffffffff81000010 T a\nffffffff81000010 t alias\nffffffff81000030 t a.cold\n";
        assert_eq!(range(symbols, "a"), Some((0xffff_ffff_8100_0010, 0xffff_ffff_8100_0020)));
        assert_eq!(range(symbols, "c"), None);
        assert_eq!(range(symbols, "a.cold"), None, "nothing follows");
    }
}
