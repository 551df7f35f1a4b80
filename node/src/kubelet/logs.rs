//! Reading container logs back: which files, which lines, how they are shown.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use crate::shim::protocol::{CONTAINERS, ContainerRecord};

/// How often a log that is followed is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct LogQuery {
    pub(super) follow: bool,
    pub(super) previous: bool,
    pub(super) timestamps: bool,
    pub(super) tail_lines: Option<usize>,
    pub(super) since: Option<Timestamp>,
    pub(super) limit_bytes: Option<usize>,
}

impl LogQuery {
    /// From a query string; unknown keys are left alone, as kubelets do.
    pub(super) fn parse(query: &str, now: Timestamp) -> Result<Self, String> {
        let mut parsed = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
            let bad = || format!("{key}: {value:?} is not valid");
            match key {
                "follow" => parsed.follow = boolean(value).ok_or_else(bad)?,
                "previous" => parsed.previous = boolean(value).ok_or_else(bad)?,
                "timestamps" => parsed.timestamps = boolean(value).ok_or_else(bad)?,
                "tailLines" => parsed.tail_lines = Some(value.parse().map_err(|_| bad())?),
                "limitBytes" => parsed.limit_bytes = Some(value.parse().map_err(|_| bad())?),
                "sinceSeconds" => {
                    let seconds: i64 = value.parse().map_err(|_| bad())?;
                    let since = now.checked_sub(Duration::from_secs(seconds.max(0).unsigned_abs()));
                    parsed.since = Some(since.map_err(|_| bad())?);
                }
                "sinceTime" => {
                    let text = value.replace("%3A", ":").replace("%3a", ":").replace("%2B", "+");
                    parsed.since = Some(text.parse().map_err(|_| bad())?);
                }
                _ => {}
            }
        }
        Ok(parsed)
    }
}

fn boolean(value: &str) -> Option<bool> {
    match value {
        "true" | "1" | "True" => Some(true),
        "false" | "0" | "False" | "" => Some(false),
        _ => None,
    }
}

/// One line of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line<'a> {
    at: Timestamp,
    stamp: &'a str,
    full: bool,
    text: &'a [u8],
}

/// `<time> <stream> <F|P> <text>`.
fn parse_line(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let stamp = std::str::from_utf8(parts.next()?).ok()?;
    let _stream = parts.next()?;
    let full = parts.next()? == b"F";
    let text = parts.next()?;
    Some(Line { at: stamp.parse().ok()?, stamp, full, text: text.strip_suffix(b"\n").unwrap_or(text) })
}

/// As it is shown, or nothing if it is not asked for.
fn render(line: &[u8], query: &LogQuery) -> Option<Vec<u8>> {
    let parsed = parse_line(line)?;
    if query.since.is_some_and(|since| parsed.at < since) {
        return None;
    }
    let mut out = Vec::with_capacity(line.len());
    if query.timestamps {
        out.extend_from_slice(parsed.stamp.as_bytes());
        out.push(b' ');
    }
    out.extend_from_slice(parsed.text);
    if parsed.full {
        out.push(b'\n');
    }
    Some(out)
}

/// One run's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RunLog {
    log: PathBuf,
    record: PathBuf,
}

impl RunLog {
    /// The latest run of a container, or the one before it.
    pub(super) fn find(pod_dir: &Path, container: &str, previous: bool) -> Option<Self> {
        let dir = pod_dir.join(CONTAINERS).join(container);
        let entries = std::fs::read_dir(&dir).ok()?.flatten();
        let mut attempts: Vec<u32> = entries
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
            .collect();
        attempts.sort_unstable_by(|a, b| b.cmp(a));
        let attempt = attempts.get(usize::from(previous))?;
        Some(Self { log: dir.join(format!("{attempt}.log")), record: dir.join(format!("{attempt}.json")) })
    }

    /// The run has ended: nothing will be added.
    fn ended(&self) -> bool {
        let record = std::fs::read(&self.record).ok();
        let record = record.and_then(|text| serde_json::from_slice::<ContainerRecord>(&text).ok());
        record.is_none_or(|record| record.exit.is_some())
    }

    /// Gives every line that is asked for to `sink`, until it wants no more. Blocks, with `follow` for long.
    pub(super) fn read(&self, query: &LogQuery, mut sink: impl FnMut(Vec<u8>) -> bool) -> io::Result<()> {
        let mut left = query.limit_bytes.unwrap_or(usize::MAX);
        let mut give = |mut bytes: Vec<u8>| {
            bytes.truncate(left);
            left -= bytes.len();
            (bytes.is_empty() || sink(bytes)) && left > 0
        };
        let mut current = BufReader::new(File::open(&self.log)?);
        let mut held = VecDeque::new();
        let mut pass =
            |line: &[u8], held: &mut VecDeque<Vec<u8>>| match (render(line, query), query.tail_lines) {
                (None, _) => true,
                (Some(shown), None) => give(shown),
                (Some(shown), Some(tail)) => {
                    held.push_back(shown);
                    if held.len() > tail {
                        held.pop_front();
                    }
                    true
                }
            };
        let mut rotated = self.log.clone().into_os_string();
        rotated.push(".1");
        let mut line = Vec::new();
        if let Ok(file) = File::open(rotated) {
            each_line(&mut BufReader::new(file), &mut line, |line| pass(line, &mut held))?;
        }
        if !each_line(&mut current, &mut line, |line| pass(line, &mut held))? {
            return Ok(());
        }
        for shown in held {
            if !give(shown) {
                return Ok(());
            }
        }
        if query.follow {
            self.follow(current, line, |line| render(line, query).is_none_or(&mut give))?;
        }
        Ok(())
    }

    fn follow(
        &self,
        mut current: BufReader<File>,
        mut line: Vec<u8>,
        mut give: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<()> {
        loop {
            // Asked before reading: what was written until the end is read.
            let ended = self.ended();
            if !each_line(&mut current, &mut line, &mut give)? {
                return Ok(());
            }
            let moved = std::fs::metadata(&self.log).ok().map(|m| m.ino())
                != Some(current.get_ref().metadata()?.ino());
            if moved && let Ok(file) = File::open(&self.log) {
                current = BufReader::new(file);
                continue;
            }
            if ended || moved {
                return Ok(());
            }
            std::thread::sleep(FOLLOW_INTERVAL);
            // Finds out whether somebody still listens.
            if !give(b"") {
                return Ok(());
            }
        }
    }
}

/// Gives complete lines to `take` until the end of what is there; `false` when it wants no more. A line without an end
/// stays in `pending`.
fn each_line(
    reader: &mut impl BufRead,
    pending: &mut Vec<u8>,
    mut take: impl FnMut(&[u8]) -> bool,
) -> io::Result<bool> {
    while reader.read_until(b'\n', pending)? > 0 {
        if pending.last() != Some(&b'\n') {
            break;
        }
        let line = std::mem::take(pending);
        if !take(&line) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.000000000Z stdout F one\n\
                       2026-01-01T00:00:02.000000000Z stderr F two words\n\
                       2026-01-01T00:00:03.000000000Z stdout P thr\n\
                       2026-01-01T00:00:03.000000000Z stdout F ee\n";

    fn shown(query: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let container = dir.path().join(CONTAINERS).join("web");
        std::fs::create_dir_all(&container).unwrap();
        std::fs::write(container.join("0.log"), "2026-01-01T00:00:00.5Z stdout F earlier run\n").unwrap();
        std::fs::write(container.join("1.log"), LOG).unwrap();
        let now = "2026-01-01T00:00:10Z".parse().unwrap();
        let query = LogQuery::parse(query, now).unwrap();
        let run = RunLog::find(dir.path(), "web", query.previous).unwrap();
        let mut out = Vec::new();
        run.read(&query, |bytes| {
            out.extend_from_slice(&bytes);
            true
        })
        .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_chosen_and_shown_as_asked() {
        for (query, want) in [
            ("", "one\ntwo words\nthree\n"),
            ("tailLines=2", "three\n"),
            ("tailLines=0", ""),
            ("limitBytes=5", "one\nt"),
            ("sinceSeconds=8", "two words\nthree\n"),
            ("sinceTime=2026-01-01T00%3A00%3A03Z", "three\n"),
            ("previous=true", "earlier run\n"),
            ("timestamps=true&tailLines=1", "2026-01-01T00:00:03.000000000Z ee\n"),
            ("follow=true", "one\ntwo words\nthree\n"),
        ] {
            assert_eq!(shown(query), want, "{query}");
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let now = Timestamp::UNIX_EPOCH;
        for query in ["tailLines=x", "follow=maybe", "sinceTime=yesterday", "limitBytes=-1"] {
            let key = query.split('=').next().unwrap();
            assert!(LogQuery::parse(query, now).unwrap_err().starts_with(key), "{query}");
        }
    }

    #[test]
    fn lines_that_are_not_ours_are_left_out() {
        for line in ["", "x", "yesterday stdout F x", "2026-01-01T00:00:01Z stdout"] {
            assert_eq!(parse_line(line.as_bytes()), None, "{line}");
        }
    }
}
