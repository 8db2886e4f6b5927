//! fanotify(7) events of one mount namespace: which mounts were attached to it and detached from it, by unique id. Linux 6.15 and later.
//!
//! The kernel puts each event into the queue before the call that made it returns (`notify_mnt_list()` in `namespace_unlock()`,
//! fs/namespace.c), so a queue that is read after the storm holds all of it.

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use nix::unistd::read;
use std::os::fd::{AsFd, BorrowedFd};

/// FAN_REPORT_MNT (include/uapi/linux/fanotify.h).
const FAN_REPORT_MNT: u32 = 0x4000;
/// FAN_MARK_MNTNS (include/uapi/linux/fanotify.h).
const FAN_MARK_MNTNS: u32 = 0x0110;
/// FAN_MNT_ATTACH (include/uapi/linux/fanotify.h).
const FAN_MNT_ATTACH: u64 = 0x0100_0000;
/// FAN_MNT_DETACH (include/uapi/linux/fanotify.h).
const FAN_MNT_DETACH: u64 = 0x0200_0000;
/// FAN_Q_OVERFLOW (include/uapi/linux/fanotify.h).
const FAN_Q_OVERFLOW: u64 = 0x4000;
/// FAN_EVENT_INFO_TYPE_MNT (include/uapi/linux/fanotify.h).
const FAN_EVENT_INFO_TYPE_MNT: u8 = 7;

/// Bytes of one read(2): some thousand events.
const BUFFER_BYTES: usize = 64 << 10;

/// What happened to a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MountEvent {
    /// It was attached: its unique id.
    Attached(u64),
    /// It was detached.
    Detached(u64),
    /// It was attached elsewhere in the same namespace.
    Moved(u64),
    /// The queue was full: events are missing.
    Overflow,
}

/// The stream of one namespace.
#[derive(Debug)]
pub struct MountEvents {
    group: Fanotify,
}

impl MountEvents {
    /// Events of the mount namespace that `namespace` (a file of nsfs) stands for, from now on. The queue has no limit.
    ///
    /// # Errors
    /// Linux before 6.15, no CONFIG_FANOTIFY, or not root.
    pub fn of_namespace(namespace: impl AsFd) -> Result<MountEvents> {
        let queue = InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK | InitFlags::FAN_UNLIMITED_QUEUE;
        let group = Fanotify::init(queue | InitFlags::from_bits_retain(FAN_REPORT_MNT), EventFFlags::empty())
            .context("fanotify_init(FAN_REPORT_MNT)")?;
        let mark = MarkFlags::FAN_MARK_ADD | MarkFlags::from_bits_retain(FAN_MARK_MNTNS);
        let mask = MaskFlags::from_bits_retain(FAN_MNT_ATTACH | FAN_MNT_DETACH);
        group.mark(mark, mask, namespace, None::<&str>).context("fanotify_mark(FAN_MARK_MNTNS)")?;
        Ok(MountEvents { group })
    }

    /// All events since the last call, in their order. Does not wait.
    ///
    /// # Errors
    /// read(2) failed, or an event is not understood.
    pub fn drain(&self) -> Result<Vec<MountEvent>> {
        let (mut events, mut buffer) = (Vec::new(), vec![0; BUFFER_BYTES]);
        loop {
            match read(&self.group, &mut buffer) {
                Ok(0) | Err(Errno::EAGAIN) => return Ok(events),
                Ok(length) => parse(&buffer[..length], &mut events)?,
                Err(error) => return Err(error).context("cannot read mount events"),
            }
        }
    }
}

impl AsFd for MountEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }
}

/// `struct fanotify_event_metadata` (24 bytes) and behind it `struct fanotify_event_info_mnt` (16 bytes), again and again.
fn parse(mut bytes: &[u8], events: &mut Vec<MountEvent>) -> Result<()> {
    while !bytes.is_empty() {
        let length = u32_at(bytes, 0)? as usize;
        ensure!((24..=bytes.len()).contains(&length), "an event of {length} bytes in {} bytes", bytes.len());
        events.push(event(&bytes[..length])?);
        bytes = &bytes[length..];
    }
    Ok(())
}

fn event(bytes: &[u8]) -> Result<MountEvent> {
    let mask = u64_at(bytes, 8)?;
    if mask & FAN_Q_OVERFLOW != 0 {
        return Ok(MountEvent::Overflow);
    }
    let info_type = bytes.get(24).copied();
    ensure!(info_type == Some(FAN_EVENT_INFO_TYPE_MNT), "an event names no mount: info type {info_type:?}");
    let id = u64_at(bytes, 32)?;
    match (mask & FAN_MNT_ATTACH != 0, mask & FAN_MNT_DETACH != 0) {
        (true, false) => Ok(MountEvent::Attached(id)),
        (false, true) => Ok(MountEvent::Detached(id)),
        (true, true) => Ok(MountEvent::Moved(id)),
        (false, false) => bail!("an event of mount {id} with the mask {mask:#x}"),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    Ok(u32::from_ne_bytes(word.context("an event is cut off")?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
    Ok(u64::from_ne_bytes(word.context("an event is cut off")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(mask: u64, info_type: u8, id: u64) -> Vec<u8> {
        let mut bytes = 40_u32.to_ne_bytes().to_vec();
        bytes.extend([3, 0, 24, 0]);
        bytes.extend(mask.to_ne_bytes());
        bytes.extend((-1_i32).to_ne_bytes());
        bytes.extend(7_i32.to_ne_bytes());
        bytes.extend([info_type, 0, 16, 0, 0, 0, 0, 0]);
        bytes.extend(id.to_ne_bytes());
        bytes
    }

    fn parsed(bytes: &[u8]) -> Result<Vec<MountEvent>> {
        let mut events = Vec::new();
        parse(bytes, &mut events).map(|()| events)
    }

    #[test]
    fn events_follow_each_other() {
        let (attach, detach) = (FAN_MNT_ATTACH, FAN_MNT_DETACH);
        let all = [bytes(attach, 7, 1), bytes(detach, 7, 2), bytes(attach | detach, 7, 3)].concat();
        let events = parsed(&all).unwrap();
        assert_eq!(events, [MountEvent::Attached(1), MountEvent::Detached(2), MountEvent::Moved(3)]);
    }

    #[test]
    fn an_overflow_is_an_event() {
        let overflow = &mut bytes(FAN_Q_OVERFLOW, 0, 0)[..24];
        overflow[0] = 24;
        assert_eq!(parsed(overflow).unwrap(), [MountEvent::Overflow]);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert!(parsed(&bytes(FAN_MNT_ATTACH, 1, 5)).is_err());
        assert!(parsed(&bytes(0, 7, 5)).is_err());
        assert!(parsed(&bytes(FAN_MNT_ATTACH, 7, 5)[..30]).is_err());
    }
}
