//! The one folder outside the checkout that mountlab writes to, and the lock on it.

use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// `$XDG_CACHE_HOME/mountlab`, locked: two commands at once would build into each other's folders.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    lock: File,
}

impl Cache {
    /// Opens and locks the user's cache folder.
    ///
    /// # Errors
    /// Another mountlab holds it, or it cannot be made.
    pub fn lock() -> Result<Cache> {
        Cache::lock_at(&folder(std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from), std::env::home_dir())?)
    }

    /// Opens and locks another folder.
    ///
    /// # Errors
    /// As [`Cache::lock`].
    pub fn lock_at(dir: &Path) -> Result<Cache> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make the cache folder {}", dir.display()))?;
        let path = dir.join("lock");
        let mut lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(busy(dir, &mut lock)),
            Err(TryLockError::Error(error)) => return Err(error).context(format!("cannot lock {}", path.display())),
        }
        lock.set_len(0)?;
        lock.rewind()?;
        write!(lock, "{}", std::process::id())?;
        Ok(Cache { dir: dir.to_owned(), lock })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A second handle of the lock, which children inherit: make's own children outlive a driver that is killed, and while they write into the
    /// cache nobody else may.
    ///
    /// # Errors
    /// There are too many open files.
    pub fn share_lock(&self) -> Result<OwnedFd> {
        // dup(2) leaves FD_CLOEXEC off.
        nix::unistd::dup(&self.lock).context("cannot share the cache's lock")
    }

    /// Makes sure that so many MiB are free before a step that needs them.
    ///
    /// # Errors
    /// The disk is too full: says what is needed and what is free.
    pub fn need_space(&self, needed_mib: u64, what: &str) -> Result<()> {
        let free = nix::sys::statvfs::statvfs(&self.dir)?;
        let free_mib = free.blocks_available() * free.fragment_size() / (1 << 20);
        enough(&self.dir, needed_mib, free_mib, what)
    }
}

/// `error` as "no disk space" if that is what its command's log says: make and tar exit with their own codes.
pub fn or_no_space(error: anyhow::Error) -> anyhow::Error {
    let message = format!("{error:#}");
    if message.contains("No space left on device") { Failure::error(Exit::NoSpace, message) } else { error }
}

fn folder(xdg: Option<PathBuf>, home: Option<PathBuf>) -> Result<PathBuf> {
    let cache = xdg.filter(|dir| dir.is_absolute()).or_else(|| home.map(|home| home.join(".cache")));
    Ok(cache.context("neither XDG_CACHE_HOME nor HOME is set: there is no place for the cache")?.join("mountlab"))
}

fn busy(dir: &Path, lock: &mut File) -> anyhow::Error {
    let mut holder = String::new();
    let _ = lock.read_to_string(&mut holder);
    let dir = dir.display();
    let message = format!(
        "another mountlab (process {holder}) works in {dir}\n\
         next: wait for it, or give this one a cache of its own with XDG_CACHE_HOME=DIR"
    );
    Failure::error(Exit::CacheBusy, message)
}

fn enough(dir: &Path, needed_mib: u64, free_mib: u64, what: &str) -> Result<()> {
    if free_mib >= needed_mib {
        return Ok(());
    }
    let dir = dir.display();
    let message = format!(
        "{what} needs {needed_mib} MiB in {dir}, and {free_mib} MiB are free\n\
         next: free some space, or put the cache elsewhere with XDG_CACHE_HOME=DIR"
    );
    Err(Failure::error(Exit::NoSpace, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;
    use std::time::Duration;

    #[test]
    fn the_second_one_is_told_who_holds_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Cache::lock_at(dir.path()).unwrap();
        let error = Cache::lock_at(dir.path()).unwrap_err();
        assert_eq!(exit_code(&error), Exit::CacheBusy);
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    }

    #[test]
    fn a_lock_lives_as_long_as_the_builds_that_share_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::lock_at(dir.path()).unwrap();
        let shared = cache.share_lock().unwrap();
        let mut build = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        drop((cache, shared));
        assert_eq!(exit_code(&Cache::lock_at(dir.path()).unwrap_err()), Exit::CacheBusy);
        build.kill().unwrap();
        build.wait().unwrap();
        // Children of other tests may have been started meanwhile, and share it too.
        let is_free =
            || Cache::lock_at(dir.path()).is_ok() || (std::thread::sleep(Duration::from_millis(100)), false).1;
        assert!((0..200).any(|_| is_free()));
    }

    #[test]
    fn a_dropped_lock_is_free() {
        let dir = tempfile::tempdir().unwrap();
        drop(Cache::lock_at(dir.path()).unwrap());
        Cache::lock_at(dir.path()).unwrap();
    }

    #[test]
    fn a_full_disk_says_how_full() {
        let error = enough(Path::new("/c"), 3000, 287, "unpacking the kernel").unwrap_err();
        assert_eq!(exit_code(&error), Exit::NoSpace);
        assert!(error.to_string().contains("needs 3000 MiB") && error.to_string().contains("287 MiB are free"));
        assert!(enough(Path::new("/c"), 287, 287, "x").is_ok());
    }

    #[test]
    fn a_disk_that_fills_up_on_the_way_is_told_apart() {
        let error = || anyhow::anyhow!("`make` ended with exit status 2\n  | as: can't write: No space left on device");
        assert_eq!(exit_code(&or_no_space(error())), Exit::NoSpace);
        assert_eq!(exit_code(&or_no_space(anyhow::anyhow!("x"))), Exit::Unavailable);
    }

    #[test]
    fn xdg_comes_before_home() {
        let folder = |xdg: Option<&str>, home: Option<&str>| folder(xdg.map(Into::into), home.map(Into::into));
        assert_eq!(folder(Some("/x"), Some("/h")).unwrap(), Path::new("/x/mountlab"));
        assert_eq!(folder(Some("relative"), Some("/h")).unwrap(), Path::new("/h/.cache/mountlab"));
        assert!(folder(None, None).is_err());
    }
}
