//! The plugin's arguments: `-plugin libsimulator.so,quantum=100,seed=1`.

use crate::ring::Ticks;

/// What the machine is to be. Defaults and their sources are in vm-configs/simulated/model.toml.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Length of a window in instructions: what one vCPU does is seen by the others at most so much too early or late.
    pub quantum: Ticks,
    /// Million instructions a second of each vCPU.
    pub mips: u64,
    /// Time of a `pause` instruction, in instructions.
    pub pause: Ticks,
    /// Longest time after which a spinning vCPU looks again, in instructions.
    pub spin: Ticks,
    /// Seed of the order of vCPUs within the windows; 0: in turn.
    pub seed: u64,
    /// Where the summary goes.
    pub summary: Option<String>,
    /// Where samples go: then each vCPU is sampled once in so many instructions.
    pub profile: Option<String>,
    /// Instructions between two samples.
    pub period: Ticks,
    /// Symbols of the measured kernel: then evidence is collected.
    pub symbols: Option<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            quantum: 100,
            mips: 1000,
            pause: 45,
            spin: 10_000,
            seed: 0,
            summary: None,
            profile: None,
            period: 10_000,
            symbols: None,
        }
    }
}

impl Options {
    /// Reads `name=value` arguments.
    ///
    /// # Errors
    /// A sentence that names the argument which is unknown or no number.
    pub fn parse<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<Options, String> {
        let mut options = Options::default();
        for argument in arguments {
            let (name, value) = argument.split_once('=').ok_or_else(|| format!("'{argument}' is not NAME=VALUE"))?;
            options.set(name, value)?;
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "quantum" => self.quantum = number(name, value, 1)?,
            "mips" => self.mips = number(name, value, 1)?,
            "pause" => self.pause = number(name, value, 0)?,
            "spin" => self.spin = number(name, value, 0)?,
            "seed" => self.seed = number(name, value, 0)?,
            "period" => self.period = number(name, value, 1)?,
            "summary" => self.summary = Some(value.to_owned()),
            "symbols" => self.symbols = Some(value.to_owned()),
            "profile" => self.profile = Some(value.to_owned()),
            _ => return Err(format!("there is no argument '{name}'")),
        }
        Ok(())
    }
}

fn number(name: &str, value: &str, least: u64) -> Result<u64, String> {
    let number: u64 = value.parse().map_err(|_| format!("{name}={value} is no number"))?;
    if number < least { Err(format!("{name}={value} is below {least}")) } else { Ok(number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_replace_defaults() {
        let options = Options::parse(["quantum=500", "seed=7", "summary=/tmp/s.json"]).unwrap();
        let expected = Options { quantum: 500, seed: 7, summary: Some("/tmp/s.json".into()), ..Options::default() };
        assert_eq!(options, expected);
    }

    #[test]
    fn nonsense_is_named() {
        for (argument, part) in
            [("quantum=0", "below 1"), ("mips=fast", "no number"), ("speed=3", "'speed'"), ("seed", "'seed'")]
        {
            let error = Options::parse([argument]).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
