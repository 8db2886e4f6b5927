//! Who meets whom, and what each part of the protocol is for.

use super::explore::{Found, explore};
use super::machine::{Machine, Violation};
use super::program::{Assembler, Barrier, Op, Program, Thing, Word};
use super::protocol::{Kernel, Part, Role};
use Role::{Borrower, Copier, CountedWalker, Detacher, LateWalker, Lender, Putter, Stranger, Umounter, Walker};

/// Who has to do with a mount at once.
type Scenario = &'static [Role];

/// Two drop the last two references.
const PUTTERS: Scenario = &[Putter, Putter];
/// One of them copies his before.
const COPIER: Scenario = &[Copier, Putter];
/// The last reference goes while somebody has borrowed the mount. He may take and drop one between the two counts.
const WALKER: Scenario = &[Putter, Walker];
/// The mount has been unmounted before.
const UNMOUNTED: [Scenario; 6] =
    [PUTTERS, COPIER, WALKER, &[Putter, Walker, Stranger], &[Putter, Putter, Walker], &[Putter, Walker, Walker]];

const DETACH_PUTTER: Scenario = &[Detacher, Putter];
const UMOUNT_PUTTER: Scenario = &[Umounter, Putter];
const UMOUNT_WALKER: Scenario = &[Umounter, Walker];
/// The mount is unmounted meanwhile.
const UMOUNTS: [Scenario; 8] = [
    DETACH_PUTTER,
    &[Detacher, Walker],
    &[Detacher, Copier],
    &[Detacher, Putter, Walker],
    UMOUNT_PUTTER,
    UMOUNT_WALKER,
    &[Umounter, Copier],
    &[Umounter, Putter, Walker],
];

const UMOUNT_LATE_WALKER: Scenario = &[Umounter, LateWalker];
/// A walker asks for the mount under the sequence that the umount leaves behind.
const LATE: [Scenario; 4] =
    [UMOUNT_LATE_WALKER, &[Detacher, LateWalker], &[Umounter, Putter, LateWalker], &[Detacher, Putter, LateWalker]];

const UMOUNT_COUNTED_WALKER: Scenario = &[Umounter, CountedWalker];
/// A walker whose sequence changed after it had counted its reference asks again, before the umount, beside it or after it.
const COUNTED: [Scenario; 4] = [
    UMOUNT_COUNTED_WALKER,
    &[Detacher, CountedWalker],
    &[Umounter, Putter, CountedWalker],
    &[Detacher, Putter, CountedWalker],
];

const LENT_DETACHED: Scenario = &[Detacher, Lender, Borrower];
/// A walker begins under the sequence that the umount leaves behind, with the mount that somebody else has a reference to.
const LENT: [Scenario; 2] = [LENT_DETACHED, &[Umounter, Lender, Borrower]];

/// The least that shows what a part is for, and what happens without it.
const NEEDS: [(Part, Scenario, Violation); 18] = [
    (Part::BarrierBeforePut, COPIER, Violation::UseAfterFree),
    (Part::BarrierAfterPut, PUTTERS, Violation::Leak),
    (Part::BarrierInCount, COPIER, Violation::NegativeCount),
    (Part::BarrierInCount, UMOUNT_WALKER, Violation::UseAfterFree),
    (Part::BarrierOfWalker, WALKER, Violation::UseAfterFree),
    (Part::SecondCount, WALKER, Violation::UseAfterFree),
    (Part::LookAtDeath, WALKER, Violation::UseAfterFree),
    (Part::Contested, WALKER, Violation::UseAfterFree),
    (Part::CountAnew, WALKER, Violation::Leak),
    (Part::GracePeriod, DETACH_PUTTER, Violation::Leak),
    (Part::Alone, UMOUNT_WALKER, Violation::Leak),
    (Part::BusyCheck, UMOUNT_PUTTER, Violation::UseAfterFree),
    (Part::LookAtNamespace, UMOUNT_LATE_WALKER, Violation::UseAfterFree),
    (Part::LookAtNamespace, UMOUNT_COUNTED_WALKER, Violation::UseAfterFree),
    (Part::BarrierOfWalker, UMOUNT_COUNTED_WALKER, Violation::UseAfterFree),
    (Part::SecondLook, UMOUNT_WALKER, Violation::UseAfterFree),
    (Part::GracePeriod, LENT_DETACHED, Violation::Leak),
    (Part::BarrierBeforePut, LENT_DETACHED, Violation::UseAfterFree),
];

/// As the patches have it.
fn kernel(roles: Scenario) -> Kernel {
    Kernel { without: None, before_put: Barrier::Full, thing: Thing::Memory, roles: roles.to_vec() }
}

/// All that can happen. See [`Machine::new`] for `hurries`.
fn run(kernel: &Kernel, hurries: bool) -> Found {
    let walkers = (0..).zip(&kernel.roles).filter(|(_, role)| role.walks());
    let readers = walkers.fold(0, |readers, (cpu, _)| readers | 1 << cpu);
    let lent = kernel.roles.iter().any(|role| role.lends());
    let memory = [(Word::Ns, u8::from(kernel.umounts())), (Word::Pwd, u8::from(lent))];
    let found = explore(&Machine::new(kernel.programs(), hurries), &memory, readers);
    show(kernel, &found);
    found
}

fn show(kernel: &Kernel, found: &Found) {
    let Kernel { roles, without, before_put, thing } = kernel;
    println!("{roles:?}, without {without:?}, {before_put:?} before put, {thing:?}: {} states", found.states);
    if let Some((violation, trace)) = &found.violation {
        println!("  {violation:?}:\n    {}", trace.join("\n    "));
    }
}

fn violation(found: Found) -> Option<Violation> {
    found.violation.map(|(violation, _)| violation)
}

#[track_caller]
fn assert_holds(kernel: &Kernel) {
    let found = run(kernel, true);
    assert!(found.ends > 0, "{kernel:?} never ends");
    assert_eq!(violation(found), None, "{kernel:?}");
}

#[test]
fn an_unmounted_mount_dies_once_and_nobody_has_it_then() {
    for roles in UNMOUNTED {
        assert_holds(&kernel(roles));
    }
}

#[test]
fn umount_waits_for_a_grace_period_whenever_it_has_to() {
    for roles in UMOUNTS.into_iter().chain(LATE).chain(COUNTED).chain(LENT) {
        assert_holds(&kernel(roles));
    }
}

#[test]
fn umount_that_always_waits_for_a_grace_period_stands_by_itself() {
    for roles in UMOUNTS.into_iter().chain(LATE).chain(COUNTED).filter(|roles| roles.len() == 2) {
        assert_holds(&Kernel { without: Some(Part::GracePeriodOnDemand), ..kernel(roles) });
    }
}

#[test]
fn each_part_of_the_protocol_is_needed() {
    for (part, roles, expected) in NEEDS {
        let found = run(&Kernel { without: Some(part), ..kernel(roles) }, true);
        assert_eq!(violation(found), Some(expected), "without {part:?}");
    }
}

/// Why the barrier before the put is `smp_mb()`: `smp_wmb()` leaves the order of loads alone, and what a user of the mount loads before his
/// `mntput()` may be loaded after another has seen that put. RCU covers the memory of the mount, but the superblock goes at once.
#[test]
fn smp_wmb_before_a_put_would_not_keep_loads_from_the_superblock_before_it() {
    for roles in UNMOUNTED {
        let patched = Kernel { thing: Thing::Superblock, ..kernel(roles) };
        assert_holds(&patched);
        let weaker = Kernel { before_put: Barrier::Stores, ..patched };
        assert_eq!(violation(run(&weaker, true)), Some(Violation::UseOfDead), "{roles:?}");
    }
}

#[test]
fn doing_at_once_what_nobody_notices_hides_nothing() {
    let whole = [PUTTERS, COPIER, WALKER].map(kernel);
    let small = NEEDS.iter().filter(|(_, roles, _)| [PUTTERS, COPIER, WALKER].contains(roles));
    let broken = small.map(|(part, roles, _)| Kernel { without: Some(*part), ..kernel(roles) });
    for kernel in whole.into_iter().chain(broken) {
        let (all, some) = (run(&kernel, false), run(&kernel, true));
        assert!(some.states < all.states);
        assert_eq!(violation(all).is_some(), violation(some).is_some(), "{kernel:?}");
    }
}

/// One writes data, then a flag; the other reads flag, then data. These words are never freed.
fn message_passing(writer: &[Op], reader: &[Op]) -> Option<Violation> {
    let (data, flag) = (Word::Sequence, Word::Lock);
    let program = |parts: &[&[Op]]| -> Program {
        let mut to = Assembler::default();
        parts.iter().for_each(|ops| to.ops(ops));
        to.op(Op::Exit);
        to.finish()
    };
    let flag = (Op::Increment(flag), Op::Load { word: flag, register: 0, times: -1 });
    let data = (Op::Increment(data), Op::Load { word: data, register: 0, times: 1 });
    let programs = vec![
        program(&[&[data.0], writer, &[flag.0, Op::Die]]),
        program(&[&[flag.1], reader, &[data.1, Op::NotNegative(0)]]),
    ];
    violation(explore(&Machine::new(programs, true), &[], 0))
}

#[test]
fn the_machine_reorders_unless_there_are_barriers_on_both_sides() {
    let (wmb, rmb) = (Op::Order(Barrier::Stores), Op::Order(Barrier::Loads));
    let flag_without_data = Some(Violation::NegativeCount);
    assert_eq!(message_passing(&[wmb], &[rmb]), None);
    assert_eq!(message_passing(&[], &[rmb]), flag_without_data);
    assert_eq!(message_passing(&[wmb], &[]), flag_without_data);
    assert_eq!(message_passing(&[rmb], &[wmb]), flag_without_data);
}
