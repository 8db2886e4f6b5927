//! Builds a kernel, once: what is finished lies in the cache under its key.

use super::kconfig::Kconfig;
use super::tree::Tree;
use super::{Kernel, digest};
use crate::cache::{Cache, or_no_space};
use crate::event::Events;
use crate::failure::{Exit, Failure};
use crate::process::Task;
use crate::stage::Stage;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use xshell::{Shell, cmd};

/// The image, in a build folder.
pub const BZIMAGE: &str = "arch/x86/boot/bzImage";

/// Longest build: kasan on one slow CPU.
const BUILD_LIMIT: Duration = Duration::from_secs(4 * 3600);

/// Longest configuration; it compiles kconfig first.
const CONFIG_LIMIT: Duration = Duration::from_secs(600);

/// Space for the objects and images of a build, MiB. kasan's objects are the largest.
const NEEDED_MIB: u64 = 1000;

/// Part of each key. Change it when this file builds another kernel from the same source, config and compiler.
const BUILD_RECIPE: &str = "build 1";

/// gcc lets a goto jump into the scope of a guard(), whose destructor then gives back what was never taken; clang refuses it
/// (include/linux/cleanup.h: goto and cleanup helpers are never mixed in the same function).
const STRICT: &str = "-Wjump-misses-init";

/// Digits of the key in `uname -r`.
const RELEASE_DIGITS: usize = 8;

/// Variables of the caller's environment that would change the build.
pub(super) const UNWANTED_ENV: [&str; 14] = [
    "ARCH",
    "SUBARCH",
    "CROSS_COMPILE",
    "CC",
    "HOSTCC",
    "LD",
    "LLVM",
    "KCFLAGS",
    "KCPPFLAGS",
    "HOSTCFLAGS",
    "KBUILD_OUTPUT",
    "KCONFIG_CONFIG",
    "MAKEFLAGS",
    "LOCALVERSION",
];

/// The kernel of a tree and a kconfig: from the cache, or built now.
///
/// # Errors
/// No space, an option that vanished, or a build that fails; its log stays.
pub fn build(name: &str, tree: &Tree, kconfig: &Kconfig, cache: &Cache, events: Events<'_>) -> Result<Kernel> {
    let compiler = compiler()?;
    let key = key_of(tree, kconfig, &compiler);
    let dir = cache.dir().join("kernels").join(&key);
    let stored = match stored(&dir) {
        Some(kernel) => kernel,
        None => {
            let label = format!("build {name} ({})", kconfig.name());
            let job = Job { tree, kconfig, key: &key, dir: &dir, compiler };
            job.run(Stage::start(events, label), cache).map_err(or_no_space)?
        }
    };
    // Another name, and patches with other names, may mean the same kernel.
    Ok(Kernel { name: name.to_owned(), series: tree.series.clone(), ..stored })
}

/// The key of the kernel that [`build`] makes of these.
///
/// # Errors
/// There is no compiler.
pub fn key(tree: &Tree, kconfig: &Kconfig) -> Result<String> {
    Ok(key_of(tree, kconfig, &compiler()?))
}

fn key_of(tree: &Tree, kconfig: &Kconfig, compiler: &str) -> String {
    digest::key([BUILD_RECIPE, &tree.key, &kconfig.text, compiler].into_iter().chain(warnings(kconfig)))
}

/// Warnings that a kernel which is only built is compiled with, beyond the kernel's own choice.
fn warnings(kconfig: &Kconfig) -> Option<&'static str> {
    kconfig.is_build_only().then_some(STRICT)
}

/// A finished kernel of the cache.
pub fn stored(dir: &Path) -> Option<Kernel> {
    let text = fs::read_to_string(dir.join("kernel.json")).ok()?;
    let kernel = located(serde_json::from_str(&text).ok()?, dir);
    (kernel.bzimage.is_file() && kernel.vmlinux.is_file()).then_some(kernel)
}

/// With the paths that its folder gives it; they belong to one host and are not written down.
fn located(kernel: Kernel, dir: &Path) -> Kernel {
    Kernel { bzimage: dir.join("bzImage"), vmlinux: dir.join("vmlinux"), ..kernel }
}

/// First lines of what compiler and linker say of themselves: part of each key.
pub(super) fn compiler() -> Result<String> {
    Ok(format!("{}; {}", first_line("gcc")?, first_line("ld")?))
}

fn first_line(program: &str) -> Result<String> {
    let sh = Shell::new()?;
    let output = Task::new(cmd!(sh, "{program} --version")).run()?;
    Ok(output.lines().next().unwrap_or_default().to_owned())
}

/// One build.
struct Job<'a> {
    tree: &'a Tree,
    kconfig: &'a Kconfig,
    key: &'a str,
    /// Where the finished kernel goes.
    dir: &'a Path,
    compiler: String,
}

impl Job<'_> {
    fn run(&self, mut stage: Stage<'_>, cache: &Cache) -> Result<Kernel> {
        cache.need_space(NEEDED_MIB, "building a kernel")?;
        let _shared = cache.share_lock()?;
        fs::create_dir_all(self.dir)?;
        self.tree.make()?;
        let (build, is_warm) = self.tree.build_dir(&self.kconfig.name())?;
        self.configure(&build)?;
        let steps = Steps::of(cache, &self.kconfig.name(), is_warm);
        let done = self.compile(&build, &steps, &mut stage)?;
        steps.remember(done);
        let kernel = self.store(&build)?;
        stage.finish(format!("{done} objects{}", if is_warm { ", the others were there" } else { "" }));
        Ok(kernel)
    }

    fn make(&self, build: &Path) -> Command {
        let mut make = Command::new("make");
        make.arg("-C").arg(&self.tree.dir).arg(format!("O={}", build.display()));
        make.arg(format!("LOCALVERSION={}", local_version(self.key)));
        // The same source must give the same bytes, whoever builds it and when.
        make.args([
            "KBUILD_BUILD_TIMESTAMP=1970-01-01",
            "KBUILD_BUILD_USER=lab",
            "KBUILD_BUILD_HOST=lab",
            "KBUILD_BUILD_VERSION=1",
        ]);
        if let Some(warnings) = warnings(self.kconfig) {
            make.arg(format!("KCFLAGS={warnings}"));
        }
        for name in UNWANTED_ENV {
            make.env_remove(name);
        }
        make.env("LC_ALL", "C");
        make
    }

    fn configure(&self, build: &Path) -> Result<()> {
        let wanted = build.join("all.config");
        fs::write(&wanted, &self.kconfig.text)?;
        let mut make = self.make(build);
        make.arg(format!("KCONFIG_ALLCONFIG={}", wanted.display())).arg("allnoconfig");
        Task::new(make).limit(CONFIG_LIMIT).on_failure(Exit::Unavailable, HINT).run()?;
        self.kconfig.check(&fs::read_to_string(build.join(".config"))?)
    }

    /// Compiles; returns how many steps it took.
    fn compile(&self, build: &Path, steps: &Steps, stage: &mut Stage<'_>) -> Result<u64> {
        let mut make = self.make(build);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        make.arg(format!("-j{cpus}")).args(["bzImage", "vmlinux"]);
        let task =
            Task::new(make).limit(BUILD_LIMIT).log(self.dir.join("build.log")).on_failure(Exit::Unavailable, HINT);
        let done = |log: &Path| count_steps(&fs::read_to_string(log).unwrap_or_default());
        let log = task.run_watched(|log| stage.progress("objects", || (done(log), steps.expected)))?;
        // A mutant may warn: it is wrong on purpose.
        if self.kconfig.is_build_only() {
            self.refuse_warnings(build, &log)?;
        }
        Ok(count_steps(&log))
    }

    /// A patch must not bring warnings. The base may have some.
    fn refuse_warnings(&self, build: &Path, log: &str) -> Result<()> {
        let changed: Vec<&str> = self.tree.changed().collect();
        let warned = warned(log, &changed);
        if warned.is_empty() {
            return Ok(());
        }
        for path in changed {
            // Compiled again next time, with its warning. One that is not there is of a file that this kernel does without.
            let _ = fs::remove_file(build.join(path).with_extension("o"));
        }
        let message = format!(
            "the compiler warns of files that the patches change:\n  {}\n\
             the whole log: {}\nnext: mend the patch: `cargo xtask series edit DIR`",
            warned.join("\n  "),
            self.dir.join("build.log").display()
        );
        Err(Failure::error(Exit::Regression, message))
    }

    /// Copies the images out of the build folder and writes `kernel.json`, which makes the kernel exist, last.
    fn store(&self, build: &Path) -> Result<Kernel> {
        let release = fs::read_to_string(build.join("include/config/kernel.release"))?.trim().to_owned();
        let expected = local_version(self.key);
        ensure!(release.ends_with(&expected), "the kernel calls itself {release}, which does not end with {expected}");
        for (from, to) in [(BZIMAGE, "bzImage"), ("vmlinux", "vmlinux"), (".config", "config")] {
            fs::copy(build.join(from), self.dir.join(to)).with_context(|| format!("the build made no {from}"))?;
        }
        let kernel = Kernel {
            key: self.key.to_owned(),
            release,
            base: self.tree.version.clone(),
            series: self.tree.series.clone(),
            kconfig: self.kconfig.names.clone(),
            compiler: self.compiler.clone(),
            ..Kernel::default()
        };
        let file = tempfile::NamedTempFile::new_in(self.dir)?;
        fs::write(file.path(), serde_json::to_string_pretty(&kernel)?)?;
        file.persist(self.dir.join("kernel.json"))?;
        Ok(located(kernel, self.dir))
    }
}

const HINT: &str = "if a program or a header is missing, run `cargo xtask setup`; if the source is broken, mend it";

/// What follows the version in `uname -r`: the host knows by it which kernel a guest runs.
fn local_version(key: &str) -> String {
    format!("-lab-{}", &key[..RELEASE_DIGITS])
}

/// Lines of a build's log that warn of one of these files, each once.
fn warned<'a>(log: &'a str, files: &[&str]) -> Vec<&'a str> {
    let is_of = |line: &str, file: &str| {
        let Some((before, _)) = line.split_once(&format!("{file}:")) else { return false };
        before.is_empty() || before.ends_with('/')
    };
    let is_warning = |line: &&str| line.contains(": warning: ") && files.iter().any(|file| is_of(line, file));
    let mut warned: Vec<&str> = log.lines().filter(is_warning).collect();
    warned.sort_unstable();
    warned.dedup();
    warned
}

/// Lines of a quiet build's log that stand for a step: two blanks, then the tool in capitals.
fn count_steps(log: &str) -> u64 {
    let is_step =
        |line: &&str| line.strip_prefix("  ").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()));
    log.lines().filter(is_step).count() as u64
}

/// How many steps to expect, as the last build of the kind took.
struct Steps {
    expected: Option<u64>,
    file: PathBuf,
}

impl Steps {
    fn of(cache: &Cache, kconfig: &str, is_warm: bool) -> Steps {
        let kind = if is_warm { "warm" } else { "cold" };
        let file = cache.dir().join(format!("steps-{kconfig}-{kind}"));
        let remembered = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
        Steps { expected: remembered.or((!is_warm).then_some(STEPS_ESTIMATE)), file }
    }

    fn remember(&self, done: u64) {
        // Only a guess for the next progress bar: not worth an error.
        let _ = fs::write(&self.file, done.to_string());
    }
}

/// Steps of a cold build of base + bench, for the first bar ever shown.
const STEPS_ESTIMATE: u64 = 1810;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_and_other_lines_are_not() {
        let log = "make[1]: Entering directory\n  CC      fs/namespace.o\n  AR      fs/built-in.a\nfs/a.c: In function\n   12 | x\n  LD      vmlinux\n";
        assert_eq!(count_steps(log), 3);
    }

    #[test]
    fn warnings_count_where_they_are_of_a_changed_file() {
        let log = "/w/fs/namespace.c:14:25: warning: jump skips variable initialization\n  CC fs/namespace.o\n\
            ../fs/namespace.c:14:25: warning: jump skips variable initialization\n\
            /w/fs/namespace.c:14:25: warning: jump skips variable initialization\n\
            /w/myfs/pnode.c:1:1: warning: x\nxfs/pnode.c:1:1: warning: x\nfs/pnode.c:1:1: note: x\n";
        assert_eq!(warned(log, &["fs/namespace.c", "fs/pnode.c"]).len(), 2);
        assert_eq!(warned(log, &["fs/namei.c"]), [""; 0]);
    }

    #[test]
    fn what_is_only_built_is_built_with_more_warnings_and_is_another_kernel() {
        let kconfig = |name: &str| Kconfig::load(Path::new(".."), &[name]).unwrap();
        assert_eq!((warnings(&kconfig("rt")), warnings(&kconfig("lockdep"))), (Some(STRICT), None));
    }

    #[test]
    fn a_release_carries_the_start_of_the_key() {
        assert_eq!(local_version("0123456789abcdef"), "-lab-01234567");
    }

    #[test]
    fn a_kernel_exists_when_its_record_and_its_images_do() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("bzImage");
        let kernel = located(Kernel { name: "x".into(), ..Kernel::default() }, dir.path());
        fs::write(&kernel.vmlinux, "").unwrap();
        fs::write(dir.path().join("kernel.json"), serde_json::to_string(&kernel).unwrap()).unwrap();
        assert_eq!(stored(dir.path()), None);
        fs::write(&image, "").unwrap();
        assert_eq!(stored(dir.path()), Some(kernel));
        fs::write(dir.path().join("kernel.json"), "{").unwrap();
        assert_eq!(stored(dir.path()), None);
    }

    #[test]
    fn the_number_of_steps_is_remembered_per_kind_of_build() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::lock_at(dir.path()).unwrap();
        assert_eq!(Steps::of(&cache, "bench", true).expected, None);
        Steps::of(&cache, "bench", true).remember(42);
        assert_eq!(Steps::of(&cache, "bench", true).expected, Some(42));
        assert_eq!(Steps::of(&cache, "bench", false).expected, Some(STEPS_ESTIMATE));
    }
}
