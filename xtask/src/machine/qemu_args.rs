//! The command line of QEMU, as a pure function of what is to be booted. Each argument says why it is there.

use super::disk::Disk;
use super::topology::Topology;
use mount_storms::protocol::EVENT_PORT;
use std::path::Path;

/// TCG with one host thread per vCPU, so that vCPUs really run at the same time and contend.
const MULTI_THREADED: &str = "tcg,thread=multi";

/// The same under the simulator, which makes those threads take turns. 512 MiB of translated code: more than a storm ever fills, so
/// that no flush, at which all vCPUs stop, falls into a measured region.
const SIMULATED: &str = "tcg,thread=multi,tb-size=512";

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The host's CPU.
    Kvm,
    /// QEMU's translator.
    Tcg,
    /// QEMU's translator in virtual time.
    Simulated,
}

impl Accel {
    /// "kvm", "tcg", "simulated".
    pub fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
            Accel::Simulated => "simulated",
        }
    }
}

/// Files of one boot, all in its folder.
pub struct BootFiles<'a> {
    /// Compressed kernel image.
    pub kernel: &'a Path,
    /// Initramfs with guest and job.
    pub initrd: &'a Path,
    /// Receives the serial console; without one it is on this terminal.
    pub console: Option<&'a Path>,
    /// Receives the guest's event lines.
    pub events: &'a Path,
    /// Raw images of the file systems that the job wants.
    pub disks: &'a [Disk],
}

/// All arguments of QEMU for one boot.
pub fn arguments(accel: Accel, topology: &Topology, files: &BootFiles<'_>) -> Vec<String> {
    let mut args = Vec::new();
    args.extend(machine(accel, topology));
    args.extend(cpus_and_memory(topology));
    args.extend(quiet());
    args.extend(console(files.console));
    args.extend(event_port(files.events));
    args.extend(files.disks.iter().flat_map(virtio_disk));
    args.extend(kernel(accel, files));
    if accel == Accel::Simulated {
        // The guest's RDRAND and all else that QEMU draws: the same in each boot.
        args.extend(words(["-seed", "1"]));
    }
    args
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

fn machine(accel: Accel, topology: &Topology) -> Vec<String> {
    let (accelerator, cpu) = match accel {
        // The host's CPU as it is: a model would hide instructions that the measured kernel patches itself to use.
        Accel::Kvm => ("kvm", "host"),
        // TCG's own CPU says AMD, but lacks topoext, by which an AMD CPU names its thread siblings; Intel's way to say it TCG has.
        Accel::Tcg if topology.cpu.threads > 1 => (MULTI_THREADED, "max,la57=off,vendor=GenuineIntel"),
        // `max` is all that TCG can emulate, RDRAND among it, which ends the wait for entropy. Four levels of page tables: where there are
        // five, the kernel knows it by a capability that identify_cpu() takes away for a moment (arch/x86/kernel/cpu/common.c), and KASAN
        // reports an interrupt that comes then for a wild access (KASAN_SHADOW_START, arch/x86/include/asm/kasan.h).
        Accel::Tcg => (MULTI_THREADED, "max,la57=off"),
        // A kernel that finds a hypervisor takes its spinlocks unfairly (native_pv_lock_init(), arch/x86/kernel/paravirt-spinlocks.c):
        // whoever is first. The hosts that this machine stands for queue (kernel/locking/qspinlock.c).
        Accel::Simulated if topology.cpu.threads > 1 => (SIMULATED, "max,hypervisor=off,vendor=GenuineIntel"),
        Accel::Simulated => (SIMULATED, "max,hypervisor=off"),
    };
    // The i440FX machine: its firmware hands over to the kernel in 2 s under TCG, where q35's takes many times that.
    words(["-accel", accelerator, "-M", "pc", "-cpu", cpu])
}

fn cpus_and_memory(topology: &Topology) -> Vec<String> {
    let cpu = topology.cpu;
    let cpus = topology.cpus();
    // The shape is spelled out: left alone, QEMU prefers sockets on one version and cores on another.
    let smp = format!("{cpus},sockets={},cores={},threads={}", cpu.sockets, cpu.cores, cpu.threads);
    let memory = format!("{}M", topology.memory.guest_mib);
    let mut args = words(["-smp", &smp, "-m", &memory]);
    if topology.numa.nodes > 1 {
        args.extend(numa(topology));
    }
    args
}

/// Equal nodes. CPU indexes go socket by socket, so equal runs of them keep a socket together.
fn numa(topology: &Topology) -> Vec<String> {
    let nodes = topology.numa.nodes;
    let node_mib = topology.memory.guest_mib / u64::from(nodes);
    let node_cpus = topology.cpus() / nodes;
    let mut args = Vec::new();
    for node in 0..nodes {
        let (first, last) = (node * node_cpus, (node + 1) * node_cpus - 1);
        // A memory backend per node: `-numa node,mem=` is gone from the machine types of QEMU 5.1 and later.
        args.extend(words(["-object", &format!("memory-backend-ram,id=ram{node},size={node_mib}M")]));
        args.extend(words(["-numa", &format!("node,nodeid={node},cpus={first}-{last},memdev=ram{node}")]));
    }
    args.extend(distances(topology));
    args
}

fn distances(topology: &Topology) -> Vec<String> {
    let nodes = topology.numa.nodes;
    let pairs = (0..nodes).flat_map(|from| (from + 1..nodes).map(move |to| (from, to)));
    // One direction is enough: QEMU mirrors it.
    let distance = topology.numa.distance;
    pairs.flat_map(|(from, to)| words(["-numa", &format!("dist,src={from},dst={to},val={distance}")])).collect()
}

fn quiet() -> Vec<String> {
    words([
        // No floppy, CD, network card or VGA: each would be probed by firmware and kernel.
        "-nodefaults",
        // Nothing of the user's QEMU configuration may change a measurement.
        "-no-user-config",
        // A reboot is how the kernel ends after a panic (panic=-1): end with it.
        "-no-reboot",
        // No window, no monitor on a terminal that is ours.
        "-display",
        "none",
        "-monitor",
        "none",
    ])
}

fn console(path: Option<&Path>) -> Vec<String> {
    // For a person: the terminal, with QEMU's own keys behind Ctrl-A (Ctrl-A X ends it).
    let Some(path) = path else { return words(["-serial", "mon:stdio"]) };
    // A file and no pipe: QEMU never waits for us, and the log is there even when we are killed.
    words(["-serial", &format!("file:{}", path.display())])
}

fn event_port(path: &Path) -> Vec<String> {
    words([
        "-device",
        "virtio-serial-pci",
        "-chardev",
        &format!("file,id=events,path={}", in_option(path)),
        // Events have a channel of their own: a line on the console can be cut in two by a kernel message.
        "-device",
        &format!("virtserialport,chardev=events,name={EVENT_PORT}"),
    ])
}

fn virtio_disk(disk: &Disk) -> Vec<String> {
    let Disk { path, serial } = disk;
    words([
        "-drive",
        // cache=unsafe: the disk is thrown away after the boot, so a flush to the host's disk would only measure the host's disk.
        &format!("file={},if=none,id={serial},format=raw,cache=unsafe", in_option(path)),
        "-device",
        // The guest finds its disk by the serial number: the order of /dev/vda and /dev/vdb is the kernel's.
        &format!("virtio-blk-pci,drive={serial},serial={serial}"),
    ])
}

/// A path within an option of QEMU, where a comma ends a value and two are one (util/qemu-option.c, get_opt_value()).
pub fn in_option(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn kernel(accel: Accel, files: &BootFiles<'_>) -> Vec<String> {
    let (kernel, initrd) = (files.kernel.display().to_string(), files.initrd.display().to_string());
    words(["-kernel", &kernel, "-initrd", &initrd, "-append", &command_line(accel)])
}

/// The kernel's command line.
pub fn command_line(accel: Accel) -> String {
    let mut words = vec![
        "console=ttyS0",
        // Reboot at once after a panic; -no-reboot turns that into the end of QEMU.
        "panic=-1",
        // A task that oopsed never releases its locks: all that follows would be a hang. Panic instead, while the cause is on the console.
        "oops=panic",
        // Each line begins with its <level>, so that a warning can be told from chatter.
        "console_msg_format=syslog",
        // Levels 0 to 4: panics, oopses, WARN, lockdep and KASAN reports (KERN_WARNING and above) come out; the hundreds of
        // KERN_INFO lines of a boot, each some ms on an emulated serial line, do not.
        "loglevel=5",
    ];
    if accel != Accel::Kvm {
        // Skips the calibration of the delay loop, most of the boot time of many emulated CPUs. Delays are short then, which only
        // real hardware would mind, and KCSAN (vm-configs/kconfig/kcsan.config).
        words.push("lpj=1000000");
    }
    if accel == Accel::Tcg {
        // The test whether timer interrupts arrive counts them over a few ms: on a busy host none may come, and the kernel says that the
        // board is broken (check_timer(), arch/x86/kernel/apic/io_apic.c).
        words.push("no_timer_check");
        // So is the time-stamp counter, which QEMU reads from the host's clock, held against a timer: "TSC found unstable" on a busy host
        // (clocksource_watchdog(), kernel/time/clocksource.c).
        words.push("tsc=nowatchdog");
        // A CPU that the host does not run looks stuck to the others. 8 of them on 2 busy CPUs have been seen to wait for 25 s (RCU's limit
        // is 21 s, that of soft lockups twice watchdog_thresh); a guest that hangs is silent for longer.
        words.extend(["rcupdate.rcu_cpu_stall_timeout=60", "watchdog_thresh=30"]);
    }
    if accel == Accel::Simulated {
        // The simulator's time-stamp counter counts virtual nanoseconds on all CPUs alike (simulator/src/clock.rs, TSC_KHZ): no need to
        // calibrate it or to watch it.
        words.extend(["tsc=reliable", "tsc_early_khz=1000000"]);
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(accel: Accel, topology: &str, disks: &[Disk]) -> String {
        let topology = Topology::load(topology).unwrap();
        let files = BootFiles {
            kernel: Path::new("/k/bzImage"),
            initrd: Path::new("/b/initrd"),
            console: Some(Path::new("/b/console.log")),
            events: Path::new("/b/events.jsonl"),
            disks,
        };
        arguments(accel, &topology, &files).join(" ")
    }

    fn assert_has(args: &str, parts: &[&str]) {
        for part in parts {
            assert!(args.contains(part), "{part} is missing in: {args}");
        }
    }

    #[test]
    fn a_comma_in_a_path_ends_no_option() {
        assert_eq!(in_option(Path::new("/a,b/c")), "/a,,b/c");
        assert!(event_port(Path::new("/a,b")).contains(&"file,id=events,path=/a,,b".to_owned()));
    }

    #[test]
    fn tcg_is_multi_threaded_on_a_fast_booting_machine() {
        let args = built(Accel::Tcg, "smoke", &[]);
        assert_has(
            &args,
            &[
                "-accel tcg,thread=multi",
                "-M pc",
                "-cpu max,la57=off",
                "-smp 2,sockets=1,cores=2,threads=1",
                "-m 2048M",
            ],
        );
        assert_has(
            &args,
            &["-no-reboot", "panic=-1", "lpj=", "no_timer_check", "tsc=nowatchdog", "rcu_cpu_stall_timeout=60"],
        );
        assert!(!args.contains("-numa") && !args.contains("-drive"), "{args}");
    }

    #[test]
    fn the_simulated_machine_draws_and_counts_alike_in_each_boot() {
        let args = built(Accel::Simulated, "smoke", &[]);
        assert_has(&args, &["-accel tcg,thread=multi,tb-size=512", "tsc=reliable tsc_early_khz=1000000", "-seed 1"]);
        assert!(!built(Accel::Tcg, "smoke", &[]).contains("tsc=reliable") && !args.contains("stall_timeout"));
        // A hypervisor that shows itself makes spinlocks unfair.
        for topology in ["smoke", "r5.metal"] {
            assert_has(&built(Accel::Simulated, topology, &[]), &["-cpu max,hypervisor=off"]);
        }
    }

    #[test]
    fn kvm_takes_the_hosts_cpu_and_real_delays() {
        let args = built(Accel::Kvm, "smoke", &[]);
        assert_has(&args, &["-accel kvm", "-cpu host"]);
        assert!(!args.contains("lpj="), "{args}");
    }

    #[test]
    fn two_nodes_share_memory_and_cpus_equally() {
        let args = built(Accel::Tcg, "r5.metal", &[]);
        assert_has(&args, &["-smp 96,sockets=2,cores=24,threads=2", "id=ram0,size=4096M", "id=ram1,size=4096M"]);
        assert_has(
            &args,
            &["nodeid=0,cpus=0-47,memdev=ram0", "nodeid=1,cpus=48-95,memdev=ram1", "dist,src=0,dst=1,val=21"],
        );
    }

    #[test]
    fn console_and_events_go_to_files() {
        let args = built(Accel::Tcg, "smoke", &[]);
        assert_has(&args, &["-serial file:/b/console.log", "file,id=events,path=/b/events.jsonl", "name=lab.events"]);
    }

    #[test]
    fn each_disk_is_virtio_and_unsafe_and_has_a_serial_number() {
        let disk = |serial: &'static str| Disk { path: format!("/b/layers.{serial}").into(), serial };
        let args = built(Accel::Tcg, "smoke", &[disk("ext4"), disk("xfs")]);
        for part in [
            "file=/b/layers.ext4,if=none,id=ext4,format=raw,cache=unsafe",
            "virtio-blk-pci,drive=ext4,serial=ext4",
            "virtio-blk-pci,drive=xfs,serial=xfs",
        ] {
            assert_has(&args, &[part]);
        }
    }
}
