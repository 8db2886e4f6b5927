//! The kernel's functions, as programs of the model. Names are those of fs/namespace.c; each can be written without one of its parts.

use super::program::{Assembler, Barrier, If, Label, Op, Program, Register, Thing, Word};

/// `enum mnt_death`.
const ALIVE: u8 = 0;
const DYING: u8 = 1;
const CONTESTED: u8 = 2;
const DEAD: u8 = 3;

/// Values of the sequence of `mount_lock`: it begins as 0, and changes once.
const OLD: u8 = 0;
const ODD: u8 = 1;
const NEW: u8 = 2;

/// A sum of the counters.
const COUNT: Register = 0;
/// A value of `->mnt_death`, or a flag.
const SEEN: Register = 1;
/// The sequence.
const SEQUENCE: Register = 2;

/// A part of the protocol that can be left out, to see what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `smp_wmb()` in `mntput()`, before the reference is dropped.
    BarrierBeforePut,
    /// `smp_mb()` in `mntput_no_expire_slowpath()`, after the reference was dropped.
    BarrierAfterPut,
    /// `smp_mb()` in `mnt_get_count()`.
    BarrierInCount,
    /// `smp_mb()` in `__legitimize_mnt()`.
    BarrierOfWalker,
    /// `mnt_dies()` counts again under `MNT_DYING`.
    SecondCount,
    /// `__legitimize_mnt()` looks at `->mnt_death`.
    LookAtDeath,
    /// `__legitimize_mnt()` makes `MNT_DYING` `MNT_CONTESTED`; without, it only looks for `MNT_DEAD`.
    Contested,
    /// `mnt_dies()` counts anew when it has taken `MNT_DYING` back.
    CountAnew,
    /// `namespace_unlock()` waits for a grace period if somebody else has a reference.
    GracePeriod,
    /// `namespace_unlock()` sets `->mnt_alone`.
    Alone,
    /// `namespace_unlock()` counts at all; without, it always waits and there is no `->mnt_alone`, as before the last patch.
    GracePeriodOnDemand,
    /// `propagate_mount_busy()`, before `MNT_SYNC_UMOUNT` is set.
    BusyCheck,
    /// `__legitimize_walked_mnt()` looks whether `->mnt_ns` is set under its new sequence, before it counts the reference or after.
    LookAtNamespace,
    /// `__legitimize_mnt()` looks at the sequence again when it has taken the reference.
    SecondLook,
}

/// What somebody does in a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Has a reference: uses it, then drops it.
    Putter,
    /// Has a reference; takes one more and drops it, as when a path is copied. Then as a putter.
    Copier,
    /// Has borrowed the mount under RCU: makes that a reference, then as a putter.
    Walker,
    /// The same after the sequence has changed: takes a new one, and goes on if the mount is in a namespace under it
    /// (`__legitimize_walked_mnt()`).
    LateWalker,
    /// The same where the sequence has changed since the reference was counted, for something else: takes a new one then.
    CountedWalker,
    /// Has a reference that others borrow: its `->pwd`. Takes the mount from there, then as a putter (`set_fs_pwd()`).
    Lender,
    /// Begins a walk after the sequence has changed, with the mount that is the lender's `->pwd` (`path_init()`). Has no reason to ask whether
    /// that is in a namespace. Then as a walker.
    Borrower,
    /// Changes the sequence of `mount_lock`, for something that has nothing to do with the mount.
    Stranger,
    /// `umount2(2)` with `MNT_DETACH`. Has two references: the mount's own, and one for the path.
    Detacher,
    /// `umount2(2)` that sets `MNT_SYNC_UMOUNT`. Where that is busy, it goes on as with `MNT_DETACH`.
    Umounter,
}

impl Role {
    /// References at the start.
    pub fn references(self) -> i8 {
        match self {
            Role::Putter | Role::Copier | Role::Lender => 1,
            Role::Walker | Role::LateWalker | Role::CountedWalker | Role::Borrower | Role::Stranger => 0,
            Role::Detacher | Role::Umounter => 2,
        }
    }

    /// Whether the mount is in a namespace until this is done.
    pub fn umounts(self) -> bool {
        matches!(self, Role::Detacher | Role::Umounter)
    }

    /// Whether somebody borrows this one's reference.
    pub fn lends(self) -> bool {
        self == Role::Lender
    }

    /// Whether this one has the mount under RCU at the start, and no reference.
    pub fn walks(self) -> bool {
        matches!(self, Role::Walker | Role::LateWalker | Role::CountedWalker)
    }

    fn takes(self) -> bool {
        matches!(self, Role::Copier | Role::Borrower) || self.walks()
    }
}

/// The functions of one kernel, in one scenario.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What is left out.
    pub without: Option<Part>,
    /// The barrier of `mntput_no_expire_slowpath()` before the reference is dropped.
    pub before_put: Barrier,
    /// What users of the mount rely on.
    pub thing: Thing,
    /// Who does what, by CPU.
    pub roles: Vec<Role>,
}

impl Kernel {
    /// A program for each CPU.
    pub fn programs(&self) -> Vec<Program> {
        (0..).zip(&self.roles).map(|(cpu, role)| self.program(cpu, *role)).collect()
    }

    /// Whether the mount is in a namespace at the start.
    pub fn umounts(&self) -> bool {
        self.roles.iter().any(|role| role.umounts())
    }

    fn has(&self, part: Part) -> bool {
        self.without != Some(part)
    }

    fn has_alone(&self) -> bool {
        self.umounts() && self.has(Part::Alone) && self.has(Part::GracePeriodOnDemand)
    }

    fn program(&self, cpu: u8, role: Role) -> Program {
        let mut function = Function { kernel: self, cpu, to: Assembler::default() };
        match role {
            Role::Putter => function.use_and_put(),
            Role::Copier => function.copy(),
            Role::Walker => function.legitimize_mnt(),
            Role::LateWalker => function.legitimize_walked_mnt(),
            Role::CountedWalker => function.legitimize_counted_mnt(),
            Role::Lender => function.set_fs_pwd(),
            Role::Borrower => function.walk_from_pwd(),
            Role::Stranger => function.change_sequence(),
            Role::Detacher => function.do_umount(false),
            Role::Umounter => function.do_umount(true),
        }
        function.to.op(Op::Exit);
        function.to.finish()
    }
}

/// A function while it is written down.
struct Function<'a> {
    kernel: &'a Kernel,
    cpu: u8,
    to: Assembler,
}

impl Function<'_> {
    fn branch(&mut self, register: Register, when: If, to: Label) {
        self.to.op(Op::Branch { register, when, to });
    }

    fn load(&mut self, word: Word, register: Register) {
        self.to.ops(&[Op::Let(register, 0), Op::Load { word, register, times: 1 }]);
    }

    fn put(&mut self) {
        self.to.op(Op::Increment(Word::Puts(self.cpu)));
    }

    fn barrier(&mut self, part: Part) {
        if self.kernel.has(part) {
            self.to.op(Op::Order(Barrier::Full));
        }
    }

    fn use_and_put(&mut self) {
        self.to.op(Op::Use(self.kernel.thing));
        self.mntput();
    }

    /// `mntget()` and `mntput()` while there is a reference, then the end of that.
    fn copy(&mut self) {
        self.to.op(Op::Increment(Word::Gets(self.cpu)));
        self.mntput();
        self.use_and_put();
    }

    /// `set_fs_pwd()`: somebody else's mount, and the end of the reference to this one.
    fn set_fs_pwd(&mut self) {
        self.to.ops(&[Op::Use(self.kernel.thing), Op::Store(Word::Pwd, 0)]);
        self.mntput();
    }

    /// `path_init()` for a relative path: the sequence first, then `->pwd`. Where that is another mount there is nothing to do with this one; a
    /// walk under the old sequence is [`Role::Walker`]'s.
    fn walk_from_pwd(&mut self) {
        let gone = self.to.label();
        self.to.op(Op::RcuLock);
        self.load(Word::Sequence, SEQUENCE);
        self.branch(SEQUENCE, If::IsNot(NEW as i8), gone);
        self.to.op(Op::Order(Barrier::Loads));
        self.load(Word::Pwd, SEEN);
        self.branch(SEEN, If::Is(0), gone);
        self.walk_under_new_sequence(gone);
    }

    fn write_seqlock(&mut self) {
        self.to.ops(&[Op::Lock, Op::Store(Word::Sequence, ODD), Op::Order(Barrier::Stores)]);
    }

    fn write_sequnlock(&mut self) {
        self.to.ops(&[Op::Order(Barrier::Stores), Op::Store(Word::Sequence, NEW), Op::Unlock]);
    }

    fn change_sequence(&mut self) {
        self.write_seqlock();
        self.write_sequnlock();
    }

    /// `mnt_get_count()`, into [`COUNT`]. What was taken before the scenario is a constant.
    fn mnt_get_count(&mut self) {
        let roles = || (0..).zip(&self.kernel.roles);
        self.to.op(Op::Let(COUNT, roles().map(|(_, role)| role.references()).sum()));
        for (cpu, _) in roles().filter(|(_, role)| **role != Role::Stranger) {
            self.to.op(Op::Load { word: Word::Puts(cpu), register: COUNT, times: -1 });
        }
        if self.kernel.has(Part::BarrierInCount) {
            self.to.op(Op::Order(Barrier::Full));
        }
        for (cpu, _) in roles().filter(|(_, role)| role.takes()) {
            self.to.op(Op::Load { word: Word::Gets(cpu), register: COUNT, times: 1 });
        }
    }

    /// `mntput()`.
    fn mntput(&mut self) {
        let (slow, out) = (self.to.label(), self.to.label());
        self.to.op(Op::RcuLock);
        if self.kernel.umounts() {
            self.load(Word::Ns, SEEN);
            self.branch(SEEN, If::Is(0), slow);
            self.before_put(Barrier::Stores);
            self.put();
            self.to.ops(&[Op::RcuUnlock, Op::Jump(out)]);
        }
        self.to.place(slow);
        self.mntput_slowpath();
        self.to.place(out);
    }

    fn before_put(&mut self, barrier: Barrier) {
        if self.kernel.has(Part::BarrierBeforePut) {
            self.to.op(Op::Order(barrier));
        }
    }

    /// `mntput_no_expire_slowpath()`.
    fn mntput_slowpath(&mut self) {
        let (dead, out) = (self.to.label(), self.to.label());
        self.before_put(self.kernel.before_put);
        self.put();
        self.barrier(Part::BarrierAfterPut);
        self.mnt_dies(dead);
        self.to.ops(&[Op::RcuUnlock, Op::Jump(out)]);
        self.to.place(dead);
        self.to.ops(&[Op::RcuUnlock, Op::Die]);
        self.to.place(out);
    }

    /// `mnt_dies()`: goes to `dead`, or on.
    fn mnt_dies(&mut self, dead: Label) {
        let (again, back, lives) = (self.to.label(), self.to.label(), self.to.label());
        if self.kernel.has_alone() {
            self.dies_alone(dead, lives);
        }
        self.to.place(again);
        self.mnt_get_count();
        self.to.op(Op::NotNegative(COUNT));
        self.branch(COUNT, If::IsNot(0), lives);
        self.to.op(Op::CmpXchg { word: Word::Death, from: ALIVE, to: DYING, seen: SEEN, failed: lives });
        if self.kernel.has(Part::SecondCount) {
            self.mnt_get_count();
            self.branch(COUNT, If::IsNot(0), back);
        }
        self.to.op(Op::CmpXchg { word: Word::Death, from: DYING, to: DEAD, seen: SEEN, failed: back });
        self.to.op(Op::Jump(dead));
        self.to.place(back);
        self.to.op(Op::Xchg { word: Word::Death, to: ALIVE, seen: COUNT });
        if self.kernel.has(Part::CountAnew) {
            self.to.op(Op::Jump(again));
        }
        self.to.place(lives);
        self.to.ops(&[Op::Let(COUNT, 0), Op::Let(SEEN, 0)]);
    }

    /// What `mnt_dies()` does with `->mnt_alone`.
    fn dies_alone(&mut self, dead: Label, lives: Label) {
        let counts = self.to.label();
        self.load(Word::Alone, SEEN);
        self.branch(SEEN, If::Is(0), counts);
        self.to.op(Op::Xchg { word: Word::Death, to: DEAD, seen: COUNT });
        self.branch(COUNT, If::IsNot(DEAD as i8), dead);
        self.to.op(Op::Jump(lives));
        self.to.place(counts);
    }

    /// `__legitimize_mnt()` and what its callers do with the result, in a walk whose sequence is the old one.
    fn legitimize_mnt(&mut self) {
        let (contested, put, out) = (self.to.label(), self.to.label(), self.to.label());
        self.take_reference();
        self.second_look(OLD as i8, contested);
        self.finish_walk(contested, put);
        self.legitimize_contested(put, out);
        self.to.place(put);
        self.use_and_put();
        self.to.place(out);
    }

    /// `__legitimize_walked_mnt()` that comes to a new sequence. With the old one it does what `__legitimize_mnt()` does, if it goes on; where
    /// `read_seqbegin()` waits while the sequence is odd, this one gives up, for the load may be as late as anything else.
    fn legitimize_walked_mnt(&mut self) {
        let gone = self.to.label();
        self.load(Word::Sequence, SEQUENCE);
        self.branch(SEQUENCE, If::IsNot(NEW as i8), gone);
        self.to.op(Op::Order(Barrier::Loads));
        self.look_at_namespace(gone);
        self.walk_under_new_sequence(gone);
    }

    /// `__legitimize_walked_mnt()` that comes to a new sequence after it has counted the reference. The sequence that the walk had is an older one
    /// than any here. What goes round in the kernel, until the sequence is even and stays, gives up here. A branch leaves nothing in its register,
    /// so the sequence is loaded once more where it is not the old one.
    fn legitimize_counted_mnt(&mut self) {
        let (new, contested, put, out) = (self.to.label(), self.to.label(), self.to.label(), self.to.label());
        let counted = self.to.label();
        self.take_reference();
        self.load(Word::Sequence, SEQUENCE);
        self.to.op(Op::Order(Barrier::Loads));
        self.branch(SEQUENCE, If::IsNot(OLD as i8), new);
        self.look_at_namespace(contested);
        self.to.op(Op::Order(Barrier::Loads));
        self.second_look(OLD as i8, contested);
        self.to.op(Op::Jump(counted));
        self.to.place(new);
        self.load(Word::Sequence, SEQUENCE);
        self.branch(SEQUENCE, If::IsNot(NEW as i8), contested);
        self.to.op(Op::Order(Barrier::Loads));
        self.look_at_namespace(contested);
        self.to.place(counted);
        self.finish_walk(contested, put);
        self.legitimize_contested(put, out);
        self.to.place(put);
        self.use_and_put();
        self.to.place(out);
    }

    /// Goes to `gone` if the mount is in no namespace.
    fn look_at_namespace(&mut self, gone: Label) {
        if self.kernel.has(Part::LookAtNamespace) {
            self.load(Word::Ns, SEEN);
            self.branch(SEEN, If::Is(0), gone);
        }
    }

    /// The rest of a walk that began with the new sequence; places `gone`, for one that has nothing to take.
    fn walk_under_new_sequence(&mut self, gone: Label) {
        let (contested, put, out) = (self.to.label(), self.to.label(), self.to.label());
        self.take_reference();
        self.second_look(NEW as i8, contested);
        self.finish_walk(contested, put);
        self.legitimize_contested(put, out);
        self.to.place(gone);
        self.to.ops(&[Op::RcuUnlock, Op::Jump(out)]);
        self.to.place(put);
        self.use_and_put();
        self.to.place(out);
    }

    fn take_reference(&mut self) {
        self.to.op(Op::Increment(Word::Gets(self.cpu)));
        self.barrier(Part::BarrierOfWalker);
    }

    /// Goes on if the sequence is `expected`.
    fn second_look(&mut self, expected: i8, contested: Label) {
        if self.kernel.has(Part::SecondLook) {
            self.load(Word::Sequence, SEQUENCE);
            self.branch(SEQUENCE, If::IsNot(expected), contested);
        }
    }

    /// Goes to `put` with a reference that is good, places `contested` and goes on there with one that may not be.
    fn finish_walk(&mut self, contested: Label, put: Label) {
        if self.kernel.has(Part::LookAtDeath) {
            self.load(Word::Death, SEEN);
            self.branch(SEEN, If::IsNot(ALIVE as i8), contested);
        }
        self.to.ops(&[Op::RcuUnlock, Op::Jump(put)]);
        self.to.place(contested);
    }

    /// `legitimize_late()`: goes to `put` with a reference to drop, or to `out` without.
    fn legitimize_contested(&mut self, put: Label, out: Label) {
        let (look, doomed, synchronous) = (self.to.label(), self.to.label(), self.to.label());
        if self.kernel.has(Part::LookAtDeath) {
            self.contest(look, doomed);
        }
        self.to.place(look);
        self.to.op(Op::Lock);
        self.load(Word::Sync, SEEN);
        self.branch(SEEN, If::IsNot(0), synchronous);
        self.to.ops(&[Op::Unlock, Op::RcuUnlock, Op::Jump(put)]);
        self.to.place(synchronous);
        self.put();
        self.to.ops(&[Op::Unlock, Op::RcuUnlock, Op::Jump(out)]);
        self.to.place(doomed);
        self.put();
        self.to.ops(&[Op::RcuUnlock, Op::Jump(out)]);
    }

    /// Goes to `look` if the reference is in time, to `doomed` if not.
    fn contest(&mut self, look: Label, doomed: Label) {
        let failed = self.to.label();
        if self.kernel.has(Part::Contested) {
            self.to.op(Op::CmpXchg { word: Word::Death, from: DYING, to: CONTESTED, seen: SEEN, failed });
            self.to.op(Op::Jump(look));
        } else {
            self.load(Word::Death, SEEN);
        }
        self.to.place(failed);
        self.branch(SEEN, If::Is(DEAD as i8), doomed);
        self.to.op(Op::Jump(look));
    }

    /// `do_umount()`, `namespace_unlock()`, and the `mntput()` of the caller.
    fn do_umount(&mut self, synchronous: bool) {
        let (detach, wait, drop, out) = (self.to.label(), self.to.label(), self.to.label(), self.to.label());
        self.write_seqlock();
        if synchronous {
            self.umount_if_not_busy(detach, wait);
            self.to.op(Op::Jump(out));
        }
        self.to.place(detach);
        self.to.op(Op::Store(Word::Ns, 0));
        self.write_sequnlock();
        self.needs_grace_period(wait);
        self.to.op(Op::Jump(drop));
        self.to.place(wait);
        if self.kernel.has(Part::GracePeriod) {
            self.to.ops(&[Op::GraceBegins, Op::GraceEnds]);
        }
        self.to.place(drop);
        self.put_of_namespace();
        self.mntput();
        self.to.place(out);
    }

    /// The mount's own reference, dropped by `namespace_unlock()`. With the last patch it is not looked at whether that was the last: the
    /// caller of `do_umount()` has another one, and does.
    fn put_of_namespace(&mut self) {
        if self.kernel.has(Part::GracePeriodOnDemand) { self.put() } else { self.mntput() }
    }

    /// `needs_grace_period()`: goes to `wait`, or on.
    fn needs_grace_period(&mut self, wait: Label) {
        if self.kernel.has(Part::GracePeriodOnDemand) {
            self.mnt_get_count();
            self.branch(COUNT, If::IsNot(2), wait);
        } else {
            self.to.op(Op::Jump(wait));
        }
    }

    /// The synchronous one: `propagate_mount_busy()`, and `->mnt_alone`. Goes to `detach` or to `wait`, or on if it is over.
    fn umount_if_not_busy(&mut self, detach: Label, wait: Label) {
        if self.kernel.has(Part::BusyCheck) {
            self.mnt_get_count();
            self.branch(COUNT, If::IsNot(2), detach);
        }
        self.to.ops(&[Op::Store(Word::Ns, 0), Op::Store(Word::Sync, 1)]);
        self.write_sequnlock();
        self.needs_grace_period(wait);
        if self.kernel.has_alone() {
            self.to.op(Op::Store(Word::Alone, 1));
        }
        self.put_of_namespace();
        self.mntput();
    }
}
