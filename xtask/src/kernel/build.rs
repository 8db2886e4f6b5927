//! From a recipe to a bootable image. What is built is never built twice.
//!
//! A tree is a copy of its base by hard links, patched by replacing files. Its build folder begins as a copy of the build of a shorter
//! prefix, and every tree is moved to one and the same path while it is built: so make sees the same commands as
//! before, and rebuilds only what the patched files reach. (Without that, objtool is rebuilt, and with it everything.)

use super::catalog::{Base, Recipe, Tree};
use super::patch::Patch;
use super::source::{self, hex};
use super::{Kernel, kconfig, series};
use crate::cache::Cache;
use crate::event::{Event, Events};
use crate::failure::{Exit, Failure};
use crate::process::{Task, check_interrupt};
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};
use xshell::{Shell, cmd};

/// A build takes 0.2 GiB, with lockdep or KASAN 0.6.
const BUILD_MIB: u64 = 1000;

/// Limit of one build: an hour. A cold one takes five to nine minutes on two cores.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);

/// Steps of a cold build, for the first one's progress; later ones know from the build before.
const STEPS: u64 = 2200;

/// Everything a build is made of.
pub struct Order<'a> {
    /// What to build.
    pub recipe: &'a Recipe,
    /// The catalog's base.
    pub base: &'a Base,
    /// The unpatched tree.
    pub pristine: &'a Path,
    /// Fragment names.
    pub fragments: &'a [&'a str],
    /// Their text.
    pub config: &'a str,
    /// The cache.
    pub cache: &'a Cache,
}

impl Order<'_> {
    /// Builds, or finds what was built.
    ///
    /// # Errors
    /// A patch that does not apply, an option that did not take, make's last lines, a full disk.
    pub fn fill(&self, events: Events<'_>) -> Result<Kernel> {
        let compiler = compiler()?;
        let key = self.key(&self.recipe.patches, &compiler)?;
        let build = self.build_dir(&self.recipe.patches)?;
        if let Some(kernel) = finished(&build, &key) {
            return Ok(Kernel { name: self.recipe.name.clone(), ..kernel });
        }
        self.cache.need_space(BUILD_MIB, "building a kernel")?;
        Site::recover(self.cache.dir())?;
        self.make_tree()?;
        self.begin_build(&build, &compiler)?;
        let kernel = {
            let site = Site::enter(self.cache.dir(), &self.tree_dir(&self.recipe.patches)?)?;
            self.make(&site.path.join(self.build_name()), key, compiler, events)?
        };
        let kernel = kernel.located(&build);
        let json = serde_json::to_string_pretty(&kernel)?;
        fs::write(build.join("kernel.json"), json).context("cannot write kernel.json")?;
        Ok(kernel)
    }

    /// Hash of everything that makes a difference to the image.
    fn key(&self, patches: &[Patch], compiler: &str) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(source::identity(&self.recipe.tree, self.base, self.pristine)?);
        for part in patches.iter().map(|patch| patch.text.as_str()).chain([self.config, compiler]) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Ok(hex(&hash.finalize())[..16].to_owned())
    }

    /// Hash of source and patches: the name of the tree.
    fn tree_dir(&self, patches: &[Patch]) -> Result<PathBuf> {
        let mut hash = Sha256::new();
        hash.update(source::identity(&self.recipe.tree, self.base, self.pristine)?);
        patches.iter().for_each(|patch| hash.update(&patch.text));
        Ok(self.cache.dir().join("trees").join(&hex(&hash.finalize())[..16]))
    }

    fn build_dir(&self, patches: &[Patch]) -> Result<PathBuf> {
        Ok(self.tree_dir(patches)?.join(self.build_name()))
    }

    fn build_name(&self) -> String {
        format!("build-{}", self.fragments.join("-"))
    }

    /// The patched tree, whole or not at all.
    fn make_tree(&self) -> Result<()> {
        let tree = self.tree_dir(&self.recipe.patches)?;
        if tree.exists() {
            return Ok(());
        }
        let parent = tree.parent().context("a tree has a parent folder")?;
        fs::create_dir_all(parent)?;
        let scratch = tempfile::tempdir_in(parent)?;
        let copy = scratch.path().join("tree");
        copy_tree(self.pristine, &copy)?;
        series::apply_all(&self.recipe.patches, &copy)?;
        fs::rename(&copy, &tree).with_context(|| format!("cannot move the patched tree to {}", tree.display()))
    }

    /// Starts from the build of the longest shorter prefix, if there is one with the same configuration and compiler.
    fn begin_build(&self, build: &Path, compiler: &str) -> Result<()> {
        if build.join("kernel.json").exists() || build.join(".config").exists() {
            return self.touch_patched();
        }
        let count = if self.recipe.tree == Tree::Base { self.recipe.patches.len() } else { 0 };
        for shorter in (0..count).rev() {
            let patches = &self.recipe.patches[..shorter];
            let from = self.build_dir(patches)?;
            if finished(&from, &self.key(patches, compiler)?).is_some() {
                copy_build(&from, build)?;
                return self.touch_patched();
            }
        }
        fs::create_dir_all(build).with_context(|| format!("cannot make {}", build.display()))
    }

    /// Gives the patched files a new time. Their tree may be older than the objects that were copied into it, and make
    /// would then take an object of the unpatched file for a good one.
    fn touch_patched(&self) -> Result<()> {
        let tree = self.tree_dir(&self.recipe.patches)?;
        for change in self.recipe.patches.iter().flat_map(|patch| &patch.files).filter(|change| change.new.is_some()) {
            let path = tree.join(change.path());
            File::open(&path)?
                .set_modified(SystemTime::now())
                .with_context(|| format!("cannot touch {}", path.display()))?;
        }
        Ok(())
    }

    fn make(&self, build: &Path, key: String, compiler: String, events: Events<'_>) -> Result<Kernel> {
        let _ = fs::remove_file(build.join("kernel.json"));
        self.configure(build)?;
        self.compile(build, &key, events)?;
        let release =
            fs::read_to_string(build.join("include/config/kernel.release")).context("the build names no release")?;
        let kernel = Kernel {
            name: self.recipe.name.clone(),
            key,
            release: release.trim().to_owned(),
            base: source::version_of(self.pristine)?,
            series: self.recipe.patches.iter().map(|patch| patch.slug.clone()).collect(),
            kconfig: self.fragments.iter().map(|&fragment| fragment.to_owned()).collect(),
            compiler,
            ..Kernel::default()
        };
        Ok(kernel)
    }

    /// allnoconfig with the fragments on top: nothing is in the kernel that no fragment asks for.
    fn configure(&self, build: &Path) -> Result<()> {
        let fragments = build.join("requested.config");
        fs::write(&fragments, self.config)?;
        let mut make = self.make_command(build)?;
        make.arg(format!("KCONFIG_ALLCONFIG={}", fragments.display())).arg("allnoconfig");
        Task::new(make).limit(Duration::from_secs(120)).log(build.join("config.log")).run()?;
        kconfig::check(self.config, &build.join(".config"))
    }

    fn compile(&self, build: &Path, key: &str, events: Events<'_>) -> Result<()> {
        let stage = format!("build {} ({})", self.recipe.name, self.fragments.join("+"));
        let steps_path = self.cache.dir().join(format!("steps-{}", self.fragments.join("-")));
        let known = fs::read_to_string(&steps_path).ok().and_then(|text| text.trim().parse().ok());
        let warm = build.join("vmlinux").exists();
        let total = (!warm).then_some(known.unwrap_or(STEPS));
        let mut make = self.make_command(build)?;
        make.arg(format!("--jobs={}", std::thread::available_parallelism()?));
        // The release names the key: a guest cannot run another kernel than the host believes.
        make.arg(format!("LOCALVERSION=-lab-{}", &key[..8])).args(["bzImage", "vmlinux"]);
        let start = Instant::now();
        events.hear(&Event::StageStarted { stage: stage.clone() });
        let mut shown = 0;
        let log = build.join("build.log");
        let output = Task::new(make)
            .limit(BUILD_LIMIT)
            .log(&log)
            .on_failure(Exit::Unavailable, "mend the source or the configuration, then run the same command again")
            .run_watched(|log| {
                // Counting costs a read of the log; the log only grows, so its length says whether anything is new.
                let length = fs::metadata(log).map_or(0, |metadata| metadata.len());
                if length > shown + 2000 {
                    shown = length;
                    let done = steps(&fs::read_to_string(log).unwrap_or_default());
                    events.hear(&Event::StageProgress { stage: stage.clone(), done, total, unit: "objects" });
                }
            })?;
        if !warm {
            fs::write(steps_path, steps(&output).to_string())?;
        }
        events.hear(&Event::StageFinished { stage, result: key.to_owned(), elapsed: start.elapsed() });
        check_interrupt("the build")
    }

    /// make, with everything fixed that would make two builds of one source differ.
    fn make_command(&self, build: &Path) -> Result<Command> {
        let mut make = Command::new("make");
        make.current_dir(build.parent().context("a build folder lies in its tree")?);
        make.arg(format!("O={}", build.file_name().context("a build folder has a name")?.display()));
        make.env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
            .env("KBUILD_BUILD_USER", "mountlab")
            .env("KBUILD_BUILD_HOST", "mountlab");
        // What cargo and the user's shell export must not reach the kernel's make.
        for name in ["MAKEFLAGS", "MFLAGS", "CARGO_MAKEFLAGS", "CFLAGS", "KCFLAGS", "ARCH", "CROSS_COMPILE"] {
            make.env_remove(name);
        }
        Ok(make)
    }
}

/// The one path at which every tree is built. The tree goes home when this is dropped, or, after a crash, before the next build.
struct Site {
    path: PathBuf,
    home: PathBuf,
}

impl Site {
    /// Moves home what a crash left at the site; what make had finished by then is not made again.
    fn recover(cache: &Path) -> Result<()> {
        let (path, note) = (cache.join("site"), cache.join("site.home"));
        if path.exists() {
            let home = PathBuf::from(fs::read_to_string(note).context("a build was cut short, and its note is gone")?);
            drop(Site { path, home });
        }
        Ok(())
    }

    /// Moves a tree to the site.
    fn enter(cache: &Path, home: &Path) -> Result<Site> {
        let path = cache.join("site");
        fs::write(cache.join("site.home"), home.as_os_str().as_encoded_bytes())?;
        fs::rename(home, &path).with_context(|| format!("cannot move {} to the building site", home.display()))?;
        Ok(Site { path, home: home.to_owned() })
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Err(error) = fs::rename(&self.path, &self.home) {
            eprintln!("mountlab: cannot move {} back to {}: {error}", self.path.display(), self.home.display());
        }
    }
}

/// A finished build with this key.
fn finished(build: &Path, key: &str) -> Option<Kernel> {
    let text = fs::read_to_string(build.join("kernel.json")).ok()?;
    let kernel: Kernel = serde_json::from_str(&text).ok()?;
    let kernel = kernel.located(build);
    (kernel.key == key && kernel.bzimage.exists()).then_some(kernel)
}

/// Copies a tree by hard links; on another file system by content.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let shell = Shell::new()?;
    let copy = |how: &str| {
        Task::new(cmd!(shell, "cp --archive {how} {from} {to}"))
            .limit(Duration::from_secs(600))
            .on_failure(Exit::NoSpace, "free some space")
            .run()
    };
    if copy("--link").is_err() {
        let _ = fs::remove_dir_all(to);
        copy("--reflink=auto")?;
    }
    // What an earlier build left in a user's tree is no part of the source.
    for entry in fs::read_dir(to)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("build-") && entry.path().join(".config").exists() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Copies a build folder with its times, whole or not at all; the mark of a finished build stays behind.
fn copy_build(from: &Path, to: &Path) -> Result<()> {
    let scratch = to.with_extension("copying");
    let _ = fs::remove_dir_all(&scratch);
    let shell = Shell::new()?;
    Task::new(cmd!(shell, "cp --archive --reflink=auto {from} {scratch}"))
        .limit(Duration::from_secs(600))
        .on_failure(Exit::NoSpace, "free some space")
        .run()?;
    let _ = fs::remove_file(scratch.join("kernel.json"));
    fs::rename(&scratch, to).with_context(|| format!("cannot move a build to {}", to.display()))
}

/// Lines of make that stand for a step: "  CC      fs/namespace.o".
fn steps(log: &str) -> u64 {
    log.lines()
        .filter(|line| line.starts_with("  ") && line.as_bytes().get(2).is_some_and(u8::is_ascii_uppercase))
        .count() as u64
}

/// First lines of `gcc --version` and `ld --version`.
fn compiler() -> Result<String> {
    let first = |program: &str| -> Result<String> {
        let shell = Shell::new()?;
        let command = cmd!(shell, "{program} --version");
        let hint = "install what `cargo xtask setup` lists";
        let output = Task::new(command).limit(Duration::from_secs(20)).on_failure(Exit::Unavailable, hint).run()?;
        Ok(output.lines().next().unwrap_or_default().to_owned())
    };
    Ok(format!("{}; {}", first("gcc")?, first("ld")?))
}

/// Whether a kernel of this recipe is built, without building it.
pub fn is_built(order: &Order<'_>) -> bool {
    let found = || -> Result<bool> {
        let key = order.key(&order.recipe.patches, &compiler()?)?;
        Ok(finished(&order.build_dir(&order.recipe.patches)?, &key).is_some())
    };
    found().unwrap_or(false)
}

/// Runs checkpatch.pl --strict over a patch, with the rules of the tree it is for.
///
/// # Errors
/// What it complains about.
pub fn checkpatch(tree: &Path, patch: &Path) -> Result<()> {
    let shell = Shell::new()?;
    let perl = cmd!(shell, "perl {tree}/scripts/checkpatch.pl --strict --terse --root {tree} {patch}");
    let hint = "mend the patch: its style is part of the series";
    Task::new(perl).limit(Duration::from_secs(60)).on_failure(Exit::PatchRejected, hint).run().map(drop)
}

/// A failure that says which prefix of a queue it belongs to.
pub fn prefix_failed(error: anyhow::Error, count: usize) -> anyhow::Error {
    let exit = crate::failure::exit_code(&error);
    Failure::error(exit, format!("the prefix of {count} patches does not build:\n{error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_goes_home_after_a_build_and_after_a_crash() {
        let cache = tempfile::tempdir().unwrap();
        let (one, two) = (cache.path().join("one"), cache.path().join("two"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        let site = Site::enter(cache.path(), &one).unwrap();
        assert!(!one.exists() && site.path.exists());
        // A crash: nobody moves the tree back.
        std::mem::forget(site);
        Site::recover(cache.path()).unwrap();
        drop(Site::enter(cache.path(), &two).unwrap());
        assert!(one.exists() && two.exists() && !cache.path().join("site").exists());
    }

    #[test]
    fn steps_are_counted_and_other_lines_are_not() {
        assert_eq!(
            steps("make[1]: Entering\n  CC      fs/namespace.o\n  LD      vmlinux\n  warning: x\nfs/x.c: note\n"),
            2
        );
    }

    #[test]
    fn an_unfinished_or_other_build_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = Kernel { key: "k".into(), ..Kernel::default() }.located(dir.path());
        fs::create_dir_all(kernel.bzimage.parent().unwrap()).unwrap();
        assert!(finished(dir.path(), "k").is_none());
        fs::write(dir.path().join("kernel.json"), serde_json::to_string(&kernel).unwrap()).unwrap();
        assert!(finished(dir.path(), "k").is_none(), "no image yet");
        fs::write(&kernel.bzimage, "").unwrap();
        assert_eq!(finished(dir.path(), "k"), Some(kernel));
        assert!(finished(dir.path(), "other").is_none());
    }
}
