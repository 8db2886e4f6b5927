//! Kernel configuration: fragments in, and proof that every requested option took.

use crate::failure::{Exit, Failure};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The text of fragments of `vm-configs/kconfig/`, in order.
///
/// # Errors
/// An unknown fragment is a usage error that lists the known ones.
pub fn merged(root: &Path, fragments: &[&str]) -> Result<String> {
    let dir = root.join("vm-configs/kconfig");
    let mut text = String::new();
    for fragment in fragments {
        let path = dir.join(format!("{fragment}.config"));
        let part = fs::read_to_string(&path).map_err(|_| unknown(fragment, &dir))?;
        text += &part;
    }
    Ok(text)
}

fn unknown(fragment: &str, dir: &Path) -> anyhow::Error {
    let names =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut known: Vec<String> = names.filter_map(|name| name.strip_suffix(".config").map(str::to_owned)).collect();
    known.sort();
    Failure::error(Exit::Usage, format!("no kconfig fragment is called '{fragment}'; there are: {}", known.join(", ")))
}

/// Options of a fragment or a .config: name and value; "n" for `is not set`. Later lines win.
fn options(text: &str) -> BTreeMap<String, String> {
    let mut options = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("# ").and_then(|line| line.strip_suffix(" is not set")) {
            options.insert(name.to_owned(), "n".to_owned());
        } else if let Some((name, value)) = line.split_once('=').filter(|(name, _)| name.starts_with("CONFIG_")) {
            options.insert(name.to_owned(), value.to_owned());
        }
    }
    options
}

/// Requested options that a finished .config does not have.
pub fn vanished(requested: &str, config: &str) -> Vec<String> {
    let config = options(config);
    let have = |name: &String| config.get(name).map_or("n", String::as_str).to_owned();
    let differs = |(name, value): (String, String)| {
        let found = have(&name);
        (found != value).then(|| format!("{name}={value} was requested, {found} is configured"))
    };
    options(requested).into_iter().filter_map(differs).collect()
}

/// Checks a finished .config.
///
/// # Errors
/// The options that did not take.
pub fn check(requested: &str, config: &Path) -> Result<()> {
    let text = fs::read_to_string(config).with_context(|| format!("cannot read {}", config.display()))?;
    let vanished = vanished(requested, &text);
    if vanished.is_empty() {
        return Ok(());
    }
    let list = vanished.join("\n  ");
    let message = format!(
        "kconfig options did not take:\n  {list}\nnext: mend vm-configs/kconfig/ (a dependency is missing, or the option is gone)"
    );
    Err(Failure::error(Exit::ConfigVanished, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_did_not_take_is_named() {
        let requested = "# why\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C=250\n";
        assert!(vanished(requested, "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=250\nCONFIG_D=y\n").is_empty());
        assert!(vanished(requested, "CONFIG_A=y\nCONFIG_C=250\n").is_empty());
        let said = vanished(requested, "CONFIG_B=y\nCONFIG_C=100\n");
        assert_eq!(said.len(), 3);
        assert_eq!(said[0], "CONFIG_A=y was requested, n is configured");
    }

    #[test]
    fn a_later_fragment_wins() {
        assert!(vanished("CONFIG_A=y\nCONFIG_A=n\n", "").is_empty());
    }

    #[test]
    fn every_fragment_has_reasons_and_merges() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for fragment in ["base", "bench", "lockdep", "kasan", "kcsan", "profile"] {
            let text = merged(&root, &[fragment]).unwrap();
            assert!(text.starts_with(&format!("# {fragment}: ")), "{fragment} does not begin with its reason");
        }
        assert!(merged(&root, &["nope"]).unwrap_err().to_string().contains("kasan"));
    }
}
