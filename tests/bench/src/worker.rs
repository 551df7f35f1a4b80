//! The processes of a bench: each runs in the namespace and cgroup of what it stands for, so that the kernel sees it as
//! it would see a pod, a client outside or an agent.

pub mod agent;
pub mod asker;
mod backend;
pub mod footprint;
pub mod network;
pub mod resolver;

use anyhow::Result;
use clap::Subcommand;

/// What a process is to do.
#[derive(Subcommand)]
pub enum Role {
    /// Answers connections at a port and swallows streams at another
    Backend {
        /// Where one byte is answered with one
        #[arg(long)]
        port: u16,
        /// Where streams end
        #[arg(long)]
        stream_port: u16,
    },
    /// Does what it is asked on standard input, and tells on standard output how long that took
    Asker,
    /// Watches an API server, as the agent of a node does
    Agent(agent::Options),
    /// Answers DNS questions, and says on standard output how many
    Resolver(resolver::Options),
    /// Says what memory the zone of a cluster takes
    Footprint(footprint::Options),
    /// Keeps the ways to many other nodes
    Network(network::Options),
}

/// Plays the role until it is killed, or standard input ends.
pub fn run(role: Role) -> Result<()> {
    match role {
        Role::Backend { port, stream_port } => backend::run(port, stream_port),
        Role::Asker => asker::run(),
        Role::Agent(options) => agent::run(&options),
        Role::Resolver(options) => resolver::run(&options),
        Role::Footprint(options) => footprint::run(&options),
        Role::Network(options) => network::run(&options),
    }
}
