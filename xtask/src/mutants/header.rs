//! What the message of a mutant says of it, beside its diff.

use crate::failure::{Exit, Failure};
use crate::kernel::{GONE_IN, Patch};
use anyhow::Result;

/// The lane of a mutant whose message names none.
pub const DEFAULT_LANE: &str = "lockdep";

/// A kernel broken on purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// File name without `.patch`.
    pub name: String,
    /// What is broken, as its users see it.
    pub breaks: String,
    /// The kconfig fragment under which it can be seen (`Lane:`).
    pub lane: String,
    /// Full names of trials that should see it (`Seen-by:`, any number): they run first.
    pub seen_by: Vec<String>,
    /// Why nothing kills it, where that is known (`Survives:`).
    pub survives: Option<String>,
    /// Why the mistake cannot be made in the kernel at hand (`Gone-in: SERIES: ...`).
    pub gone: Option<String>,
    /// Whether it is a mistake that only the series can make.
    pub own: bool,
    /// Hash of its diff: what was found of another diff by this name counts no more.
    pub digest: String,
}

/// The mutant of a patch, on the kernel that has `series`; `own` if the base has none of its name.
///
/// # Errors
/// Its message does not say what it breaks.
pub fn parse(patch: &Patch, series: Option<&str>, own: bool) -> Result<Mutant> {
    let name = &patch.slug;
    let message: Vec<&str> = patch.text.lines().take_while(|line| *line != "---").collect();
    let values =
        |key: &str| -> Vec<String> { message.iter().filter_map(|line| line.strip_prefix(key)).map(trimmed).collect() };
    let Some(breaks) = paragraph(&message, "Breaks: ") else {
        let why = format!("kernel-patches/mutants: {name}.patch: its message has no line `Breaks: ...`");
        return Err(Failure::error(Exit::Regression, why));
    };
    Ok(Mutant {
        name: name.to_owned(),
        breaks,
        lane: values("Lane: ").pop().unwrap_or_else(|| DEFAULT_LANE.into()),
        seen_by: values("Seen-by: "),
        survives: paragraph(&message, "Survives: "),
        gone: series.and_then(|series| paragraph(&message, &format!("{GONE_IN}{series}: "))),
        own,
        digest: crate::kernel::digest_of(patch.diff()),
    })
}

fn trimmed(text: &str) -> String {
    text.trim().to_owned()
}

/// The rest of the line that begins with `key`, and of those below it up to an empty one or the next that says something else.
fn paragraph(message: &[&str], key: &str) -> Option<String> {
    let from = message.iter().position(|line| line.starts_with(key))?;
    let is_other = |line: &&&str| line.is_empty() || line.starts_with("A plausible") || is_header(line);
    let below = message[from + 1..].iter().take_while(|line| !is_other(line));
    let words = std::iter::once(&message[from][key.len()..]).chain(below.copied());
    Some(words.map(str::trim).collect::<Vec<_>>().join(" "))
}

fn is_header(line: &str) -> bool {
    ["Lane: ", "Seen-by: ", "Survives: ", GONE_IN, "Signed-off-by: "].iter().any(|key| line.starts_with(key))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A mutant of the base of which only its mail is known.
    pub fn of(name: &str, mail: &str) -> Result<Mutant> {
        on(name, mail, None)
    }

    fn on(name: &str, mail: &str, series: Option<&str>) -> Result<Mutant> {
        let patch = Patch { slug: name.into(), text: mail.into(), files: Vec::new(), may_move: false };
        parse(&patch, series, false)
    }

    const MAIL: &str = "Subject: [PATCH] mutant: x\n\nBreaks: the disk stays\nbusy for ever.\nA plausible mistake when y.\n\n\
        Lane: kasan\nSeen-by: umount::a_b\nSeen-by: races::c_d\nSurvives: the window is\nnever met.\nSigned-off-by: A\n---\n\
        Lane: of the diff\n\ndiff --git a b\n";

    #[test]
    fn a_message_says_what_breaks_and_who_sees_it() {
        let mutant = of("m", MAIL).unwrap();
        assert_eq!((mutant.breaks.as_str(), mutant.lane.as_str()), ("the disk stays busy for ever.", "kasan"));
        assert_eq!(mutant.seen_by, ["umount::a_b", "races::c_d"]);
        assert_eq!(mutant.survives.as_deref(), Some("the window is never met."));
        assert_eq!(mutant.digest, of("m", &MAIL.replace("kasan", "kcsan")).unwrap().digest);
        assert_ne!(mutant.digest, of("m", &(MAIL.to_owned() + "+x\n")).unwrap().digest);
    }

    #[test]
    fn what_is_not_said_has_a_default_but_for_what_breaks() {
        let mutant = of("m", "\nBreaks: it\nSigned-off-by: A\n---\n").unwrap();
        assert_eq!((mutant.lane.as_str(), mutant.seen_by.len(), mutant.survives), (DEFAULT_LANE, 0, None));
        let error = of("m", &MAIL.replace("Breaks", "Mends")).unwrap_err();
        assert!(error.to_string().contains("m.patch: its message has no line `Breaks"), "{error}");
    }

    #[test]
    fn a_mistake_can_be_gone_in_one_series_and_possible_elsewhere() {
        let mail = MAIL.replace("Signed", "Gone-in: v1: nobody asks\nany more.\nSigned");
        assert_eq!(on("m", &mail, Some("v1")).unwrap().gone.as_deref(), Some("nobody asks any more."));
        assert_eq!((on("m", &mail, Some("v2")).unwrap().gone, of("m", &mail).unwrap().gone), (None, None));
        assert_eq!(of("m", &mail).unwrap().survives.as_deref(), Some("the window is never met."));
    }
}
