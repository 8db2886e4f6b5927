//! Random operations, from a seed.

use super::{Kind, Op, Place};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Environment variable with the seed of a trial's random choices: the suite sets it to the job's.
pub const SEED_VARIABLE: &str = "LAB_SEED";

/// The seed of a trial that is run by hand, without LAB_SEED.
const SEED: u64 = 1;

/// Sequences that proptest tries at most to make a failing one smaller: each is a run in a kernel.
const SHRINK_STEPS: u32 = 300;

/// The seed of this run: LAB_SEED of the environment, or always the same.
pub fn seed() -> u64 {
    std::env::var(SEED_VARIABLE).ok().and_then(|seed| seed.parse().ok()).unwrap_or(SEED)
}

/// A runner of `cases` sequences that a seed decides; LAB_CASES of the environment overrides their number.
pub fn seeded_runner(seed: u64, cases: u32) -> TestRunner {
    let cases = std::env::var("LAB_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(cases);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: SHRINK_STEPS, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// A path of up to three names, mostly of one or two.
fn place() -> impl Strategy<Value = Place> {
    let names = |count: usize| prop::collection::vec(prop_oneof![Just('a'), Just('b')], count).prop_map(Place);
    prop_oneof![1 => names(0), 4 => names(1), 5 => names(2), 1 => names(3)]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![4 => Just(Kind::Shared), 2 => Just(Kind::Slave), 1 => Just(Kind::Private), 1 => Just(Kind::Unbindable)]
}

fn tree_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => place().prop_map(Op::New),
        5 => (place(), place(), any::<bool>(), any::<bool>())
            .prop_map(|(from, to, recursive, detached)| Op::Bind { from, to, recursive, detached }),
        1 => (place(), place()).prop_map(|(from, to)| Op::BindBeneath { from, to }),
        2 => (place(), place(), prop::bool::weighted(0.3))
            .prop_map(|(from, to, beneath)| Op::Move { from, to, beneath }),
        4 => place().prop_map(Op::Umount),
        2 => place().prop_map(Op::Detach),
        6 => (place(), kind(), any::<bool>()).prop_map(|(at, kind, recursive)| Op::Make { at, kind, recursive }),
        1 => place().prop_map(Op::Hold),
        1 => Just(Op::Release),
    ]
}

/// A shared mount with a slave.
fn family() -> impl Strategy<Value = Vec<Op>> {
    (place(), place()).prop_map(|(at, to)| {
        let make = |at: &Place, kind| Op::Make { at: at.clone(), kind, recursive: false };
        let bind = Op::Bind { from: at.clone(), to: to.clone(), recursive: false, detached: true };
        vec![make(&at, Kind::Shared), bind, make(&to, Kind::Slave)]
    })
}

/// One operation, or some that make peers and slaves: by chance alone they are rare.
fn phrase(extra: &'static [Op]) -> impl Strategy<Value = Vec<Op>> {
    let new = (place(), kind());
    let new = new.prop_map(|(at, kind)| vec![Op::New(at.clone()), Op::Make { at, kind, recursive: false }]);
    let bind = (place(), place(), kind(), any::<bool>()).prop_map(|(from, to, kind, recursive)| {
        let bind = Op::Bind { from, to: to.clone(), recursive, detached: false };
        vec![bind, Op::Make { at: to, kind, recursive: false }]
    });
    let common = prop_oneof![10 => tree_op().prop_map(|op| vec![op]), 1 => new, 2 => bind, 2 => family()];
    match extra {
        [] => common.boxed(),
        extra => prop_oneof![12 => common, 1 => prop::sample::select(extra).prop_map(|op| vec![op])].boxed(),
    }
}

/// Sequences of operations, each with the namespace it happens in. `extra` are mixed in, rarely.
pub fn ops(phrases: usize, extra: &'static [Op]) -> impl Strategy<Value = Vec<(usize, Op)>> {
    let spoken = (0_usize..2, phrase(extra));
    prop::collection::vec(spoken, 1..=phrases).prop_map(|spoken| {
        spoken.into_iter().flat_map(|(namespace, ops)| ops.into_iter().map(move |op| (namespace, op))).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::super::Model;
    use super::*;
    use proptest::strategy::ValueTree;

    #[test]
    fn a_seed_gives_the_same_operations_again() {
        let of = |seed| ops(30, &[]).new_tree(&mut seeded_runner(seed, 1)).unwrap().current();
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }

    #[test]
    fn no_operation_breaks_the_model() {
        const EXTRA: &[Op] = &[Op::Copy, Op::Forget, Op::LosePrivileges];
        let run = seeded_runner(seed(), 500).run(&ops(40, EXTRA), |ops| {
            let mut model = Model::new();
            for (namespace, op) in &ops {
                model.apply(*namespace, op);
                let flaws = model.flaws();
                prop_assert!(flaws.is_empty(), "after {op:?}: {flaws:?}\n{}", model.view());
                // Trees that copy into themselves grow without limit; a trial stops there too.
                if model.count() > 200 {
                    break;
                }
            }
            Ok(())
        });
        run.unwrap();
    }

    #[test]
    fn the_operations_reach_what_they_are_for() {
        let mut runner = seeded_runner(3, 1);
        let (mut peers, mut slaves, mut refused, mut stacked) = (0, 0, 0, 0);
        for _ in 0..200 {
            let mut model = Model::new();
            for (namespace, op) in ops(40, &[]).new_tree(&mut runner).unwrap().current() {
                let before = model.count();
                refused += usize::from(matches!(model.apply(namespace, &op), Some(Err(_))));
                peers += usize::from(model.count() > before + 1);
                if model.count() > 200 {
                    break;
                }
            }
            let view = model.view().to_string();
            slaves += usize::from(view.contains("master:"));
            stacked += usize::from(view.contains("> / >"));
        }
        assert!(peers > 100 && slaves > 60 && refused > 1000 && stacked > 10, "{peers} {slaves} {refused} {stacked}");
    }
}
