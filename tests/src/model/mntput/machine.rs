//! The machine: memory, and CPUs that carry their instructions out in any order that nothing forbids.

use super::program::{CPUS, InFlight, Op, Program, REGISTERS, Register, Thing, Word, writes};

/// The most instructions in flight on a CPU.
const WINDOW: usize = 24;

/// What must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The mount died once more.
    DiedTwice,
    /// Somebody with a reference used what is taken down with the mount.
    UseOfDead,
    /// Somebody used the memory of the mount when it was free.
    UseAfterFree,
    /// All references are gone and the mount lives.
    Leak,
    /// A sum of the counters was negative.
    NegativeCount,
}

/// One CPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct Cpu {
    window: [InFlight; WINDOW],
    /// How much of the window is in use.
    len: u8,
    /// What is fetched next; nothing while all that follows has to wait anyway.
    next: u8,
    registers: [i8; REGISTERS],
}

impl Cpu {
    fn in_flight(&self) -> &[InFlight] {
        &self.window[..usize::from(self.len)]
    }

    fn fetch(&mut self, program: &Program, jumps: bool) {
        let op = program.ops[usize::from(self.next)];
        assert!(self.in_flight().len() < WINDOW, "a wider window is needed");
        self.window[usize::from(self.len)] = InFlight::new(self.next, jumps);
        self.len += 1;
        self.next = match op {
            Op::Branch { to, .. } | Op::CmpXchg { failed: to, .. } if jumps => to,
            Op::Exit => self.next,
            _ => self.next + 1,
        };
    }

    fn retire(&mut self, place: usize) {
        self.window.copy_within(place + 1.., place);
        self.window[WINDOW - 1] = InFlight::default();
        self.len -= 1;
    }
}

/// All there is at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct State {
    memory: [u8; Word::COUNT],
    cpus: [Cpu; CPUS],
    /// CPUs under RCU, as bits.
    readers: u8,
    /// Those of them for which the memory of the dead mount waits.
    free_waits: u8,
    /// Those of them for which `synchronize_rcu()` waits.
    grace_waits: u8,
}

/// What a CPU did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    /// The CPU.
    pub cpu: u8,
    /// What it did.
    pub what: InFlight,
    /// What it loaded, or the register that it looked at.
    pub value: i8,
}

/// What comes of a step: nothing if it turns out that the CPU had guessed wrong.
type Outcome = Result<Option<State>, Violation>;

/// A machine with a program for each CPU.
#[derive(Debug)]
pub struct Machine {
    programs: Vec<Program>,
    hurries: bool,
}

impl Machine {
    /// With these programs. If it hurries, it does at once what no other CPU can notice, in one order only.
    pub fn new(programs: Vec<Program>, hurries: bool) -> Machine {
        assert!(programs.len() <= CPUS);
        Machine { programs, hurries }
    }

    /// How to read a step.
    pub fn describe(&self, step: Step) -> String {
        let (op, guess) = (self.programs[usize::from(step.cpu)].op(step.what), step.what.jumps());
        let outcome = match op {
            Op::CmpXchg { .. } if guess => format!(", fails: it is {}", step.value),
            Op::Load { .. } => format!(": {}", step.value),
            _ => String::new(),
        };
        format!("cpu{} {op}{outcome}", step.cpu)
    }

    /// The states at the start: the words given, the rest zero; these CPUs are under RCU.
    pub fn start(&self, words: &[(Word, u8)], readers: u8) -> Result<Vec<State>, Violation> {
        let mut state = State { readers, ..State::default() };
        for (word, value) in words {
            state.memory[word.slot()] = *value;
        }
        self.settle(state)
    }

    /// Whether all CPUs have come to their end, and if so whether that was as it should be.
    pub fn at_end(&self, state: &State) -> Result<bool, Violation> {
        let done = |(cpu, program): (&Cpu, &Program)| cpu.len == 1 && program.op(cpu.window[0]) == Op::Exit;
        if !state.cpus.iter().zip(&self.programs).all(done) {
            return Ok(false);
        }
        if state.memory[Word::Deaths.slot()] == 1 { Ok(true) } else { Err(Violation::Leak) }
    }

    /// All steps that can be made here, and to where.
    pub fn steps(&self, state: &State) -> Vec<(Step, Result<Vec<State>, Violation>)> {
        let mut steps = Vec::new();
        for cpu in 0..self.programs.len() {
            for place in self.ready(state, cpu) {
                let what = state.cpus[cpu].window[place];
                let step = Step { cpu: cpu as u8, what, value: self.value(state, cpu, place) };
                let next = match self.act(state, cpu, place) {
                    Ok(Some(next)) => self.settle(next),
                    Ok(None) => Ok(Vec::new()),
                    Err(violation) => Err(violation),
                };
                steps.push((step, next));
            }
        }
        steps
    }

    /// Places of the window whose instructions nothing holds back.
    fn ready(&self, state: &State, cpu: usize) -> Vec<usize> {
        let (program, window) = (&self.programs[cpu], state.cpus[cpu].in_flight());
        let free = |place: &usize| {
            !window[..*place].iter().any(|early| program.waits(*early, window[*place]))
                && self.enabled(state, cpu, program.op(window[*place]))
        };
        (0..window.len()).filter(free).collect()
    }

    fn enabled(&self, state: &State, cpu: usize, op: Op) -> bool {
        match op {
            Op::Lock => state.memory[Word::Lock.slot()] == 0,
            Op::GraceEnds => state.grace_waits & !(1 << cpu) == 0,
            Op::Exit => false,
            _ => true,
        }
    }

    /// Fetches, and does at once what can be: one state for each way to guess.
    fn settle(&self, state: State) -> Result<Vec<State>, Violation> {
        let (mut open, mut settled) = (vec![state], Vec::new());
        while let Some(state) = open.pop() {
            if let Some(fetched) = self.fetch(&state) {
                open.extend(fetched);
            } else if let Some((cpu, place)) = self.unnoticed(&state) {
                open.extend(self.act(&state, cpu, place)?);
            } else {
                settled.push(state);
            }
        }
        Ok(settled)
    }

    /// The next fetch of some CPU, if one is to be made.
    fn fetch(&self, state: &State) -> Option<Vec<State>> {
        let cpu = (0..self.programs.len()).find(|cpu| self.fetches(&state.cpus[*cpu], &self.programs[*cpu]))?;
        let op = self.programs[cpu].ops[usize::from(state.cpus[cpu].next)];
        if let Op::Jump(to) = op {
            let mut state = state.clone();
            state.cpus[cpu].next = to;
            return Some(vec![state]);
        }
        let guesses: &[bool] =
            if matches!(op, Op::Branch { .. } | Op::CmpXchg { .. }) { &[false, true] } else { &[false] };
        let guess = |jumps: &bool| {
            let mut state = state.clone();
            state.cpus[cpu].fetch(&self.programs[cpu], *jumps);
            state
        };
        Some(guesses.iter().map(guess).collect())
    }

    /// Whether anything that is not in flight yet could go ahead.
    fn fetches(&self, cpu: &Cpu, program: &Program) -> bool {
        !cpu.in_flight().iter().any(|at| program.acquires(*at))
    }

    /// An instruction that is ready and whose time makes no difference to others.
    fn unnoticed(&self, state: &State) -> Option<(usize, usize)> {
        if !self.hurries {
            return None;
        }
        (0..self.programs.len()).find_map(|cpu| {
            let settled = !self.writes_of_others(state, cpu);
            let quiet = |place: &usize| is_quiet(self.programs[cpu].op(state.cpus[cpu].window[*place]), settled);
            self.ready(state, cpu).into_iter().find(quiet).map(|place| (cpu, place))
        })
    }

    /// Words that other CPUs may still write, as bits.
    fn writes_of_others(&self, state: &State, own: usize) -> u32 {
        let others = self.programs.iter().zip(&state.cpus).enumerate().filter(|(cpu, _)| *cpu != own);
        let of = |(_, (program, cpu)): (usize, (&Program, &Cpu))| {
            let in_flight = cpu.in_flight().iter().fold(0, |all, at| all | writes(program.op(*at)));
            in_flight | program.writes_from(cpu.next)
        };
        others.map(of).fold(0, |all, words| all | words)
    }

    /// Carries out what is at this place of the window.
    fn act(&self, state: &State, cpu: usize, place: usize) -> Outcome {
        let what = state.cpus[cpu].window[place];
        let op = self.programs[cpu].op(what);
        if self.is_bad_access(state, cpu, place) {
            return Err(Violation::UseAfterFree);
        }
        let value = self.value(state, cpu, place);
        let mut next = state.clone();
        next.cpus[cpu].retire(place);
        let goes_on = match op {
            Op::CmpXchg { word, from, to, seen, .. } => exchange(&mut next, cpu, what, (word, from, to), (seen, value)),
            Op::Branch { register, when, .. } => {
                next.cpus[cpu].registers[usize::from(register)] = 0;
                when.holds(value) == what.jumps()
            }
            _ => effect(&mut next, cpu, op, value)?,
        };
        Ok(goes_on.then_some(next))
    }

    /// What the instruction loads, with this CPU's own stores that are still in flight; or what is in its register.
    fn value(&self, state: &State, cpu: usize, place: usize) -> i8 {
        let (program, own) = (&self.programs[cpu], &state.cpus[cpu]);
        match program.op(own.window[place]) {
            Op::Load { word, .. } | Op::CmpXchg { word, .. } | Op::Xchg { word, .. } => {
                let before = own.in_flight()[..place].iter();
                before.fold(state.memory[word.slot()], |value, at| forward(value, program.op(*at), word)) as i8
            }
            Op::Branch { register, .. } | Op::NotNegative(register) => own.registers[usize::from(register)],
            _ => 0,
        }
    }

    /// Whether it is an access to memory that is free, and not on a guess.
    fn is_bad_access(&self, state: &State, cpu: usize, place: usize) -> bool {
        let (program, window) = (&self.programs[cpu], state.cpus[cpu].in_flight());
        let word = match program.op(window[place]) {
            Op::Load { word, .. } | Op::Increment(word) | Op::Store(word, _) => word,
            Op::CmpXchg { word, .. } | Op::Xchg { word, .. } => word,
            Op::Use(_) => Word::Death,
            _ => return false,
        };
        word.is_of_mount() && is_freed(state) && !window[..place].iter().any(|at| program.decides(*at))
    }
}

fn is_freed(state: &State) -> bool {
    state.memory[Word::Deaths.slot()] > 0 && state.free_waits == 0
}

/// Whether its time makes no difference to others, if these words are written by nobody else any more.
fn is_quiet(op: Op, settled: u32) -> bool {
    let settled_load = |word: Word| settled >> word.slot() & 1 == 1;
    matches!(op, Op::Load { word, .. } if settled_load(word))
        || matches!(
            op,
            Op::Let(..)
                | Op::Order(_)
                | Op::Branch { .. }
                | Op::NotNegative(_)
                | Op::Unlock
                | Op::RcuUnlock
                | Op::GraceEnds
        )
}

fn forward(value: u8, earlier: Op, word: Word) -> u8 {
    match earlier {
        Op::Increment(other) if other == word => value + 1,
        Op::Store(other, stored) if other == word => stored,
        _ => value,
    }
}

/// A `cmpxchg()` that was guessed to succeed or to fail: whether the guess was right.
fn exchange(
    state: &mut State,
    cpu: usize,
    what: InFlight,
    (word, from, to): (Word, u8, u8),
    (seen, value): (Register, i8),
) -> bool {
    let succeeds = value == from as i8;
    state.cpus[cpu].registers[usize::from(seen)] = if succeeds { 0 } else { value };
    if succeeds {
        state.memory[word.slot()] = to;
    }
    succeeds != what.jumps()
}

/// What the instruction does to the state.
fn effect(state: &mut State, cpu: usize, op: Op, value: i8) -> Result<bool, Violation> {
    let registers = &mut state.cpus[cpu].registers;
    match op {
        Op::Let(register, constant) => registers[usize::from(register)] = constant,
        Op::Load { register, times, .. } => registers[usize::from(register)] += times * value,
        Op::Increment(word) => state.memory[word.slot()] += 1,
        Op::Store(word, value) => state.memory[word.slot()] = value,
        Op::Xchg { word, to, seen } => {
            registers[usize::from(seen)] = value;
            state.memory[word.slot()] = to;
        }
        Op::Lock => state.memory[Word::Lock.slot()] = 1,
        Op::Unlock => state.memory[Word::Lock.slot()] = 0,
        Op::NotNegative(_) if value < 0 => return Err(Violation::NegativeCount),
        Op::Use(Thing::Superblock) if state.memory[Word::Deaths.slot()] > 0 => return Err(Violation::UseOfDead),
        Op::Die => die(state)?,
        _ => rcu(state, 1 << cpu, op),
    }
    Ok(true)
}

fn die(state: &mut State) -> Result<(), Violation> {
    let deaths = &mut state.memory[Word::Deaths.slot()];
    *deaths += 1;
    if *deaths > 1 {
        return Err(Violation::DiedTwice);
    }
    state.free_waits = state.readers;
    Ok(())
}

fn rcu(state: &mut State, own: u8, op: Op) {
    match op {
        Op::RcuLock => state.readers |= own,
        Op::RcuUnlock => {
            state.readers &= !own;
            state.free_waits &= !own;
            state.grace_waits &= !own;
        }
        Op::GraceBegins => state.grace_waits = state.readers,
        _ => {}
    }
}
