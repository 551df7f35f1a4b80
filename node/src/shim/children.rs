//! The processes of a pod: containers and execs, their output and their end.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, pidfd_open, wait,
};

use super::log::{LineCutter, LogFile, Stream};
use super::protocol::{CONTAINERS, ContainerExit, ContainerRecord, ContainerSpec, Report};

/// How much of an exec's output is kept.
const EXEC_OUTPUT: usize = 4096;

enum Kind {
    Container(String),
    Exec { id: u64, deadline: Instant, output: Vec<u8> },
}

struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    kind: Kind,
}

/// One pipe that a child prints into.
struct Output {
    fd: OwnedFd,
    pid: i32,
    cutter: LineCutter,
}

/// All of them.
#[derive(Default)]
pub(super) struct Children {
    running: BTreeMap<i32, Child>,
    outputs: BTreeMap<u64, Output>,
    next_output: u64,
    records: BTreeMap<String, ContainerRecord>,
    specs: BTreeMap<String, ContainerSpec>,
    logs: BTreeMap<i32, LogFile>,
}

impl Children {
    /// The latest run of every container.
    pub(super) fn records(&self) -> Vec<ContainerRecord> {
        self.records.values().cloned().collect()
    }

    pub(super) fn outputs(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        self.outputs.iter().map(|(id, output)| (*id, output.fd.as_fd()))
    }

    pub(super) fn pidfds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.running.values().map(|child| child.pidfd.as_fd())
    }

    /// When the next exec runs out of time.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let deadlines = self.running.values().filter_map(|child| match &child.kind {
            Kind::Exec { deadline, .. } => Some(*deadline),
            Kind::Container(_) => None,
        });
        deadlines.min()
    }

    /// Starts a container, or says that it runs already.
    pub(super) fn start(&mut self, spec: ContainerSpec) -> Report {
        let name = spec.name.clone();
        if let Some(record) = self.records.get(&name).filter(|record| record.exit.is_none()) {
            return Report::Container(record.clone());
        }
        match self.try_start(spec) {
            Ok(record) => Report::Container(record),
            Err(error) => Report::StartFailed { name, message: error.to_string() },
        }
    }

    fn try_start(&mut self, spec: ContainerSpec) -> io::Result<ContainerRecord> {
        fs::create_dir_all(Path::new(CONTAINERS).join(&spec.name))?;
        let log = LogFile::open(&log_path(Path::new("."), &spec.name, spec.attempt))?;
        let record = ContainerRecord {
            name: spec.name.clone(),
            attempt: spec.attempt,
            image: spec.image.clone(),
            id: uuid::Uuid::new_v4().simple().to_string(),
            started_at: Timestamp::now(),
            exit: None,
        };
        let pid = self.spawn(&["container"], &spec, Kind::Container(spec.name.clone()))?;
        self.logs.insert(pid, log);
        self.records.insert(spec.name.clone(), record.clone());
        self.specs.insert(spec.name.clone(), spec);
        save(&record)?;
        Ok(record)
    }

    /// Runs the image's sub-command in a container. The report is the failure; success is reported when it ends.
    pub(super) fn exec(&mut self, id: u64, name: &str, args: Vec<String>, timeout_ms: u64) -> Option<Report> {
        let failed = |output: String| Some(Report::ExecDone { id, code: None, output });
        let Some(pid) = self.pid_of(name) else { return failed(format!("container {name} is not running")) };
        let Some(spec) = self.specs.get(name) else {
            return failed(format!("container {name} is not known"));
        };
        let spec = ContainerSpec { args, ..spec.clone() };
        let deadline = Instant::now() + Duration::from_millis(timeout_ms);
        let pid = pid.as_raw_nonzero().to_string();
        match self.spawn(&["exec", &pid], &spec, Kind::Exec { id, deadline, output: Vec::new() }) {
            Ok(_) => None,
            Err(error) => failed(format!("cannot start it: {error}")),
        }
    }

    /// Ends a container.
    pub(super) fn stop(&self, name: &str, force: bool) {
        let Some(pid) = self.pid_of(name) else { return };
        // A process that is gone already is what was wanted.
        let _gone =
            if force { kill_process_group(pid, Signal::KILL) } else { kill_process(pid, Signal::TERM) };
    }

    fn pid_of(&self, name: &str) -> Option<Pid> {
        self.running.values().find(|c| matches!(&c.kind, Kind::Container(n) if n == name)).map(|c| c.pid)
    }

    fn spawn(&mut self, args: &[&str], spec: &ContainerSpec, kind: Kind) -> io::Result<i32> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("pod-shim").args(args).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let raw = child.id().cast_signed();
        let pid = Pid::from_raw(raw).ok_or_else(|| io::Error::other("the child has no process id"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let description = serde_json::to_vec(spec)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&description)?;
        }
        if let Some(out) = child.stdout.take() {
            self.watch_output(raw, Stream::Stdout, out.into())?;
        }
        if let Some(err) = child.stderr.take() {
            self.watch_output(raw, Stream::Stderr, err.into())?;
        }
        self.running.insert(raw, Child { pid, pidfd, kind });
        Ok(raw)
    }

    fn watch_output(&mut self, pid: i32, stream: Stream, fd: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        self.next_output += 1;
        self.outputs.insert(self.next_output, Output { fd, pid, cutter: LineCutter::new(stream) });
        Ok(())
    }

    /// Takes what a pipe holds now. The pipe is always emptied, even when nothing can be written (a full disk):
    /// a container never waits for its log.
    pub(super) fn drain(&mut self, id: u64) {
        let Some(output) = self.outputs.get_mut(&id) else { return };
        let mut buffer = [0; 16 * 1024];
        let ended = loop {
            match rustix::io::read(&output.fd, &mut buffer) {
                Ok(0) => break true,
                Ok(n) => match self.running.get_mut(&output.pid) {
                    Some(Child { kind: Kind::Exec { output: kept, .. }, .. }) => {
                        kept.extend_from_slice(&buffer[..n]);
                        kept.truncate(EXEC_OUTPUT);
                    }
                    _ => {
                        if let Some(log) = self.logs.get_mut(&output.pid) {
                            let _full_disk = output.cutter.feed(&buffer[..n], Timestamp::now(), log);
                        }
                    }
                },
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break false,
                Err(_) => break true,
            }
        };
        if ended {
            if let Some(log) = self.logs.get_mut(&output.pid) {
                let _full_disk = output.cutter.finish(Timestamp::now(), log);
            }
            let pid = output.pid;
            self.outputs.remove(&id);
            if !self.running.contains_key(&pid) && !self.outputs.values().any(|o| o.pid == pid) {
                self.logs.remove(&pid);
            }
        }
    }

    /// Buries the dead (as pid 1 also those that are nobody's), ends execs that take too long, and reports.
    pub(super) fn reap(&mut self, now: Instant) -> Vec<Report> {
        for child in self.running.values() {
            if matches!(&child.kind, Kind::Exec { deadline, .. } if *deadline <= now) {
                let _gone = kill_process_group(child.pid, Signal::KILL);
            }
        }
        let mut reports = Vec::new();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            reports.extend(self.ended(pid.as_raw_nonzero().get(), status));
        }
        reports
    }

    fn ended(&mut self, pid: i32, status: WaitStatus) -> Option<Report> {
        let pipes: Vec<u64> = self.outputs.iter().filter(|(_, o)| o.pid == pid).map(|(id, _)| *id).collect();
        for id in pipes {
            self.drain(id);
        }
        let child = self.running.remove(&pid)?;
        match child.kind {
            Kind::Exec { id, output, .. } => {
                self.outputs.retain(|_, o| o.pid != pid);
                let output = String::from_utf8_lossy(&output).into_owned();
                Some(Report::ExecDone { id, code: status.exit_status(), output })
            }
            Kind::Container(name) => {
                if !self.outputs.values().any(|o| o.pid == pid) {
                    self.logs.remove(&pid);
                }
                let record = self.records.get_mut(&name)?;
                let signal = status.terminating_signal();
                let code = status.exit_status().or(signal.map(|s| 128 + s)).unwrap_or(255);
                record.exit = Some(ContainerExit { finished_at: Timestamp::now(), code, signal });
                if let Err(error) = save(record) {
                    super::complain(&format!("cannot record the end of {name}: {error}"));
                }
                Some(Report::Container(record.clone()))
            }
        }
    }
}

/// The log of one run, below a pod's directory.
pub(crate) fn log_path(pod: &Path, container: &str, attempt: u32) -> PathBuf {
    pod.join(CONTAINERS).join(container).join(format!("{attempt}.log"))
}

fn save(record: &ContainerRecord) -> io::Result<()> {
    let directory = Path::new(CONTAINERS).join(&record.name);
    let draft = directory.join("record.new");
    fs::write(&draft, serde_json::to_vec(record)?)?;
    fs::rename(draft, directory.join(format!("{}.json", record.attempt)))
}
