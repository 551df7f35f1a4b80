//! What can keep the DNS server from running.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

use crate::settings::Problem;

/// Why DNS does not run.
#[derive(Debug, Error)]
pub enum DnsError {
    /// No address to listen at was given.
    #[error("no address to listen at: want at least one")]
    NoListenAddress,
    /// The cluster's zone is no domain name.
    #[error("cluster domain {domain:?}: {why}")]
    Domain {
        /// What was given.
        domain: String,
        /// What is wrong with it.
        why: String,
    },
    /// A socket could not be made, bound or listened on.
    #[error("cannot listen on {protocol} {address}")]
    Listen {
        /// UDP or TCP.
        protocol: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The settings file cannot be read.
    #[error("cannot read the settings in {path}")]
    SettingsFile {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The settings file makes no sense.
    #[error("the settings in {path} are refused:{}", problem_lines(problems))]
    Settings {
        /// The file.
        path: String,
        /// What is wrong, in the order of the lines.
        problems: Vec<Problem>,
    },
    /// Nobody says whom to ask for names outside of the cluster.
    #[error("no resolvers from {path}: {why}")]
    ResolvConf {
        /// The file that should.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The settings file asks for what the server was not started for.
    #[error(
        "the settings in {path} are refused:\n  pods = \"verified\" takes a list of all pods, which nobody makes"
    )]
    PodsUnknown {
        /// The file.
        path: String,
    },
    /// The certificates that upstreams over TLS are checked against cannot be read.
    #[error("certificates in {path}: {why}")]
    Certificates {
        /// Where they were looked for.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// One of the server's tasks panicked. The caller should start the server again.
    #[error("a task of the DNS server ended badly")]
    Task {
        /// How.
        #[source]
        source: tokio::task::JoinError,
    },
}

fn problem_lines(problems: &[Problem]) -> String {
    problems.iter().fold(String::new(), |lines, problem| lines + "\n  " + &problem.to_string())
}
