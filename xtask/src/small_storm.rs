//! Small storms that nobody times: are their oracles content, and does the kernel stay silent?

use crate::machine::{BootLog, End};
use mount_storms::protocol::{
    GuestEvent, Manner, Outcome, Profile, Propagation, READER_PERIOD_US, Reader, Sample, Storage, StormJob, StormPoint,
    TrialResult,
};

/// Each of containerd's sequences of calls.
pub const PROFILES: [Profile; 5] =
    [Profile::Detach, Profile::Rdonly, Profile::Common, Profile::Recursive, Profile::Fds];

/// How much happens in each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Concurrent starts of containers.
    pub threads: u32,
    /// Starts of containers per iteration.
    pub containers: u32,
    /// Their layers.
    pub layers: u32,
    /// Iterations; the leak oracle compares the second one with the first.
    pub iterations: u32,
}

/// A storm of each profile on a shared tmpfs, with readers beside it.
pub fn job(profiles: &[Profile], cpus: u32, size: Size) -> StormJob {
    let point = |&profile| StormPoint {
        profile,
        storage: Storage::Tmpfs,
        propagation: Propagation::Shared,
        cpus,
        threads: size.threads,
        containers: size.containers,
        layers: size.layers,
        inspection_passes: 1,
    };
    StormJob {
        points: profiles.iter().map(point).collect(),
        iterations: size.iterations,
        warmup_iterations: 0,
        manner: Manner::CONTAINERD,
        surroundings: Default::default(),
        readers: vec![Reader::Stat, Reader::Mountinfo, Reader::Listmount, Reader::Openat2, Reader::Poll],
        reader_period_us: READER_PERIOD_US,
    }
}

/// Area of the storms among trials.
pub const AREA: &str = "storm::";

/// Name of a profile's storm among trials.
pub fn name(profile: Profile) -> String {
    format!("{AREA}{profile:?}").to_lowercase()
}

/// The storms of a boot as trials. One that did not come to its end has failed.
pub fn trials(job: &StormJob, log: &BootLog) -> Vec<TrialResult> {
    let samples = log.events.iter().filter_map(|event| match event {
        GuestEvent::Sample(sample) => Some(sample),
        _ => None,
    });
    let samples: Vec<&Sample> = samples.collect();
    let trial = |point: &StormPoint| {
        let of_point: Vec<&Sample> = samples.iter().copied().filter(|sample| sample.point == *point).collect();
        TrialResult { name: name(point.profile), outcome: outcome(job, &of_point, &log.end), elapsed_ms: 0 }
    };
    job.points.iter().map(trial).collect()
}

fn outcome(job: &StormJob, samples: &[&Sample], end: &End) -> Outcome {
    let failures: Vec<String> = samples.iter().flat_map(|sample| sample.oracle.failures.clone()).collect();
    let made = samples.len() as u32;
    if !failures.is_empty() {
        Outcome::Failed { why: failures.join("; ") }
    } else if made < job.iterations {
        Outcome::Failed { why: format!("{made} of {} iterations, then the boot ended: {end:?}", job.iterations) }
    } else {
        Outcome::Passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Arm, fixture};
    use std::path::PathBuf;

    const SIZE: Size = Size { threads: 2, containers: 4, layers: 1, iterations: 2 };

    fn log(job: &StormJob, samples: &[(usize, &[&str])]) -> BootLog {
        let any = fixture::run(&[(Arm::Baseline, 100.0)]).samples[0].sample.clone();
        let sample = |(point, failures): &(usize, &[&str])| {
            let mut sample = Sample { point: job.points[*point].clone(), ..any.clone() };
            sample.oracle.failures = failures.iter().map(|&why| why.to_owned()).collect();
            GuestEvent::Sample(sample)
        };
        let events = samples.iter().map(sample).collect();
        BootLog { events, end: End::Finished, console: PathBuf::new(), wall_s: 1.0, summary: None }
    }

    #[test]
    fn each_storm_is_a_trial_that_must_come_to_its_end_with_all_oracles_content() {
        let job = job(&PROFILES[..3], 8, SIZE);
        let log = log(&job, &[(0, &[]), (0, &[]), (1, &[]), (1, &["a mount is left"]), (2, &[])]);
        let found = trials(&job, &log);
        let names: Vec<&str> = found.iter().map(|trial| trial.name.as_str()).collect();
        assert_eq!(names, ["storm::detach", "storm::rdonly", "storm::common"]);
        assert_eq!(found[0].outcome, Outcome::Passed);
        assert_eq!(found[1].outcome, Outcome::Failed { why: "a mount is left".into() });
        assert!(matches!(&found[2].outcome, Outcome::Failed { why } if why.starts_with("1 of 2 iterations")));
    }
}
