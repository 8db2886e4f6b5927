//! kconfig fragments: merged, and checked after the build system has had its say.

use crate::failure::{Exit, Failure};
use anyhow::Result;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Fragments, as one text for `KCONFIG_ALLCONFIG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kconfig {
    /// Names, in order: ["base", "bench"].
    pub names: Vec<String>,
    /// The text. Where two fragments differ, the later one holds.
    pub text: String,
}

impl Kconfig {
    /// Reads fragments of a checkout. `base` is put in front if it is not there.
    ///
    /// # Errors
    /// A fragment that does not exist; lists those that do.
    pub fn load(root: &Path, names: &[&str]) -> Result<Kconfig> {
        let dir = root.join("vm-configs/kconfig");
        let base = (!names.contains(&"base")).then_some("base");
        let names: Vec<String> = base.iter().chain(names).map(|name| (*name).to_owned()).collect();
        let texts = names.iter().map(|name| fragment(&dir, name)).collect::<Result<Vec<_>>>()?;
        Ok(Kconfig { names, text: texts.concat() })
    }

    /// A short name for folders: "bench", "bench+profile".
    pub fn name(&self) -> String {
        let names: Vec<&str> = self.names.iter().map(String::as_str).filter(|name| *name != "base").collect();
        if names.is_empty() { "base".into() } else { names.join("+") }
    }

    /// Whether a kernel of it is built to see that it builds, and never booted.
    pub fn is_build_only(&self) -> bool {
        self.names.iter().any(|name| super::BUILD_ONLY.contains(&name.as_str()))
    }

    /// Checks that the finished `.config` holds all that was asked for.
    ///
    /// # Errors
    /// Options that did not take: each with what was asked for and what there is.
    pub fn check(&self, config: &str) -> Result<()> {
        let (asked, there) = (options(&self.text), options(config));
        let is = |name: &String| there.get(name).map_or("n", String::as_str);
        let lost: Vec<String> = asked
            .iter()
            .filter(|(name, value)| is(name) != value.as_str())
            .map(|(name, value)| format!("{name}={value} was asked for, the kernel has {name}={}", is(name)))
            .collect();
        if lost.is_empty() {
            return Ok(());
        }
        let message = format!(
            "options of {} did not take:\n  {}\n\
             next: a dependency is missing in vm-configs/kconfig, or this kernel has no such option (`make menuconfig`, `/`)",
            self.names.join(" + "),
            lost.join("\n  ")
        );
        Err(Failure::error(Exit::ConfigVanished, message))
    }
}

fn fragment(dir: &Path, name: &str) -> Result<String> {
    let path = dir.join(format!("{name}.config"));
    let unknown = |error| {
        let known = crate::kernel::base::names(dir).unwrap_or_default();
        let known: Vec<&str> = known.iter().filter_map(|name| name.strip_suffix(".config")).collect();
        Failure::error(Exit::Usage, format!("no kconfig fragment `{name}` ({error})\nfragments: {}", known.join(", ")))
    };
    fs::read_to_string(path).map_err(unknown)
}

/// Options with their values; "is not set" is `n`. The last line about an option holds.
fn options(text: &str) -> BTreeMap<String, String> {
    let option = |line: &str| {
        if let Some(name) = line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set")) {
            return name.starts_with("CONFIG_").then(|| (name.to_owned(), "n".to_owned()));
        }
        let (name, value) = line.split_once('=')?;
        name.starts_with("CONFIG_").then(|| (name.to_owned(), value.trim_end().to_owned()))
    };
    text.lines().filter_map(option).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::exit_code;

    fn kconfig(text: &str) -> Kconfig {
        Kconfig { names: vec!["base".into(), "x".into()], text: text.into() }
    }

    #[test]
    fn an_option_that_vanished_is_named_with_both_values() {
        let asked = kconfig("CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\nCONFIG_D=64\n# CONFIG_E is not set\nCONFIG_F=n\n");
        let error =
            asked.check("CONFIG_A=y\nCONFIG_C=y\nCONFIG_D=32\nCONFIG_E=y\n# CONFIG_F is not set\n").unwrap_err();
        assert_eq!(exit_code(&error), Exit::ConfigVanished);
        let text = error.to_string();
        for part in ["CONFIG_B=y was asked for, the kernel has CONFIG_B=n", "CONFIG_C=y", "CONFIG_D=32", "CONFIG_E=y"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
        assert!(!text.contains("CONFIG_A") && !text.contains("CONFIG_F"), "{text}");
    }

    #[test]
    fn the_later_fragment_holds() {
        kconfig("CONFIG_A=y\nCONFIG_A=n\n").check("# CONFIG_A is not set\n").unwrap();
        assert!(kconfig("CONFIG_A=n\n# a comment about CONFIG_A=n\nCONFIG_A=y\n").check("").is_err());
    }

    #[test]
    fn base_comes_first_and_folders_have_short_names() {
        let kconfig = Kconfig::load(Path::new(".."), &["bench", "profile"]).unwrap();
        assert_eq!(kconfig.names, ["base", "bench", "profile"]);
        assert_eq!(kconfig.name(), "bench+profile");
        assert_eq!(Kconfig::load(Path::new(".."), &["base"]).unwrap().name(), "base");
        assert!(kconfig.text.contains("CONFIG_SMP=y"));
    }

    #[test]
    fn an_unknown_fragment_lists_the_known_ones() {
        let error = Kconfig::load(Path::new(".."), &["lockdpe"]).unwrap_err();
        assert_eq!(exit_code(&error), Exit::Usage);
        assert!(error.to_string().contains("kasan, kcsan, lockdep"), "{error}");
    }

    #[test]
    fn every_fragment_begins_with_what_it_is_for() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vm-configs/kconfig");
        for file in crate::kernel::base::names(&dir).unwrap() {
            let name = file.strip_suffix(".config").unwrap_or(&file);
            let text = fs::read_to_string(dir.join(&file)).unwrap();
            assert!(text.starts_with(&format!("# {name}: ")), "{file}");
        }
    }
}
