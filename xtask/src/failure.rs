//! Everything that can go wrong, as an exit code and a message that says what to do next.

use std::fmt;

/// Exit codes. Scripts depend on them: a code is never reused for another meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well.
    Success = 0,
    /// A test failed, or the candidate is slower than the baseline.
    Regression = 1,
    /// The command line asks for something that does not exist.
    Usage = 2,
    /// A correctness oracle failed, so the number is withheld.
    Oracle = 3,
    /// The guest kernel panicked.
    GuestPanic = 4,
    /// The guest went silent for longer than its limit.
    GuestHang = 5,
    /// The machine went away under the guest (QEMU killed, crashed, or ended early).
    MachineDied = 6,
    /// The guest's console shows a splat.
    GuestSplat = 7,
    /// The source tree is not the base that kernels.toml names.
    WrongBase = 10,
    /// A patch of the series does not apply.
    PatchRejected = 11,
    /// A requested kconfig option did not take.
    ConfigVanished = 12,
    /// A results file is truncated or malformed.
    ResultsCorrupt = 13,
    /// The disk is too full for the next step.
    NoSpace = 14,
    /// The step needs root.
    NotRoot = 15,
    /// Another mountlab works in the same cache, measures the same run, or writes the same kept results.
    CacheBusy = 16,
    /// The machine, a tool, the source or the build is unavailable.
    Unavailable = 69,
    /// Measured, but the samples do not decide.
    Inconclusive = 75,
    /// Stopped by Ctrl-C.
    Interrupted = 130,
}

/// An error that ends the program with its own exit code.
#[derive(Debug)]
pub struct Failure {
    /// The process's exit code.
    pub exit: Exit,
    /// What failed, how, and what to do next.
    pub message: String,
}

impl Failure {
    /// A failure as an `anyhow::Error`, to be returned with `?` or `bail`.
    pub fn error(exit: Exit, message: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Failure { exit, message: message.into() })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The exit code that an error stands for: its innermost [`Failure`]'s, else "unavailable".
pub fn exit_code(error: &anyhow::Error) -> Exit {
    error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).map_or(Exit::Unavailable, |failure| failure.exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn context_keeps_the_exit_code() {
        let error = Err::<(), _>(Failure::error(Exit::NotRoot, "no root")).context("starting").unwrap_err();
        assert_eq!(exit_code(&error), Exit::NotRoot);
        assert_eq!(exit_code(&anyhow::anyhow!("else")), Exit::Unavailable);
    }
}
