//! Reading a file that another process is still writing, line by line.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// A growing file. Lines come out whole: what has no newline yet waits for the rest.
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    partial: Vec<u8>,
}

impl Tail {
    /// A tail of `path`, which need not exist yet.
    pub fn new(path: &Path) -> Tail {
        Tail { path: path.to_owned(), file: None, partial: Vec::new() }
    }

    /// The lines completed since the last call, without their ends. Bytes that are no UTF-8 are replaced: a console may carry any.
    pub fn lines(&mut self) -> Result<Vec<String>> {
        self.read_more()?;
        let Some(end) = self.partial.iter().rposition(|&byte| byte == b'\n') else {
            return Ok(Vec::new());
        };
        let complete: Vec<u8> = self.partial.drain(..=end).collect();
        Ok(String::from_utf8_lossy(&complete).lines().map(str::to_owned).collect())
    }

    /// What stands after the last newline. Only of use when the writer has ended.
    pub fn rest(&self) -> String {
        String::from_utf8_lossy(&self.partial).into_owned()
    }

    fn read_more(&mut self) -> Result<()> {
        if self.file.is_none() {
            self.file = open_if_there(&self.path)?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        file.read_to_end(&mut self.partial).with_context(|| format!("cannot read {}", self.path.display()))?;
        Ok(())
    }
}

fn open_if_there(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot open {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_line_comes_out_once_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut tail = Tail::new(&path);
        assert!(tail.lines().unwrap().is_empty());
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one\r\ntw").unwrap();
        assert_eq!(tail.lines().unwrap(), ["one"]);
        assert_eq!(tail.rest(), "tw");
        file.write_all(b"o\nthree\n").unwrap();
        assert_eq!(tail.lines().unwrap(), ["two", "three"]);
        assert!(tail.lines().unwrap().is_empty());
    }

    #[test]
    fn bytes_that_are_no_text_do_not_stop_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"\xff\xfe\n").unwrap();
        assert_eq!(Tail::new(file.path()).lines().unwrap().len(), 1);
    }
}
