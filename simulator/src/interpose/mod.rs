//! Functions of the C library that QEMU and its libraries call: waits and times become the machine's.
//!
//! All of them are called by the carrier alone (see `fiber`), and before `main` already.

mod poll;
mod sync;
mod threads;
mod time;
pub mod tsc;
