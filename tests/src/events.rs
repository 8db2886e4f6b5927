//! The channel to the host: one [`GuestEvent`] as JSON per line.

use crate::protocol::{CONSOLE_PREFIX, EVENT_PORT, GuestEvent};
use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where the kernel lists virtio-serial ports (drivers/char/virtio_console.c).
const PORTS: &str = "/sys/class/virtio-ports";

/// How long a port may take to appear: its name comes from the host by a message, after the kernel has started init.
const PORT_LIMIT: Duration = Duration::from_secs(2);

/// How often to look for it meanwhile.
const PORT_POLL: Duration = Duration::from_millis(10);

/// An open event channel; may be used from several threads.
#[derive(Debug)]
pub struct Events {
    sink: Mutex<File>,
    prefix: &'static str,
}

impl Events {
    /// The channel of a lab machine: the virtio-serial port, or the console if the machine has no such port.
    ///
    /// # Errors
    /// Neither can be opened.
    pub fn of_lab_machine() -> Result<Events> {
        match event_port(Path::new(PORTS), PORT_LIMIT).and_then(|port| open_device(&port, PORT_LIMIT).ok()) {
            Some(sink) => Ok(Events { sink: Mutex::new(sink), prefix: "" }),
            None => Events::on_console(),
        }
    }

    /// A channel that shares the console with the kernel's messages: each line carries [`CONSOLE_PREFIX`].
    ///
    /// # Errors
    /// There is no console.
    fn on_console() -> Result<Events> {
        let sink = OpenOptions::new().write(true).open("/dev/console").context("cannot open /dev/console")?;
        Ok(Events { sink: Mutex::new(sink), prefix: CONSOLE_PREFIX })
    }

    /// A channel into a file, which is made if need be.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn to_file(path: &Path) -> Result<Events> {
        let opened = OpenOptions::new().append(true).create(true).open(path);
        let sink = opened.with_context(|| format!("cannot write events to {}", path.display()))?;
        Ok(Events { sink: Mutex::new(sink), prefix: "" })
    }

    /// Sends one event. A channel that does not take it is reported on stderr; the host learns of it by the missing end.
    pub fn send(&self, event: &GuestEvent) {
        let written = line(self.prefix, event).and_then(|line| {
            // A thread that panicked while it held the lock has at worst left half a line.
            let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(sink.write_all(line.as_bytes())?)
        });
        if let Err(error) = written {
            eprintln!("lab-guest: the event channel does not take {event:?}: {error:#}");
        }
    }

    /// Sends a [`GuestEvent::Note`].
    pub fn note(&self, text: impl Into<String>) {
        self.send(&GuestEvent::Note { text: text.into() });
    }
}

/// One event as one line, in one piece: whole lines from several threads do not mix.
fn line(prefix: &str, event: &GuestEvent) -> Result<String> {
    Ok(format!("{prefix}{}\n", serde_json::to_string(event)?))
}

/// The device of the port named [`EVENT_PORT`], as soon as it is there.
fn event_port(ports: &Path, limit: Duration) -> Option<PathBuf> {
    let start = Instant::now();
    loop {
        if let Some(name) = named_port(ports) {
            return Some(Path::new("/dev").join(name));
        }
        if start.elapsed() > limit {
            return None;
        }
        std::thread::sleep(PORT_POLL);
    }
}

/// Which of `ports` has [`EVENT_PORT`] in its file `name`.
fn named_port(ports: &Path) -> Option<String> {
    let entries = fs::read_dir(ports).ok()?.flatten();
    let is_ours = |dir: &Path| fs::read_to_string(dir.join("name")).is_ok_and(|name| name.trim_end() == EVENT_PORT);
    entries.filter(|entry| is_ours(&entry.path())).find_map(|entry| entry.file_name().into_string().ok())
}

/// Opens a device whose file may still be on its way from sysfs to devtmpfs.
fn open_device(path: &Path, limit: Duration) -> Result<File> {
    let start = Instant::now();
    loop {
        match OpenOptions::new().write(true).open(path) {
            Err(_) if start.elapsed() < limit => std::thread::sleep(PORT_POLL),
            opened => return opened.with_context(|| format!("cannot open {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(done: u64) -> GuestEvent {
        GuestEvent::Progress { done, total: 800, unit: "iterations".into() }
    }

    #[test]
    fn the_port_is_found_by_its_name() {
        let ports = tempfile::tempdir().unwrap();
        assert_eq!(event_port(ports.path(), Duration::ZERO), None);
        for (port, name) in [("vport0p0", "org.qemu.guest_agent.0\n"), ("vport3p1", "lab.events\n"), ("vport4p1", "")] {
            fs::create_dir(ports.path().join(port)).unwrap();
            fs::write(ports.path().join(port).join("name"), name).unwrap();
        }
        assert_eq!(event_port(ports.path(), Duration::ZERO), Some("/dev/vport3p1".into()));
    }

    #[test]
    fn a_console_line_can_be_told_from_the_kernels() {
        let line = line(CONSOLE_PREFIX, &GuestEvent::Done).unwrap();
        assert_eq!(line, "@lab {\"event\":\"done\"}\n");
    }

    #[test]
    fn lines_of_many_threads_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let events = Events::to_file(&path).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let events = &events;
                scope.spawn(move || (0..100).for_each(|n| events.send(&progress(thread * 100 + n))));
            }
        });
        let text = fs::read_to_string(&path).unwrap();
        let mut seen: Vec<GuestEvent> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        seen.sort_by_key(|event| if let GuestEvent::Progress { done, .. } = event { *done } else { u64::MAX });
        assert_eq!(seen, (0..800).map(progress).collect::<Vec<_>>());
    }
}
