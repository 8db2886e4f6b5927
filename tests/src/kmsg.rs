//! The kernel's log around a trial: a marker before it, and every record that came after.

use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;

/// The text of a marker; the driver finds a trial in the console by it.
pub const MARKER: &str = "lab: trial ";

/// A record is at most CONSOLE_EXT_LOG_MAX, that is 8192 bytes (kernel/printk/printk.c).
const RECORD_BYTES: usize = 8192;

/// A place in the kernel's log.
#[derive(Debug)]
pub struct Kmsg {
    log: File,
}

impl Kmsg {
    /// Writes the marker of a trial and starts reading behind everything that was there before.
    ///
    /// # Errors
    /// When /dev/kmsg cannot be read: then no splat would be seen, and no trial may count as passed.
    pub fn mark(trial: &str) -> Result<Kmsg> {
        let open = |options: &mut OpenOptions| options.open("/dev/kmsg").context("cannot open /dev/kmsg");
        let mut log = open(OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK))?;
        log.seek(SeekFrom::End(0)).context("cannot go to the end of /dev/kmsg")?;
        // Each opening has its own rate limit (devkmsg_write), so a marker is never dropped for those before it.
        let marker = format!("<6>{MARKER}{trial}\n");
        open(OpenOptions::new().write(true))?.write_all(marker.as_bytes()).context("cannot write to /dev/kmsg")?;
        Ok(Kmsg { log })
    }

    /// The records since the last look, one per line, in /dev/kmsg's own form.
    ///
    /// # Errors
    /// When the log ran over, so that records are lost.
    pub fn records(&mut self) -> Result<String> {
        let mut records = String::new();
        let mut record = [0; RECORD_BYTES];
        loop {
            match self.log.read(&mut record) {
                Ok(0) => return Ok(records),
                Ok(length) => records.push_str(&String::from_utf8_lossy(&record[..length])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(records),
                Err(error) => return Err(error).context("cannot read /dev/kmsg: records of this trial may be lost"),
            }
        }
    }
}
