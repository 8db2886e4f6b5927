//! A model of how an unmounted mount dies: `mntput()`, `__legitimize_mnt()` and the grace period of `namespace_unlock()` without
//! `mount_lock`, as the patches have them that are about the last `mntput()`, walks that go on, and umount without a grace period. All that a
//! few CPUs can do is gone through, as the kernel is written and without each of its parts; each part that is left out must let something
//! bad happen.
//!
//! **The machine.** A CPU has its instructions in flight up to the next full barrier and carries them out in any order but for
//! * barriers: `smp_mb()`, `xchg()` and a `cmpxchg()` that succeeds order all, `smp_wmb()` stores, `smp_rmb()` loads; a lock is an acquire,
//!   unlocking a release; a `cmpxchg()` that fails is a load;
//! * accesses to the same word, where a load may yet take what an own store in flight is going to write;
//! * values: who needs a register waits for it;
//! * branches: a store waits until it is certain, a load does not. Branches are guessed both ways, wrong guesses are dropped.
//!
//! So a store may pass stores and loads, a load may pass both, also over a branch, as in the Linux kernel memory model.
//!
//! **What must not happen** is [`machine::Violation`]: dying twice or never, use by somebody with a reference of what died, access to freed
//! memory, a negative sum. Memory is free as soon as those have left RCU who were under it when the mount died.
//!
//! **What it does not cover.**
//! * A store is seen by all other CPUs at once. Where that is not so (Power), barriers are cumulative in hardware, which is not shown here.
//! * `rcu_read_lock()` is an acquire and `rcu_read_unlock()` a release, which is a little more than they are on their own.
//! * At most three CPUs, one reference each (two for umount2(2)), one walk each, one change of the sequence. Counters do not wrap, and
//!   nobody moves to another CPU between a get and its put.
//! * The superblock's other mounts, that is `->mnt_sb_stays`, and mounts that several umounts bring down together.
//! * What the compiler may do to plain accesses.

mod explore;
mod machine;
mod program;
mod protocol;
mod scenarios;
