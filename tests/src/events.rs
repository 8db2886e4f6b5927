//! The guest's voice: one JSON line per event, on the virtio-serial port, in a file, or on the console.

use crate::protocol::{CONSOLE_PREFIX, EVENT_PORT, GuestEvent};
use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often the host hears from a guest that is busy; the host takes longer silence for a hang.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Where events go. Clones speak on the same channel, whole lines each.
#[derive(Clone)]
pub struct Events {
    output: Arc<Mutex<File>>,
    prefix: &'static str,
}

impl Events {
    /// A file: virtme-ng and the host machine read it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn to_file(path: &Path) -> Result<Events> {
        let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Events { output: Arc::new(Mutex::new(file)), prefix: "" })
    }

    /// The virtio-serial port called [`EVENT_PORT`]; without one the console, each line prefixed.
    ///
    /// # Errors
    /// Neither can be opened.
    pub fn of_machine() -> Result<Events> {
        let (path, prefix) = match event_port(Path::new("/sys/class/virtio-ports")) {
            Some(port) => (port, ""),
            None => (PathBuf::from("/dev/console"), CONSOLE_PREFIX),
        };
        let file =
            OpenOptions::new().write(true).open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Events { output: Arc::new(Mutex::new(file)), prefix })
    }

    /// Says one thing. A host that no longer listens is no reason to stop: there is nobody to tell.
    pub fn say(&self, event: &GuestEvent) {
        let Ok(json) = serde_json::to_string(event) else { return };
        let line = format!("{}{json}\n", self.prefix);
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = output.write_all(line.as_bytes());
    }

    /// Repeats `progress` each second until the returned guard is dropped.
    pub fn heartbeat(&self, progress: GuestEvent) -> Heartbeat {
        let stop = Arc::new(AtomicBool::new(false));
        let (events, stopped) = (self.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            // Spoken at least once, however short the work is: a host that waits for the first sign must get it.
            loop {
                events.say(&progress);
                std::thread::park_timeout(HEARTBEAT);
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        Heartbeat { stop, thread: Some(thread) }
    }
}

/// Keeps the host informed while it lives.
pub struct Heartbeat {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// `/dev/vportNpM` of the port with our name (drivers/char/virtio_console.c shows the name in sysfs).
fn event_port(class: &Path) -> Option<PathBuf> {
    let ports = fs::read_dir(class).ok()?.flatten();
    let ours =
        |port: &fs::DirEntry| fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim() == EVENT_PORT);
    ports.filter(ours).map(|port| Path::new("/dev").join(port.file_name())).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_name() {
        let class = tempfile::tempdir().unwrap();
        for (port, name) in [("vport1p1", "other"), ("vport1p2", "lab.events\n")] {
            fs::create_dir(class.path().join(port)).unwrap();
            fs::write(class.path().join(port).join("name"), name).unwrap();
        }
        assert_eq!(event_port(class.path()), Some(PathBuf::from("/dev/vport1p2")));
        assert_eq!(event_port(Path::new("/nowhere")), None);
    }

    #[test]
    fn lines_are_whole_and_a_heartbeat_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let events = Events::to_file(&path).unwrap();
        drop(events.heartbeat(GuestEvent::Progress { done: 1, total: 2, unit: "x".into() }));
        events.say(&GuestEvent::Done);
        let text = fs::read_to_string(&path).unwrap();
        let parsed: Vec<GuestEvent> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(parsed.last(), Some(&GuestEvent::Done));
        assert!(parsed.len() >= 2, "{text}");
    }
}
