//! Makes the demo reachable from the machine that runs the cluster: a local port, forwarded to the demo's
//! LoadBalancer address as the client outside of the cluster sees it.
//!
//! The cluster's addresses exist in its namespaces only; without this a person's browser could not see it.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tracing::warn;

use crate::place;

/// The file, below the cluster's state directory, that holds the address to forward to.
pub const TARGET_FILE: &str = "publish-target";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections beyond this are closed at once.
const MAX_CONNECTIONS: usize = 256;

/// Listens at `listen` and connects from inside `netns` to the address that `target_file` holds.
pub fn spawn(listen: SocketAddr, netns: PathBuf, target_file: PathBuf) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen at {listen}"))?;
    let open = Arc::new(AtomicUsize::new(0));
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (open, netns, target_file) = (Arc::clone(&open), netns.clone(), target_file.clone());
            thread::spawn(move || {
                if let Err(error) = forward(&client, &netns, &target_file) {
                    warn!(error = format!("{error:#}"), "cannot forward to the demo");
                }
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    Ok(())
}

fn forward(client: &TcpStream, netns: &Path, target_file: &Path) -> Result<()> {
    let target = std::fs::read_to_string(target_file).context("the demo has no address yet")?;
    let target: SocketAddr = target.trim().parse().with_context(|| format!("{target:?} is no address"))?;
    place::enter_netns(netns)?;
    let server = TcpStream::connect_timeout(&target, CONNECT_TIMEOUT)
        .with_context(|| format!("cannot reach {target}"))?;
    let (client_up, server_up) = (client.try_clone()?, server.try_clone()?);
    let up = thread::spawn(move || pump(&client_up, &server_up));
    pump(&server, client)?;
    up.join().map_err(|_| io::Error::other("the forwarding thread panicked"))??;
    Ok(())
}

/// Copies one direction until its end, and passes the end on.
fn pump(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    io::copy(&mut from, &mut to)?;
    match to.shutdown(Shutdown::Write) {
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        _ => Ok(()),
    }
}
