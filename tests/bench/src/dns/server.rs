//! The servers of a run, each on the first core: ours, and the peers with the same records. The second core is the client's.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use seaway_lab::{LabNode, Process, poll_until};

use super::records::{self, Case};
use crate::driver::{Talker, program};
use crate::worker::resolver::Said;

/// Loading 50,000 records takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that ends with this value.
#[derive(Debug)]
pub struct Server {
    /// Its name in a row.
    pub name: &'static str,
    /// The port at 127.0.0.1.
    pub port: u16,
    running: Running,
}

#[derive(Debug)]
enum Running {
    Ours(Talker),
    Peer(Process),
}

/// A command on some cores, such as `0` or `0,1`.
pub fn pinned(node: &LabNode, cores: &str, program: &str) -> Command {
    let mut command = node.command("taskset");
    command.args(["-c", cores, program]);
    command
}

impl Server {
    /// Ours, with `size` records and `sockets` sockets on `cores`.
    pub fn ours(node: &LabNode, size: usize, sockets: usize, cores: &str) -> Result<Self> {
        let (size, sockets) = (size.to_string(), sockets.to_string());
        let arguments = ["resolver", "--services", &size, "--sockets", &sockets];
        Self::started(Talker::start(pinned(node, cores, &program()?), &arguments)?)
    }

    /// Ours, with what an API server tells.
    pub fn watching(node: &LabNode, url: &str) -> Result<Self> {
        let arguments = ["resolver", "--server", url, "--sockets", "1"];
        Self::started(Talker::start(pinned(node, "0", &program()?), &arguments)?)
    }

    fn started(mut talker: Talker) -> Result<Self> {
        let Said::Listening { port } = talker.said()? else {
            bail!("the server does not say where it listens")
        };
        Ok(Self { name: "seaway", port, running: Running::Ours(talker) })
    }

    /// The peers that are on this machine, with `size` records.
    pub fn peers(node: &LabNode, size: usize) -> Result<Vec<Self>> {
        let dir = node.state_dir().join(format!("records-{size}"));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("zone"), records::zone_file(size)?)?;
        let mut servers = vec![unbound(node, &dir, size)?, knot(node, &dir)?];
        servers.extend(coredns(node, &dir)?);
        for server in &servers {
            server.wait(node)?;
        }
        Ok(servers)
    }

    /// What our server has counted so far.
    pub fn counted(&mut self) -> Result<(u64, u64)> {
        let Running::Ours(talker) = &mut self.running else { bail!("a peer does not tell") };
        talker.tell("count")?;
        match talker.said()? {
            Said::Counted { answers, shed } => Ok((answers, shed)),
            other @ Said::Listening { .. } => bail!("an answer to something else: {other:?}"),
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        match &self.running {
            Running::Ours(talker) => talker.pid(),
            Running::Peer(process) => process.pid(),
        }
    }

    /// What all its threads have run, in nanoseconds.
    pub fn cpu_ns(&self) -> Result<f64> {
        let mut total = 0.0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid())).context("a server ended")? {
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            total += text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0);
        }
        Ok(total)
    }

    /// Waits until it answers.
    fn wait(&self, node: &LabNode) -> Result<()> {
        let socket = super::socket(node, "127.0.0.1")?;
        socket.connect(("127.0.0.1", self.port))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let packet = Case::Hit.packet(1)?;
        if poll_until(PATIENCE, || answers(&socket, &packet)) {
            return Ok(());
        }
        bail!("{} does not answer", self.name)
    }
}

/// Whether there is an answer with a record in it.
fn answers(socket: &UdpSocket, packet: &[u8]) -> bool {
    let mut buffer = [0; 512];
    let length = socket.send(packet).and_then(|_| socket.recv(&mut buffer)).unwrap_or(0);
    length > 12 && buffer[7] > 0
}

fn free_port(node: &LabNode) -> Result<u16> {
    Ok(super::socket(node, "127.0.0.1")?.local_addr()?.port())
}

fn spawn(node: &LabNode, name: &'static str, program: &str, arguments: &[&str], port: u16) -> Result<Server> {
    let mut command = pinned(node, "0", program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let process = Process::spawn(&mut command).with_context(|| format!("cannot start {program}"))?;
    Ok(Server { name, port, running: Running::Peer(process) })
}

fn unbound(node: &LabNode, dir: &Path, size: usize) -> Result<Server> {
    let port = free_port(node)?;
    let text = format!(
        "server:\n interface: 127.0.0.1\n port: {port}\n do-daemonize: no\n chroot: \"\"\n username: \"\"\n \
         pidfile: \"\"\n use-syslog: no\n num-threads: 1\n directory: \"{}\"\n access-control: 127.0.0.0/8 allow\n\
         {}remote-control:\n control-enable: no\n",
        dir.display(),
        records::local_data(size)?
    );
    let file = dir.join("unbound.conf");
    fs::write(&file, text)?;
    spawn(node, "unbound", "/usr/sbin/unbound", &["-d", "-c", &file.display().to_string()], port)
}

fn knot(node: &LabNode, dir: &Path) -> Result<Server> {
    let (port, file, dir) = (free_port(node)?, dir.join("knot.conf"), dir.display());
    fs::write(
        &file,
        format!(
            "server:\n  rundir: {dir}\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  \
             background-workers: 1\ndatabase:\n  storage: {dir}\nzone:\n  - domain: cluster.local\n    file: {dir}/zone\n"
        ),
    )?;
    spawn(node, "knot", "/usr/sbin/knotd", &["-c", &file.display().to_string()], port)
}

/// CoreDNS is in no package of Debian's: only where somebody has installed it.
fn coredns(node: &LabNode, dir: &Path) -> Result<Option<Server>> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let Some(found) =
        std::env::split_paths(&paths).map(|path| path.join("coredns")).find(|path| path.exists())
    else {
        return Ok(None);
    };
    let (port, file) = (free_port(node)?, dir.join("Corefile"));
    fs::write(
        &file,
        format!("cluster.local:{port} {{\n bind 127.0.0.1\n file {}/zone\n}}\n", dir.display()),
    )?;
    let arguments = ["-conf", &file.display().to_string()];
    spawn(node, "coredns", &found.display().to_string(), &arguments, port).map(Some)
}
