//! What may disturb the figures on this host: read once before a run, written into its manifest.

use crate::machine::MachineInfo;
use crate::side_by_side::host_cpus;
use std::fs;

/// Load per CPU above which other work is taken to compete with the guests.
const BUSY_LOAD: f64 = 0.5;

/// What was read of the host.
#[derive(Clone, Debug, Default, PartialEq)]
struct Host {
    cpus: u32,
    load_1min: f64,
    free_mib: u64,
    governor: Option<String>,
    hypervisor: bool,
}

/// Sentences for a manifest.
pub fn collect(machine: &MachineInfo) -> Vec<String> {
    if machine.kind == "mock" {
        vec!["the machine is a mock: its figures are made up".into()]
    } else if machine.has_virtual_time() {
        // Whatever the host does meanwhile, it cannot be seen in virtual time.
        vec![
            "figures are simulated: ARCHITECTURE.md says what the model leaves out (caches, SMT, interrupts' cost)"
                .into(),
        ]
    } else {
        judge(machine, &read())
    }
}

fn judge(machine: &MachineInfo, host: &Host) -> Vec<String> {
    let mut warnings = Vec::new();
    let cpus = host.cpus.max(1);
    if host.load_1min / f64::from(cpus) > BUSY_LOAD {
        warnings.push(format!("the host is busy: load {:.1} on {cpus} CPUs", host.load_1min));
    }
    if machine.cpus > cpus {
        warnings.push(format!(
            "the guest has {} CPUs on {cpus} of the host: its lock holders are descheduled, contention is distorted",
            machine.cpus
        ));
    }
    if machine.kind == "tcg" {
        warnings.push("every instruction is emulated (tcg): compare kernels with each other, not with a host".into());
    }
    if host.hypervisor {
        warnings.push("the host is itself a virtual machine: its neighbours are in the figures".into());
    }
    if let Some(governor) = host.governor.as_ref().filter(|governor| governor.as_str() != "performance") {
        warnings.push(format!("cpufreq governor {governor}: the clock rate changes under the storm"));
    }
    if machine.kind != "host" && host.free_mib < machine.memory_mib {
        warnings
            .push(format!("{} MiB of memory are available, the guest has {} MiB", host.free_mib, machine.memory_mib));
    }
    warnings
}

fn read() -> Host {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = text("/proc/cpuinfo");
    let available =
        text("/proc/meminfo").lines().find_map(|line| line.strip_prefix("MemAvailable:").map(str::to_owned));
    Host {
        cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
        load_1min: text("/proc/loadavg").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0),
        free_mib: available.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024,
        governor: fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
            .ok()
            .map(|word| word.trim().to_owned()),
        hypervisor: cpuinfo
            .lines()
            .any(|line| line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "hypervisor")),
    }
}

/// The host in one line: CPU, memory, kernel, distribution.
pub fn host_in_words() -> String {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once([':', '=']).map_or("unknown".to_owned(), |(_, value)| value.trim().trim_matches('"').to_owned())
    };
    let memory_kib = value(&text("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
    format!(
        "{} x {}, {} GiB, Linux {}, {}",
        host_cpus(),
        value(&text("/proc/cpuinfo"), "model name"),
        (memory_kib + (1 << 19)) >> 20,
        text("/proc/sys/kernel/osrelease").trim(),
        value(&text("/etc/os-release"), "PRETTY_NAME"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(kind: &str, cpus: u32) -> MachineInfo {
        MachineInfo {
            kind: kind.into(),
            version: String::new(),
            cpus,
            memory_mib: 2048,
            topology: "smoke".into(),
            simulated: false,
        }
    }

    #[test]
    fn virtual_time_knows_no_busy_host() {
        let warnings = collect(&machine("simulated", 96));
        assert!(warnings.len() == 1 && warnings[0].contains("leaves out"), "{warnings:?}");
    }

    const QUIET: Host = Host { cpus: 4, load_1min: 0.1, free_mib: 8000, governor: None, hypervisor: false };

    #[test]
    fn a_quiet_host_has_no_warning() {
        assert_eq!(judge(&machine("kvm", 4), &QUIET), Vec::<String>::new());
    }

    #[test]
    fn each_disturbance_is_named() {
        let host =
            Host { load_1min: 3.0, free_mib: 100, governor: Some("powersave".into()), hypervisor: true, ..QUIET };
        let text = judge(&machine("tcg", 8), &host).join("\n");
        for part in ["load 3.0", "8 CPUs on 4", "emulated", "virtual machine", "powersave", "100 MiB"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }

    #[test]
    fn the_host_has_words() {
        let words = host_in_words();
        assert!(words.contains("GiB, Linux "), "{words}");
    }
}
