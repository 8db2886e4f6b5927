//! Random operations in the kernel and in the model of mount trees: alike after each of them, or the shortest sequence that shows the
//! difference. The job's seed makes another run; by hand, LAB_SEED and LAB_CASES of the environment do, or a longer one.

use super::trials;
use anyhow::{Result, ensure};
use mount_storms::call::{Verdict, same};
use mount_storms::child::in_child;
use mount_storms::model::{self, Model, Op, View};
use mount_storms::model_kernel::{Kernel, alike};
use mount_storms::mountinfo;
use mount_storms::requirement;
use mount_storms::scratch::Scratch;
use mount_storms::sys::{self, LSMT_ROOT};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{TestCaseError, TestError};
use std::sync::atomic::{AtomicUsize, Ordering};

trials!("model":
    the_kernel_does_what_the_model_says,
    two_namespaces_do_what_the_model_says,
    locked_mounts_do_what_the_model_says,
    threads_at_random_leave_a_table_that_the_model_can_go_on_from,
);

/// Two namespaces that are peers of each other, now and then.
const NAMESPACES: &[Op] = &[Op::Copy, Op::Copy, Op::Forget];

/// The moment from which everything is locked.
const PRIVILEGES: &[Op] = &[Op::LosePrivileges];

/// Runs `cases` random sequences; a failure is the seed, the shortest sequence that proptest found, and what differed at its end.
fn cases(cases: u32, phrases: usize, extra: &'static [Op], run: impl Fn(&[(usize, Op)]) -> Result<()>) -> Verdict {
    let seed = model::seed();
    let body = |ops: Vec<(usize, Op)>| run(&ops).map_err(|error| TestCaseError::fail(format!("{error:#}")));
    match model::seeded_runner(seed, cases).run(&model::ops(phrases, extra), body) {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, ops)) => anyhow::bail!("LAB_SEED={seed}: {why}\nafter\n{}", told(&ops)),
        Err(TestError::Abort(why)) => anyhow::bail!("LAB_SEED={seed}: gave up: {why}"),
    }
}

fn told(ops: &[(usize, Op)]) -> String {
    ops.iter().map(|(namespace, op)| format!("    in namespace {namespace}: {op:?}\n")).collect()
}

fn the_kernel_does_what_the_model_says(s: &Scratch) -> Verdict {
    cases(30, 30, &[], |ops| alike(&mut Kernel::new(s)?, Model::new(), ops))
}

fn two_namespaces_do_what_the_model_says(s: &Scratch) -> Verdict {
    requirement::copies_stay_unbindable()?;
    cases(25, 30, NAMESPACES, |ops| alike(&mut Kernel::new(s)?, Model::new(), ops))
}

fn locked_mounts_do_what_the_model_says(_: &Scratch) -> Verdict {
    requirement::user_namespaces()?;
    requirement::copies_stay_unbindable()?;
    // What is locked stays so: each sequence needs a process and a namespace of its own.
    let alone = |ops: &[(usize, Op)]| in_child(|| alike(&mut Kernel::new(&Scratch::enter()?)?, Model::new(), ops));
    cases(25, 30, PRIVILEGES, alone)
}

/// Threads of a random run, beside the one that reads.
const THREADS: usize = 2;

/// Mounts above which a thread takes away instead of adding: peers that are bound into each other double.
const CROWD: usize = 120;

fn threads_at_random_leave_a_table_that_the_model_can_go_on_from(s: &Scratch) -> Verdict {
    requirement::two_cpus()?;
    requirement::statmount()?;
    let seed = model::seed();
    for round in 0..3 {
        let before = mountinfo::of_this_process()?.len();
        let mut kernel = Kernel::new(s)?;
        let mut runner = model::seeded_runner(seed + round, 1);
        let mut draw = || model::ops(40, &[]).new_tree(&mut runner).map(|tree| tree.current());
        let drawn = [draw(), draw(), draw()].map(|ops| ops.unwrap_or_default());
        at_once(&kernel, &drawn[..THREADS])?;
        let raws = kernel.raws()?;
        let model = Model::of_raws(&raws);
        same("what is wrong with the table", model.flaws(), Vec::<String>::new())?;
        let held_on = alike(&mut kernel, model, &drawn[THREADS]);
        held_on.map_err(|error| error.context(format!("LAB_SEED={seed} round {round}, from\n{}", View::of(&raws))))?;
        drop(kernel);
        same("mounts afterwards", mountinfo::of_this_process()?.len(), before)?;
    }
    Ok(())
}

/// All sequences at the same time; whatever the kernel refuses is fine, while every look at the table finds it sound.
fn at_once(kernel: &Kernel<'_>, sequences: &[Vec<(usize, Op)>]) -> Verdict {
    let running = AtomicUsize::new(sequences.len());
    std::thread::scope(|scope| {
        for ops in sequences {
            let running = &running;
            scope.spawn(move || {
                ops.iter().for_each(|(_, op)| drop(kernel.attempt(op, CROWD)));
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        let mut sound = Ok(());
        while running.load(Ordering::SeqCst) > 0 {
            // The threads' own end is the limit: each makes so many calls and no more.
            sound = sound.and_then(|()| looks_sound());
        }
        sound
    })
}

fn looks_sound() -> Verdict {
    let mut ids = vec![0; 4096];
    let count = sys::listmount(LSMT_ROOT, 0, &mut ids)?;
    ensure!(ids[..count].is_sorted_by(|a, b| a < b), "listmount gave ids twice or out of order");
    // No two of its lines need differ in their id: that of a mount that went while it was read may be given again.
    mountinfo::of_this_process()?;
    Ok(())
}
