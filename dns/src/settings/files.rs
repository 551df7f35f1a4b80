//! The files that settings come from, and whether they are still what they were: they are looked at every second, and a
//! hosts file may have thousands of lines.

use std::cell::RefCell;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A file that has changed so recently may change once more without showing it: clocks of file systems have ticks.
const SETTLES_IN: Duration = Duration::from_secs(2);

/// Reads files, and remembers which.
#[derive(Debug)]
pub(crate) struct Files {
    now: SystemTime,
    /// As they were just before they were read.
    seen: RefCell<Vec<(PathBuf, Stamp)>>,
}

impl Files {
    pub(crate) fn new(now: SystemTime) -> Self {
        Self { now, seen: RefCell::default() }
    }

    /// The text of a file.
    pub(super) fn read(&self, path: impl AsRef<Path>) -> io::Result<String> {
        self.note(path.as_ref());
        std::fs::read_to_string(path)
    }

    /// Remembers a file, or a directory whose entries matter.
    pub(super) fn note(&self, path: &Path) {
        self.seen.borrow_mut().push((path.to_owned(), Stamp::of(path)));
    }

    /// Whether all that was read would be read again. If there is any doubt it is not.
    pub(crate) fn are_unchanged(&self) -> bool {
        let same = |(path, stamp): &(PathBuf, Stamp)| stamp.is_settled(self.now) && Stamp::of(path) == *stamp;
        self.seen.borrow().iter().all(same)
    }
}

/// By what a change shows; `None`: there is no such file.
#[derive(Debug, PartialEq, Eq)]
struct Stamp(Option<Seen>);

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Device and number: another file may have been put in its place, or a link lead elsewhere.
    file: (u64, u64),
    length: u64,
    /// Of the contents, and of anything about it: seconds and nanoseconds.
    changed: [(i64, i64); 2],
}

impl Stamp {
    fn of(path: &Path) -> Self {
        let seen = |about: Metadata| Seen {
            file: (about.dev(), about.ino()),
            length: about.len(),
            changed: [(about.mtime(), about.mtime_nsec()), (about.ctime(), about.ctime_nsec())],
        };
        Self(std::fs::metadata(path).ok().map(seen))
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let before = |(seconds, _): (i64, i64)| {
            u64::try_from(seconds).is_ok_and(|seconds| Duration::from_secs(seconds) + SETTLES_IN < now)
        };
        self.0.as_ref().is_none_or(|seen| seen.changed.into_iter().all(before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_shows() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join("hosts"), dir.path().join("other"));
        let write = |path: &Path, text: &str| std::fs::write(path, text).unwrap();
        let read = |now| {
            let files = Files::new(now);
            (files.read(&file).ok(), files)
        };
        let later = SystemTime::now() + Duration::from_secs(3600);
        // What is missing may be missed for long.
        let (text, files) = read(later);
        assert!(text.is_none() && files.are_unchanged());
        write(&file, "one");
        assert!(!files.are_unchanged());
        let (text, files) = read(later);
        assert!(text.as_deref() == Some("one") && files.are_unchanged());
        write(&file, "longer");
        assert!(!files.are_unchanged());
        let (_, files) = read(later);
        assert!(files.are_unchanged());
        // Another one of the same length in its place.
        write(&other, "others");
        std::fs::rename(&other, &file).unwrap();
        assert!(!files.are_unchanged());
        // It has just changed, and nobody knows whether that was all.
        let (_, files) = read(SystemTime::now());
        assert!(!files.are_unchanged());
        let files = Files::new(later);
        files.note(dir.path());
        assert!(files.are_unchanged());
        std::fs::remove_file(&file).unwrap();
        write(&other, "");
        write(&dir.path().join("third"), "");
        let about = std::fs::File::open(dir.path()).unwrap();
        // Also where a tick of the clock holds all of it.
        about.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(!files.are_unchanged());
    }
}
