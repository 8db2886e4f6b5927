//! The heap of a storm's process, as warm beforehand as that of a daemon that has run for a while.
//!
//! What glibc's malloc asks the kernel for goes through `mmap_lock`, one for all threads of a process: an arena for each thread that
//! allocates for the first time (mmap, munmap), its growth (mprotect), and memory given back (madvise). In a storm of as many threads as CPUs
//! these queue, and some wait for milliseconds while no mount is in their way. containerd's runtime (Go) has its heap by then.

use crate::sys;

/// What a thread has ready before the clock, in bytes: more than it allocates for a container of 100 layers, and little for 512 threads.
const THREAD_BYTES: usize = 256 << 10;

/// From now on, memory that was allocated once stays with the process.
pub fn keep() {
    sys::keep_heap(THREAD_BYTES);
}

/// Gives the calling thread an arena and touches its pages.
pub fn warm() {
    drop(std::hint::black_box(vec![1_u8; THREAD_BYTES]));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Minor page faults of this thread so far: proc_pid_stat(5), field 10.
    fn minor_faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    #[test]
    fn a_warm_thread_allocates_without_the_kernel() {
        keep();
        std::thread::spawn(|| {
            let faults_of = |work: &dyn Fn()| {
                let before = minor_faults();
                work();
                minor_faults() - before
            };
            let allocate = |bytes| drop(std::hint::black_box(vec![1_u8; bytes]));
            warm();
            let warm = faults_of(&|| allocate(THREAD_BYTES / 2));
            // More than malloc(3) ever keeps: mapped for this once. An arena may be one that another test's thread has warmed.
            let cold = faults_of(&|| allocate(64 << 20));
            assert!(cold > 20 && warm < 10, "page faults: {cold} cold, {warm} warm");
        })
        .join()
        .unwrap();
    }
}
