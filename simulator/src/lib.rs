//! The simulated machine: one host core runs QEMU's vCPUs side by side in virtual time.
//!
//! This library is loaded into QEMU twice over: as LD_PRELOAD it stands between QEMU and the C library's threads, locks, waits
//! and clocks; as `-plugin` it counts the guest's instructions. Together they make QEMU a set of *fibers* (one for each of its
//! threads) that share one host thread and hand it over at known points only: at the end of a vCPU's window, and where a
//! thread waits. So there is no host scheduling in the simulation at all, and no host time: the same guest, arguments and
//! seed give the same run, instruction by instruction, from power-on, on an idle host or a busy one.
//!
//! What leads where:
//!
//! * `ring`: who runs next and what time it is (pure). `clock`: ticks and nanoseconds (pure). `bits`: a set (pure).
//! * `spin`: what a `pause` costs; `watch`: what a spinning vCPU looks at (pure). `ram`: the guest's memory in the host's.
//! * `fiber`: how one host thread goes on as another of QEMU's threads.
//! * `machine`: the ring, the fibers and the waiters put together; all state is here.
//! * `interpose`: the C library's functions that QEMU calls, as waits and times of the machine.
//! * `plugin`: what QEMU calls: instrumentation of translated blocks, halts, region marks.
//! * `evidence`: what happens under the kernel's mount locks; `symbols`: where those are (pure). `probe`: how it is seen.
//! * `options`, `region`, `profile`, `report`: arguments; the measured region; samples; the summary (pure).

#![cfg_attr(
    test,
    allow(dead_code, reason = "tests build the pure modules alone: the others would replace the test's own C library")
)]

mod bits;
mod clock;
mod evidence;
mod options;
mod profile;
mod ram;
mod region;
mod report;
mod ring;
mod spin;
mod symbols;
mod watch;

#[cfg(not(test))]
mod fiber;
#[cfg(not(test))]
mod interpose;
#[cfg(not(test))]
mod machine;
#[cfg(not(test))]
mod plugin;
#[cfg(not(test))]
mod probe;
#[cfg(not(test))]
mod raw;
