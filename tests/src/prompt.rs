//! A prompt on the console of a guest that has no shell: enough to look around.

use anyhow::Result;
use std::fs;
use std::io::{BufRead, Write, stdin, stdout};

/// What the prompt understands.
const HELP: &str = "commands: cat FILE, ls DIR, mounts, dmesg is on this console, exit";

/// Reads commands until `exit` or end of input.
///
/// # Errors
/// The console is gone.
pub fn run() -> Result<()> {
    println!("{HELP}");
    loop {
        print!("lab> ");
        stdout().flush()?;
        let mut line = String::new();
        if stdin().lock().read_line(&mut line)? == 0 || line.trim() == "exit" {
            return Ok(());
        }
        println!("{}", obey(line.trim()));
    }
}

fn obey(line: &str) -> String {
    let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
    let said = match command {
        "" => Ok(String::new()),
        "cat" => fs::read_to_string(argument),
        "mounts" => fs::read_to_string("/proc/self/mountinfo"),
        "ls" => names(argument),
        _ => Ok(HELP.into()),
    };
    said.unwrap_or_else(|error| format!("{line}: {error}"))
}

fn names(dir: &str) -> std::io::Result<String> {
    let entries = fs::read_dir(if dir.is_empty() { "/" } else { dir })?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_answer_and_errors_are_told() {
        assert!(obey("mounts").contains(" / "));
        assert!(obey("ls /proc/self").contains("mountinfo"));
        assert!(obey("cat /nowhere").contains("No such file"));
        assert_eq!(obey("fly"), HELP);
    }
}
