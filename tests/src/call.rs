//! A system call as a trial reads it: it succeeded, or the kernel refused it with an errno.

use nix::errno::Errno;
use std::fmt;

/// What a trial and each of its steps return. An error is a failed trial, unless it is a [`Skip`].
pub type Verdict = anyhow::Result<()>;

/// A system call's outcome.
pub type Call<T = ()> = Result<T, Refusal>;

/// A call that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The call with its arguments, as strace would show it.
    pub call: String,
    /// The kernel's answer.
    pub errno: Errno,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {}", self.call, self.errno)
    }
}

impl std::error::Error for Refusal {}

/// Says which requirement of a trial this machine does not meet; see [`crate::requirement`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Names `result` after its call. Takes the error types of nix, rustix and the standard library.
pub fn named<T>(call: impl Into<String>, result: Result<T, impl Into<std::io::Error>>) -> Call<T> {
    result.map_err(|error| {
        let errno = error.into().raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        Refusal { call: call.into(), errno }
    })
}

/// What a trial says when a refusal is the right answer.
pub trait Refused {
    /// Holds if the kernel refused the call with exactly this errno.
    #[track_caller]
    fn refused_with(self, expected: Errno) -> Verdict;
}

impl<T> Refused for Call<T> {
    #[track_caller]
    fn refused_with(self, expected: Errno) -> Verdict {
        let here = std::panic::Location::caller();
        match self {
            Err(refusal) if refusal.errno == expected => Ok(()),
            Err(refusal) => anyhow::bail!("{here}: {refusal}; expected {expected}"),
            Ok(_) => anyhow::bail!("{here}: the call succeeded; expected {expected}"),
        }
    }
}

/// Holds if both values are equal; `what` names what was looked at.
#[track_caller]
pub fn same<T: PartialEq<U> + fmt::Debug, U: fmt::Debug>(what: &str, seen: T, expected: U) -> Verdict {
    let here = std::panic::Location::caller();
    anyhow::ensure!(seen == expected, "{here}: {what}: {seen:?}, expected {expected:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(errno: Errno) -> Call {
        Err(Refusal { call: "umount2(/a, 0)".into(), errno })
    }

    #[test]
    fn only_the_expected_errno_is_the_right_refusal() {
        assert!(refusal(Errno::EBUSY).refused_with(Errno::EBUSY).is_ok());
        let wrong = refusal(Errno::EINVAL).refused_with(Errno::EBUSY).unwrap_err().to_string();
        assert!(wrong.contains("umount2(/a, 0) failed: EINVAL"), "{wrong}");
        assert!(wrong.contains("expected EBUSY"), "{wrong}");
    }

    #[test]
    fn success_is_no_refusal() {
        let wrong = Call::<()>::Ok(()).refused_with(Errno::EBUSY).unwrap_err().to_string();
        assert!(wrong.contains("the call succeeded; expected EBUSY"), "{wrong}");
    }
}
