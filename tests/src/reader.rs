//! Readers: what the rest of a host does while containers start, and how long that takes it. Each is one thread that does its work again
//! and again, a little before the storm, to know what it costs in quiet, and while the storm runs.

use crate::metrics::latency;
use crate::mount_events::MountEvents;
use crate::mount_tree;
use crate::phase::{Moment, Stage};
use crate::protocol::{Reader, ReaderSample};
use crate::storage::BASE;
use crate::sys::{listmount, statmount};
use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_timerslack;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long readers are measured in quiet before each timed iteration.
const QUIET: Duration = Duration::from_millis(50);

/// Pause between two turns of a reader that looks at everything.
const PERIOD: Duration = Duration::from_millis(1);

/// By how much a sleep may be longer than asked for: not by 50 us, which it may be otherwise (PR_SET_TIMERSLACK, prctl(2)).
const TIMER_SLACK_NS: u64 = 1;

/// How long a poll for changes of the mount table waits, so that the reader sees the end of the storm.
const POLL_LIMIT_MS: u8 = 20;

/// listmount(2) of all mounts of the namespace (LSMT_ROOT, include/uapi/linux/mount.h).
const LSMT_ROOT: u64 = u64::MAX;

/// STATMOUNT_SB_BASIC | STATMOUNT_MNT_BASIC (include/uapi/linux/mount.h): what `findmnt` would ask for first.
const BASIC: u64 = 0x1 | 0x2;

/// Mounts that one turn of the listmount reader asks about.
const LISTED: usize = 64;

/// How often openat2(2) is asked again in one look before that is taken for a kernel that never answers: some seconds of calls that do nothing
/// else.
const MOST_AGAIN: u64 = 1_000_000;

/// What one reader has seen.
#[derive(Default)]
struct Seen {
    before_ns: Vec<u64>,
    during_ns: Vec<u64>,
    again: u64,
}

/// Who reads, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Readers<'a> {
    /// Who.
    pub who: &'a [Reader],
    /// Pause of those whose look is short; the others pause for a millisecond.
    pub period: Duration,
}

/// Runs a storm with these readers around it. What they see before it begins is quiet, and what they see while it runs, of which it tells
/// by its stage, is the storm; what they see while it is prepared is neither.
///
/// # Errors
/// The storm's, or a reader's work that fails.
pub fn around<T>(
    readers: Readers<'_>,
    storm: impl FnOnce(&Stage) -> Result<T>,
) -> Result<(T, BTreeMap<String, ReaderSample>)> {
    let Readers { who: readers, period } = readers;
    let stage = Stage::default();
    if readers.is_empty() {
        return Ok((storm(&stage)?, BTreeMap::new()));
    }
    let place = Place::make()?;
    let (result, seen) = std::thread::scope(|scope| {
        let start = |reader: &Reader| {
            let (reader, place, stage) = (*reader, &place, &stage);
            let period = if reader.is_short() { period } else { PERIOD };
            scope.spawn(move || read_until_over(reader, period, place, stage))
        };
        let threads: Vec<_> = readers.iter().map(start).collect();
        std::thread::sleep(QUIET);
        stage.reach(Moment::Preparing);
        let result = storm(&stage);
        // A storm that failed may not have come so far.
        stage.reach(Moment::Over);
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Seen>>| match thread.join() {
            Ok(seen) => seen,
            Err(_) => bail!("a reader panicked"),
        };
        (result, threads.into_iter().map(join).collect::<Result<Vec<Seen>>>())
    });
    let result = result?;
    let mut samples = BTreeMap::new();
    for (reader, seen) in readers.iter().zip(seen?) {
        samples.insert(reader.name().to_owned(), sample(&seen)?);
    }
    Ok((result, samples))
}

fn sample(seen: &Seen) -> Result<ReaderSample> {
    Ok(ReaderSample {
        before: latency(seen.before_ns.iter().copied())?,
        during: latency(seen.during_ns.iter().copied())?,
        again: seen.again,
    })
}

fn read_until_over(reader: Reader, period: Duration, place: &Place, stage: &Stage) -> Result<Seen> {
    set_timerslack(TIMER_SLACK_NS).context("prctl(PR_SET_TIMERSLACK)")?;
    let mut seen = Seen::default();
    let mut sources = Sources::open(reader)?;
    loop {
        let now = stage.now();
        if now == Moment::Over {
            return Ok(seen);
        }
        let start = Instant::now();
        let done = turn(reader, place, &mut sources, &mut seen.again)
            .with_context(|| format!("the reader {}", reader.name()))?;
        let elapsed_ns = start.elapsed().as_nanos() as u64;
        if let Some(waited) = done {
            let took_ns = elapsed_ns.saturating_sub(waited.as_nanos() as u64);
            match now {
                Moment::Quiet => seen.before_ns.push(took_ns),
                Moment::Running => seen.during_ns.push(took_ns),
                Moment::Preparing | Moment::Over => {}
            }
        }
        std::thread::sleep(period);
    }
}

/// One turn; how much of it was waiting for something to happen, or nothing if nothing did.
fn turn(reader: Reader, place: &Place, sources: &mut Sources, again: &mut u64) -> Result<Option<Duration>> {
    match reader {
        Reader::Stat => {
            fs::metadata(&place.file)?;
            drop(File::open(&place.file)?);
        }
        Reader::Mountinfo => read_all(&mut sources.mountinfo)?,
        Reader::Listmount => list()?,
        Reader::Openat2 => *again += open_in_root(place)?,
        Reader::Poll => {
            let Some(waited) = wait_for(PollFd::new(sources.mountinfo.as_fd(), PollFlags::POLLPRI))? else {
                return Ok(None);
            };
            *again += 1;
            read_all(&mut sources.mountinfo)?;
            return Ok(Some(waited));
        }
        Reader::Fanotify => {
            let stream = sources.events.as_ref().context("no stream of mount events is open")?;
            let Some(waited) = wait_for(PollFd::new(stream.as_fd(), PollFlags::POLLIN))? else { return Ok(None) };
            *again += stream.drain()?.len() as u64;
            return Ok(Some(waited));
        }
    }
    Ok(Some(Duration::ZERO))
}

/// Waits for what `awaited` names; how long, or nothing if it did not happen within [`POLL_LIMIT_MS`].
fn wait_for(awaited: PollFd<'_>) -> Result<Option<Duration>> {
    let start = Instant::now();
    let ready = poll(&mut [awaited], PollTimeout::from(POLL_LIMIT_MS))?;
    Ok((ready > 0).then(|| start.elapsed()))
}

/// What a reader keeps open.
struct Sources {
    mountinfo: File,
    /// Only for the reader of it: a namespace that nobody watches makes no events.
    events: Option<MountEvents>,
}

impl Sources {
    fn open(reader: Reader) -> Result<Sources> {
        let events = match reader {
            Reader::Fanotify => Some(MountEvents::of_namespace(File::open("/proc/thread-self/ns/mnt")?)?),
            _ => None,
        };
        let mountinfo = File::open("/proc/self/mountinfo").context("cannot open /proc/self/mountinfo")?;
        Ok(Sources { mountinfo, events })
    }
}

/// As systemd and the kubelet do: all of it, from the beginning.
fn read_all(mountinfo: &mut File) -> Result<()> {
    mountinfo.rewind()?;
    let mut text = String::new();
    mountinfo.read_to_string(&mut text)?;
    mount_tree::parse(&text).map(drop)
}

fn list() -> Result<()> {
    let mut ids = [0; LISTED];
    let count = listmount(LSMT_ROOT, 0, &mut ids).context("listmount")?;
    for id in &ids[..count] {
        match statmount(*id, BASIC) {
            // A mount that was listed may be gone by now.
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error).context("statmount"),
            _ => {}
        }
    }
    Ok(())
}

/// Opens a file by a path with `..` in it, below a root; returns how often the kernel wanted to be asked again (EAGAIN: something was mounted
/// or renamed meanwhile, openat2(2)).
fn open_in_root(place: &Place) -> Result<u64> {
    let root = File::open(&place.root)?;
    let mut again = 0;
    loop {
        match openat2(&root, "a/b/../b/file", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(_) => return Ok(again),
            Err(Errno::AGAIN) if again < MOST_AGAIN => again += 1,
            Err(error) => {
                return Err(error).with_context(|| format!("openat2(RESOLVE_IN_ROOT), asked {again} times again"));
            }
        }
    }
}

/// A folder that no storm touches; removed on drop.
struct Place {
    root: PathBuf,
    file: PathBuf,
}

impl Place {
    fn make() -> Result<Place> {
        // A process may read in several storms at once.
        static PLACES: AtomicU32 = AtomicU32::new(0);
        let number = PLACES.fetch_add(1, Ordering::Relaxed);
        let root = Path::new(BASE).join(format!("readers-{}-{number}", std::process::id()));
        fs::create_dir_all(root.join("a/b"))?;
        let file = root.join("a/b/file");
        fs::write(&file, "healthy\n")?;
        Ok(Place { root, file })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_ms(who: &[Reader]) -> Readers<'_> {
        Readers { who, period: PERIOD }
    }

    #[test]
    fn a_short_look_is_repeated_as_often_as_asked_and_another_is_not() {
        let looks = |reader: Reader, period| {
            let start = Instant::now();
            let storm = |stage: &Stage| {
                stage.reach(Moment::Running);
                std::thread::sleep(Duration::from_millis(40));
                Ok(())
            };
            let ((), samples) = around(Readers { who: &[reader], period }, storm).unwrap();
            let count = samples[reader.name()].during.as_ref().map_or(0, |latency| latency.count);
            (count, start.elapsed())
        };
        let often = Duration::from_micros(50);
        assert!(looks(Reader::Stat, often).0 > 4 * looks(Reader::Stat, Duration::from_millis(10)).0);
        // All of mountinfo is read once a millisecond at most, whatever was asked.
        let (count, elapsed) = looks(Reader::Mountinfo, often);
        assert!(PERIOD * count as u32 <= elapsed + PERIOD, "{count} looks in {elapsed:?}");
    }

    #[test]
    fn each_reader_reads_in_quiet_and_in_the_storm() {
        let readers = [Reader::Stat, Reader::Mountinfo, Reader::Openat2];
        let ((), samples) = around(every_ms(&readers), |stage| {
            stage.reach(Moment::Running);
            std::thread::sleep(Duration::from_millis(30));
            Ok(())
        })
        .unwrap();
        for reader in readers {
            let sample = &samples[reader.name()];
            let counts =
                [&sample.before, &sample.during].map(|latency| latency.as_ref().map_or(0, |latency| latency.count));
            assert!(counts.iter().all(|count| *count > 2), "{}: {counts:?}", reader.name());
        }
    }

    #[test]
    fn what_is_seen_while_a_storm_is_prepared_and_after_it_is_not_of_the_storm() {
        let ((), samples) = around(every_ms(&[Reader::Stat]), |stage| {
            std::thread::sleep(Duration::from_millis(10));
            stage.reach(Moment::Over);
            std::thread::sleep(Duration::from_millis(10));
            Ok(())
        })
        .unwrap();
        assert!(samples["stat"].before.is_some() && samples["stat"].during.is_none(), "{:?}", samples["stat"]);
    }

    #[test]
    fn a_poll_that_sees_nothing_measures_nothing() {
        let ((), samples) = around(every_ms(&[Reader::Poll]), |_| Ok(())).unwrap();
        assert!(samples["poll"].before.is_none() && samples["poll"].again == 0);
    }

    #[test]
    fn without_readers_there_is_only_the_storm() {
        let (value, samples) = around(every_ms(&[]), |_| Ok(7)).unwrap();
        assert!(value == 7 && samples.is_empty());
    }

    #[test]
    fn a_failed_storm_ends_its_readers() {
        let result = around(every_ms(&[Reader::Stat]), |_| -> Result<()> { bail!("EBUSY") });
        assert_eq!(result.unwrap_err().to_string(), "EBUSY");
    }
}
