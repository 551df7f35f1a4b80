//! End to end: the `seaway` binary as a user starts it, and the real kubectl against it.
//!
//! Each test has a cluster of its own, with a name and ports of its own, that goes when the test ends, also when it
//! panics.

#![allow(clippy::unwrap_used, reason = "this crate is tests only; a failed step ends the test")]

use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The binary under test: `SEAWAY_BIN`, else the one beside the running test.
pub fn seaway_bin() -> PathBuf {
    std::env::var_os("SEAWAY_BIN").map_or_else(beside_the_test, PathBuf::from)
}

fn beside_the_test() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let bin = test.parent().and_then(Path::parent).unwrap().join("seaway");
    assert!(
        bin.exists(),
        "{} is missing: `cargo build --bins` first, or use `cargo xtask test e2e`",
        bin.display()
    );
    bin
}

/// Fails unless root runs the test.
pub fn require_root() {
    let uid = Command::new("id").arg("-u").output().unwrap();
    assert_eq!(
        uid.stdout, b"0\n",
        "end-to-end tests make network namespaces and load eBPF programs: run them as root"
    );
}

/// What a program printed, and how it ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The command line.
    pub command: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
}

impl Ran {
    fn new(command: String, output: &Output) -> Self {
        Self {
            command,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code(),
        }
    }

    /// It must have gone well; gives what it printed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(
            self.code,
            Some(0),
            "{}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.stdout,
            self.stderr
        );
        self.stdout
    }

    /// It must have failed and said `wanted`.
    #[track_caller]
    pub fn fails_with(self, wanted: &str) -> String {
        assert_ne!(self.code, Some(0), "{} should have failed:\n{}", self.command, self.stdout);
        let said = format!("{}{}", self.stdout, self.stderr);
        assert!(said.contains(wanted), "{} should say {wanted:?}, but said:\n{said}", self.command);
        said
    }
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Ran {
    let mut shown = command.get_program().to_string_lossy().into_owned();
    for word in command.get_args() {
        write!(shown, " {}", word.to_string_lossy()).unwrap();
    }
    let output = command.output().unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
    Ran::new(shown, &output)
}

/// Runs `seaway` to its end.
pub fn seaway(args: &[&str]) -> Ran {
    run(Command::new(seaway_bin()).args(args))
}

/// A TCP port of loopback that nobody listens at.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A running cluster.
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Where the demo is published.
    pub publish: String,
    /// What `up` printed.
    pub up: Ran,
    state: PathBuf,
}

impl Cluster {
    /// Starts one. `name` must be unique among the tests.
    pub fn up(name: &str, more: &[&str]) -> Self {
        require_root();
        let state = std::env::temp_dir().join(format!("seaway-{name}-{}", std::process::id()));
        let publish = format!("127.0.0.1:{}", free_port());
        let mut cluster = Self {
            name: name.to_owned(),
            publish: publish.clone(),
            up: Ran { command: String::new(), stdout: String::new(), stderr: String::new(), code: None },
            state,
        };
        let api = format!("127.0.0.1:{}", free_port());
        let mut args = vec!["up", "--detach", "--api-listen", &api, "--publish", &publish];
        args.extend(more);
        cluster.up = cluster.seaway(&args);
        assert_eq!(cluster.up.code, Some(0), "up failed:\n{}{}", cluster.up.stdout, cluster.up.stderr);
        cluster
    }

    /// Runs `seaway` for this cluster.
    pub fn seaway(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(seaway_bin());
        command.args(args).args(["--name", &self.name, "--state-dir"]).arg(&self.state);
        run(&mut command)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// The cluster's state directory.
    pub fn dir(&self) -> PathBuf {
        self.state.join(&self.name)
    }

    /// A kubectl command for this cluster.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(std::env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into()));
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(args).env("HOME", self.dir());
        command
    }

    /// Runs kubectl.
    pub fn kubectl(&self, args: &[&str]) -> Ran {
        run(&mut self.kubectl_command(args))
    }

    /// Runs kubectl with a text on its standard input.
    pub fn kubectl_stdin(&self, args: &[&str], stdin: &str) -> Ran {
        use std::io::Write;
        let mut command = self.kubectl_command(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        Ran::new(format!("kubectl {args:?}"), &child.wait_with_output().unwrap())
    }

    /// The process id of a component that runs.
    pub fn pid(&self, component: &str) -> Option<u32> {
        let rows = self.seaway(&["status", "--json"]).stdout;
        let row = rows.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let found = row.into_iter().find(|row| row["component"] == component);
        let pid = found.unwrap_or_else(|| panic!("no component {component} in\n{rows}"))["pid"].as_u64();
        pid.map(|pid| u32::try_from(pid).unwrap())
    }

    /// Ends a component without warning.
    pub fn kill(&self, component: &str) {
        run(Command::new("kill").args(["-9", &self.pid(component).unwrap().to_string()])).ok();
    }

    /// A network namespace of the cluster, by what lives in it.
    pub fn in_netns(&self, what: &str, program: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-{what}", self.name)]).args(program);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let down = self.seaway(&["down"]);
        if thread::panicking() {
            eprintln!("{}{}", down.stdout, down.stderr);
        } else {
            down.ok();
        }
        drop(std::fs::remove_dir(&self.state));
    }
}

/// Asks until it is true. Panics with `what` after `seconds`.
#[track_caller]
pub fn eventually(what: &str, seconds: u64, mut ask: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !ask() {
        assert!(Instant::now() < end, "not within {seconds} s: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
