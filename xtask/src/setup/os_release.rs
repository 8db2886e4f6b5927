//! `/etc/os-release`: which distribution the host is.

use std::fs;

/// What os-release(5) says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OsRelease {
    /// ID: "debian".
    pub id: String,
    /// ID_LIKE: what it descends from.
    pub id_like: Vec<String>,
    /// PRETTY_NAME.
    pub name: String,
    /// VERSION_CODENAME: "bookworm".
    pub codename: String,
}

/// Distributions that name their packages alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Debian, Ubuntu and what descends from them.
    Debian,
    /// Fedora and what descends from it.
    Fedora,
    /// Arch and what descends from it.
    Arch,
    /// Another one.
    Unknown,
}

/// The host's; empty if it does not say.
pub fn read() -> OsRelease {
    let text = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|path| fs::read_to_string(path).ok());
    parse(&text.unwrap_or_default())
}

fn parse(text: &str) -> OsRelease {
    let value = |name: &str| {
        let values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        values.map(|value| value.trim_matches(['"', '\'']).to_owned()).next_back().unwrap_or_default()
    };
    OsRelease {
        id: value("ID"),
        id_like: value("ID_LIKE").split_whitespace().map(str::to_owned).collect(),
        name: value("PRETTY_NAME"),
        codename: value("VERSION_CODENAME"),
    }
}

impl OsRelease {
    /// Its family: by its own name, else by what it descends from.
    pub fn family(&self) -> Family {
        let named = std::iter::once(&self.id).chain(&self.id_like);
        let family = |id: &String| match id.as_str() {
            "debian" | "ubuntu" => Some(Family::Debian),
            "fedora" | "rhel" | "centos" => Some(Family::Fedora),
            "arch" => Some(Family::Arch),
            _ => None,
        };
        named.filter_map(family).next().unwrap_or(Family::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n";

    #[test]
    fn fields_are_read() {
        let debian = parse(DEBIAN);
        assert_eq!((debian.id.as_str(), debian.codename.as_str()), ("debian", "bookworm"));
        assert_eq!(debian.name, "Debian GNU/Linux 12 (bookworm)");
    }

    #[test]
    fn families_go_by_name_and_by_descent() {
        for (text, family) in [
            (DEBIAN, Family::Debian),
            ("ID=ubuntu\nID_LIKE=debian\n", Family::Debian),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Family::Debian),
            ("ID=fedora\n", Family::Fedora),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", Family::Fedora),
            ("ID=manjaro\nID_LIKE=arch\n", Family::Arch),
            ("ID=nixos\n", Family::Unknown),
            ("", Family::Unknown),
        ] {
            assert_eq!(parse(text).family(), family, "{text}");
        }
    }
}
