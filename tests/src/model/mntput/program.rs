//! What a CPU of the model runs: words, instructions, and which instruction waits for which.

use std::fmt;

/// The most CPUs that a scenario has.
pub const CPUS: usize = 3;

/// A word of memory, or something that is ordered like one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// `mnt_pcp->mnt_gets` of a CPU.
    Gets(u8),
    /// `mnt_pcp->mnt_puts` of a CPU.
    Puts(u8),
    /// `->mnt_death`.
    Death,
    /// `->mnt_ns`: whether it is set.
    Ns,
    /// `MNT_SYNC_UMOUNT`.
    Sync,
    /// `->mnt_alone`.
    Alone,
    /// The sequence of `mount_lock`.
    Sequence,
    /// The spinlock of `mount_lock`.
    Lock,
    /// `->pwd` of a `struct fs_struct`: whether it is the mount.
    Pwd,
    /// How often the mount has died: what `cleanup_mnt()` takes down.
    Deaths,
    /// No word: the order of `rcu_read_lock()` and `rcu_read_unlock()`.
    Rcu,
}

impl Word {
    /// The number of words.
    pub const COUNT: usize = 2 * CPUS + 9;

    /// Where the word is in memory.
    pub fn slot(self) -> usize {
        match self {
            Word::Gets(cpu) => usize::from(cpu),
            Word::Puts(cpu) => CPUS + usize::from(cpu),
            Word::Death => 2 * CPUS,
            Word::Ns => 2 * CPUS + 1,
            Word::Sync => 2 * CPUS + 2,
            Word::Alone => 2 * CPUS + 3,
            Word::Sequence => 2 * CPUS + 4,
            Word::Lock => 2 * CPUS + 5,
            Word::Deaths => 2 * CPUS + 6,
            Word::Rcu => 2 * CPUS + 7,
            Word::Pwd => 2 * CPUS + 8,
        }
    }

    /// Whether it is part of the mount, and is freed with it.
    pub fn is_of_mount(self) -> bool {
        !matches!(self, Word::Sequence | Word::Lock | Word::Pwd | Word::Deaths | Word::Rcu)
    }
}

/// A register of a CPU.
pub type Register = u8;

/// The number of registers.
pub const REGISTERS: usize = 3;

/// A place in a program: an index into [`Program::ops`] once it has been placed.
pub type Label = u8;

/// What a branch asks of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum If {
    /// It is this.
    Is(i8),
    /// It is something else.
    IsNot(i8),
}

impl If {
    /// The answer.
    pub fn holds(self, value: i8) -> bool {
        match self {
            If::Is(wanted) => value == wanted,
            If::IsNot(wanted) => value != wanted,
        }
    }
}

/// A barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// `smp_mb()`.
    Full,
    /// `smp_wmb()`.
    Stores,
    /// `smp_rmb()`.
    Loads,
}

/// What a user of the mount relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    /// The memory of the mount: there until a grace period after it died.
    Memory,
    /// What `cleanup_mnt()` takes down at once, the superblock above all.
    Superblock,
}

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A register becomes a constant.
    Let(Register, i8),
    /// A register becomes larger by a multiple of a word.
    Load { word: Word, register: Register, times: i8 },
    /// `this_cpu_inc()` of a word that no other CPU writes.
    Increment(Word),
    /// `WRITE_ONCE()`.
    Store(Word, u8),
    /// `cmpxchg()`: a full barrier and the next instruction if it succeeds, a mere load and a branch if it fails.
    CmpXchg { word: Word, from: u8, to: u8, seen: Register, failed: Label },
    /// `xchg()`, a full barrier. The register becomes what was there.
    Xchg { word: Word, to: u8, seen: Register },
    /// A barrier.
    Order(Barrier),
    /// `spin_lock()`: an acquire.
    Lock,
    /// `spin_unlock()`: a release.
    Unlock,
    /// `rcu_read_lock()`.
    RcuLock,
    /// `rcu_read_unlock()`.
    RcuUnlock,
    /// `synchronize_rcu()` begins: all that are under RCU now have to leave.
    GraceBegins,
    /// `synchronize_rcu()` ends: they have.
    GraceEnds,
    /// A load through the mount by somebody who has a reference to it.
    Use(Thing),
    /// `WARN_ON(count < 0)`.
    NotNegative(Register),
    /// `mnt_bury()`, `cleanup_mnt()`, and `call_rcu()` of the memory.
    Die,
    /// A branch. It consumes the register.
    Branch { register: Register, when: If, to: Label },
    /// A jump.
    Jump(Label),
    /// The end.
    Exit,
}

/// An instruction in flight: which, and for a branch or `cmpxchg()` which way it is guessed to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct InFlight(u16);

impl InFlight {
    /// The instruction at an index, with the guess that it jumps.
    pub fn new(index: u8, jumps: bool) -> InFlight {
        InFlight(u16::from(index) << 1 | u16::from(jumps))
    }

    /// Its index.
    pub fn index(self) -> u8 {
        (self.0 >> 1) as u8
    }

    /// Whether it is guessed to jump.
    pub fn jumps(self) -> bool {
        self.0 & 1 == 1
    }
}

/// A program: instructions, and what waits for what.
#[derive(Debug)]
pub struct Program {
    /// The instructions.
    pub ops: Vec<Op>,
    natures: Vec<Nature>,
    waits: Vec<bool>,
    /// Words that may be written from each place on, as bits.
    writes: Vec<u32>,
}

impl Program {
    /// Works out what waits for what.
    pub fn new(ops: Vec<Op>) -> Program {
        assert!(ops.len() < 256, "an index has 8 bits");
        let natures: Vec<Nature> = ops.iter().flat_map(|op| [Nature::of(*op, false), Nature::of(*op, true)]).collect();
        let waits = natures.iter().flat_map(|early| natures.iter().map(|late| early.keeps_back(late))).collect();
        let writes = writes_ahead(&ops);
        Program { ops, natures, waits, writes }
    }

    /// The instruction.
    pub fn op(&self, at: InFlight) -> Op {
        self.ops[usize::from(at.index())]
    }

    /// Whether `late`, which comes after `early` in the program, has to wait for it.
    pub fn waits(&self, early: InFlight, late: InFlight) -> bool {
        self.waits[usize::from(early.0) * self.natures.len() + usize::from(late.0)]
    }

    /// Whether all that follow have to wait for it.
    pub fn acquires(&self, at: InFlight) -> bool {
        self.natures[usize::from(at.0)].acquires
    }

    /// Whether what follows happens at all depends on it.
    pub fn decides(&self, at: InFlight) -> bool {
        self.natures[usize::from(at.0)].decides
    }

    /// Words that may be written from this place on, as bits.
    pub fn writes_from(&self, place: u8) -> u32 {
        self.writes[usize::from(place)]
    }
}

/// Words that may be written from each place on. Collected until nothing is added: programs have loops.
fn writes_ahead(ops: &[Op]) -> Vec<u32> {
    let mut ahead: Vec<u32> = ops.iter().map(|op| writes(*op)).collect();
    loop {
        let before = ahead.clone();
        for (place, op) in ops.iter().enumerate() {
            ahead[place] |= follows(*op, place).iter().fold(0, |all, next| all | before[*next]);
        }
        if ahead == before {
            return ahead;
        }
    }
}

/// Places that may come after this one.
fn follows(op: Op, place: usize) -> Vec<usize> {
    match op {
        Op::Exit => Vec::new(),
        Op::Jump(to) => vec![usize::from(to)],
        Op::Branch { to, .. } | Op::CmpXchg { failed: to, .. } => vec![usize::from(to), place + 1],
        _ => vec![place + 1],
    }
}

/// What matters about an instruction for its order among others.
#[derive(Debug)]
struct Nature {
    word: Option<Word>,
    register: Option<Register>,
    loads: bool,
    stores: bool,
    barrier: Option<Barrier>,
    /// All that follow wait for it.
    acquires: bool,
    /// It waits for all before it.
    releases: bool,
    /// Whether what follows happens at all depends on it.
    decides: bool,
    /// It cannot be undone, so it waits until it is certain.
    is_final: bool,
}

impl Nature {
    /// Of this instruction, if the guess is that it jumps or fails.
    fn of(op: Op, jumps: bool) -> Nature {
        let full =
            matches!(op, Op::Order(Barrier::Full) | Op::Xchg { .. } | Op::GraceBegins | Op::GraceEnds | Op::Exit)
                || (matches!(op, Op::CmpXchg { .. }) && !jumps);
        let fails = matches!(op, Op::CmpXchg { .. }) && jumps;
        let loads = fails || matches!(op, Op::Load { .. } | Op::Use(_));
        let local = matches!(op, Op::Let(..) | Op::Branch { .. } | Op::Order(_));
        Nature {
            word: word_of(op),
            register: register_of(op),
            loads,
            stores: matches!(op, Op::Increment(_) | Op::Store(..)),
            barrier: if let Op::Order(barrier) = op { Some(barrier) } else { None },
            acquires: full || matches!(op, Op::Lock | Op::RcuLock),
            releases: full || matches!(op, Op::Unlock | Op::RcuUnlock | Op::Die),
            decides: fails || matches!(op, Op::Branch { .. }),
            is_final: matches!(op, Op::Use(_)) || !(loads || local),
        }
    }

    /// Whether `late`, which comes after this in the program, has to wait for it.
    fn keeps_back(&self, late: &Nature) -> bool {
        self.acquires
            || late.releases
            || self.orders(late)
            || self.same_word(late)
            || self.same_register(late)
            || (self.decides && late.is_final)
    }

    /// One is a barrier for the other.
    fn orders(&self, late: &Nature) -> bool {
        let of = |barrier: Option<Barrier>, other: &Nature| match barrier {
            Some(Barrier::Stores) => other.stores,
            Some(Barrier::Loads) => other.loads,
            Some(Barrier::Full) => true,
            None => false,
        };
        of(self.barrier, late) || of(late.barrier, self)
    }

    /// Accesses to one word stay in order, but a load may take what a store will write.
    fn same_word(&self, late: &Nature) -> bool {
        self.word.is_some() && self.word == late.word && !(self.stores && late.loads)
    }

    /// The registers are not renamed. Loads only add to theirs, so their order is free.
    fn same_register(&self, late: &Nature) -> bool {
        self.register.is_some() && self.register == late.register && !(self.loads && late.loads)
    }
}

fn word_of(op: Op) -> Option<Word> {
    match op {
        Op::Load { word, .. } | Op::Increment(word) | Op::Store(word, _) => Some(word),
        Op::CmpXchg { word, .. } | Op::Xchg { word, .. } => Some(word),
        Op::Lock | Op::Unlock => Some(Word::Lock),
        Op::RcuLock | Op::RcuUnlock => Some(Word::Rcu),
        Op::Use(_) | Op::Die => Some(Word::Deaths),
        _ => None,
    }
}

/// The word that it writes, as a bit.
pub fn writes(op: Op) -> u32 {
    let word = word_of(op).filter(|_| !matches!(op, Op::Load { .. } | Op::Use(_)));
    word.map_or(0, |word| 1 << word.slot())
}

fn register_of(op: Op) -> Option<Register> {
    match op {
        Op::Let(register, _) | Op::Load { register, .. } | Op::NotNegative(register) => Some(register),
        Op::CmpXchg { seen, .. } | Op::Xchg { seen, .. } => Some(seen),
        Op::Branch { register, .. } => Some(register),
        _ => None,
    }
}

/// As in a trace.
impl fmt::Display for Op {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Load { word, .. } => write!(to, "loads {word:?}"),
            Op::Increment(word) => write!(to, "increments {word:?}"),
            Op::Store(word, value) => write!(to, "stores {word:?} = {value}"),
            Op::CmpXchg { word, from, to: new, .. } => write!(to, "cmpxchg {word:?} {from} -> {new}"),
            Op::Xchg { word, to: new, .. } => write!(to, "xchg {word:?} = {new}"),
            other => write!(to, "{other:?}"),
        }
    }
}

/// Writes a program down.
#[derive(Debug, Default)]
pub struct Assembler {
    ops: Vec<Op>,
    places: Vec<Option<u8>>,
}

impl Assembler {
    /// A place that is not known yet.
    pub fn label(&mut self) -> Label {
        self.places.push(None);
        u8::try_from(self.places.len() - 1).expect("few labels")
    }

    /// The place is here.
    pub fn place(&mut self, label: Label) {
        let here = u8::try_from(self.ops.len()).expect("short programs");
        self.places[usize::from(label)] = Some(here);
    }

    /// One more instruction.
    pub fn op(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// Some more instructions.
    pub fn ops(&mut self, ops: &[Op]) {
        self.ops.extend_from_slice(ops);
    }

    /// The program, with labels replaced by places.
    pub fn finish(mut self) -> Program {
        let places = self.places;
        let place = |label: &mut Label| *label = places[usize::from(*label)].expect("each label is placed");
        for op in &mut self.ops {
            match op {
                Op::Branch { to, .. } | Op::Jump(to) | Op::CmpXchg { failed: to, .. } => place(to),
                _ => {}
            }
        }
        Program::new(self.ops)
    }
}
