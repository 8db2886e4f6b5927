//! Several pieces of work at once, told from one thread.

use crate::event::{Event, Events, Listener};
use anyhow::Result;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};

/// CPUs that this host gives us.
pub fn host_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What comes back from where work is done.
enum Report<T, R> {
    Heard(Event),
    Done(Box<(T, R)>),
}

/// Does `work` with each item, `at_once` of them at a time, begun in their order. What came of each goes to `done` as soon as it is there,
/// on the caller's thread, with the item.
///
/// # Errors
/// The first error of `done`: then nothing more is begun, and what had been is finished and goes to `done` as well.
pub fn side_by_side<T: Send, R: Send>(
    items: Vec<T>,
    at_once: usize,
    work: impl Fn(&T, Events<'_>) -> R + Sync,
    events: Events<'_>,
    mut done: impl FnMut(T, R, Events<'_>) -> Result<()>,
) -> Result<()> {
    let workers = at_once.clamp(1, items.len().max(1));
    let (queue, stopped) = (Mutex::new(VecDeque::from(items)), AtomicBool::new(false));
    let next = || if stopped.load(Ordering::Relaxed) { None } else { queue.lock().ok()?.pop_front() };
    let mut failure = None;
    std::thread::scope(|scope| {
        let (sender, receiver) = channel();
        for _ in 0..workers {
            let (sender, next, work) = (sender.clone(), &next, &work);
            scope.spawn(move || {
                while let Some(item) = next() {
                    let result = work(&item, &mut Forward(&sender));
                    // The receiver outlives all senders.
                    let _ = sender.send(Report::Done(Box::new((item, result))));
                }
            });
        }
        drop(sender);
        for report in receiver {
            match report {
                Report::Heard(event) => events.hear(&event),
                Report::Done(pair) => {
                    let (item, result) = *pair;
                    if let Err(error) = done(item, result, events) {
                        stopped.store(true, Ordering::Relaxed);
                        failure.get_or_insert(error);
                    }
                }
            }
        }
    });
    failure.map_or(Ok(()), Err)
}

/// A listener on another thread.
struct Forward<'a, T, R>(&'a Sender<Report<T, R>>);

impl<T, R> Listener for Forward<'_, T, R> {
    fn hear(&mut self, event: &Event) {
        let _ = self.0.send(Report::Heard(event.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    /// Remembers notes.
    #[derive(Default)]
    struct Notes(Vec<String>);

    impl Listener for Notes {
        fn hear(&mut self, event: &Event) {
            if let Event::Note(text) = event {
                self.0.push(text.clone());
            }
        }
    }

    #[test]
    fn all_is_done_and_heard_and_no_more_at_once_than_asked_for() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |item: &u32, events: Events<'_>| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            events.hear(&Event::Note(format!("at {item}")));
            std::thread::sleep(Duration::from_millis(5));
            now.fetch_sub(1, Ordering::SeqCst);
            item * 2
        };
        let (mut notes, mut results) = (Notes::default(), Vec::new());
        let keep = |item, result, _: Events<'_>| {
            results.push((item, result));
            Ok(())
        };
        side_by_side((1..=9).collect(), 3, work, &mut notes, keep).unwrap();
        results.sort_unstable();
        assert_eq!(results, (1..=9).map(|item| (item, item * 2)).collect::<Vec<_>>());
        assert_eq!(notes.0.len(), 9);
        assert!((2..=3).contains(&most.load(Ordering::SeqCst)), "{most:?} at once");
    }

    #[test]
    fn the_first_error_ends_it_and_loses_nothing_that_was_begun() {
        let begun = AtomicUsize::new(0);
        let work = |item: &usize, _: Events<'_>| {
            begun.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            *item
        };
        let mut told = 0;
        let done = |item: usize, _, _: Events<'_>| {
            told += 1;
            if item == 3 { Err(anyhow::anyhow!("item {item}")) } else { Ok(()) }
        };
        let error = side_by_side((0..1000).collect(), 2, work, &mut Notes::default(), done).unwrap_err();
        assert_eq!(error.to_string(), "item 3");
        assert_eq!(told, begun.load(Ordering::SeqCst));
        assert!(told < 1000);
    }

    #[test]
    fn nothing_to_do_is_no_error() {
        let nothing: Vec<u32> = Vec::new();
        side_by_side(nothing, 0, |_, _| (), &mut Notes::default(), |_, (), _| Ok(())).unwrap();
    }
}
