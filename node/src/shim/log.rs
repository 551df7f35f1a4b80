//! Container logs in the format of the Container Runtime Interface: `<time> <stream> <F|P> <text>`, one file per run,
//! bounded in size.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// A line longer than this is written in parts.
const MAX_LINE: usize = 16 * 1024;
/// A file that grows beyond this is renamed to `<name>.1`, replacing the one before.
const MAX_FILE: u64 = 10 * 1024 * 1024;

/// Which of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The name in the log.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The log of one run of a container.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    written: u64,
    max: u64,
}

impl LogFile {
    /// Opens the file for appending.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let written = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, written, max: MAX_FILE })
    }

    /// Appends one line or part of a line.
    fn write(&mut self, at: Timestamp, stream: Stream, full: bool, text: &[u8]) -> io::Result<()> {
        if self.written > self.max {
            let mut rotated = self.path.clone().into_os_string();
            rotated.push(".1");
            std::fs::rename(&self.path, rotated)?;
            self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            self.written = 0;
        }
        let mut line = format!("{at:.9} {} {} ", stream.as_str(), if full { 'F' } else { 'P' }).into_bytes();
        line.extend_from_slice(text);
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.written += line.len() as u64;
        Ok(())
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Debug)]
pub(crate) struct LineCutter {
    stream: Stream,
    pending: Vec<u8>,
}

impl LineCutter {
    /// For one stream.
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Takes what was read and writes every line that is complete.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], at: Timestamp, log: &mut LogFile) -> io::Result<()> {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.pending.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.pending);
            self.write(&line, true, at, log)?;
        }
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= MAX_LINE {
            let line = std::mem::take(&mut self.pending);
            self.write(&line, false, at, log)?;
        }
        Ok(())
    }

    /// The stream ended: what is left is a line too.
    pub(crate) fn finish(&mut self, at: Timestamp, log: &mut LogFile) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let line = std::mem::take(&mut self.pending);
        self.write(&line, true, at, log)
    }

    fn write(&self, line: &[u8], full: bool, at: Timestamp, log: &mut LogFile) -> io::Result<()> {
        let mut rest = line;
        while rest.len() > MAX_LINE {
            log.write(at, self.stream, false, &rest[..MAX_LINE])?;
            rest = &rest[MAX_LINE..];
        }
        log.write(at, self.stream, full, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Timestamp {
        "2026-01-02T03:04:05.000000006Z".parse().unwrap()
    }

    #[test]
    fn lines_are_cut_and_stamped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path).unwrap();
        let mut out = LineCutter::new(Stream::Stdout);
        out.feed(b"one\ntw", at(), &mut log).unwrap();
        out.feed(b"o\nthree", at(), &mut log).unwrap();
        out.finish(at(), &mut log).unwrap();
        expect_test::expect![[r"
            2026-01-02T03:04:05.000000006Z stdout F one
            2026-01-02T03:04:05.000000006Z stdout F two
            2026-01-02T03:04:05.000000006Z stdout F three
        "]]
        .assert_eq(&std::fs::read_to_string(&path).unwrap());
    }

    #[test]
    fn long_lines_come_in_parts_and_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path).unwrap();
        let mut out = LineCutter::new(Stream::Stderr);
        let text = vec![b'x'; MAX_LINE * 2 + 5];
        out.feed(&text, at(), &mut log).unwrap();
        out.feed(b"\n", at(), &mut log).unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        let flags: Vec<&str> = written.lines().map(|l| l.split(' ').nth(2).unwrap()).collect();
        assert_eq!(flags.last(), Some(&"F"));
        let joined: usize = written.lines().map(|l| l.splitn(4, ' ').nth(3).unwrap().len()).sum();
        assert_eq!(joined, text.len());
    }

    #[test]
    fn a_full_file_is_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path).unwrap();
        log.max = 10;
        for text in ["first", "second", "third"] {
            log.write(at(), Stream::Stdout, true, text.as_bytes()).unwrap();
        }
        assert!(std::fs::read_to_string(&path).unwrap().contains("third"));
        assert!(std::fs::read_to_string(dir.path().join("0.log.1")).unwrap().contains("second"));
    }
}
