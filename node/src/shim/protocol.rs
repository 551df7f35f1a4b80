//! What the agent and a pod's shim say to each other: one JSON value per line over the pod's socket. The files that
//! describe a pod on disk have the same types.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The shim's socket within the pod's directory.
pub(crate) const SOCKET: &str = "shim.sock";
/// The shim's instructions within the pod's directory.
pub(crate) const SHIM_SPEC: &str = "shim.json";
/// Where container records are kept within the pod's directory.
pub(crate) const CONTAINERS: &str = "containers";

/// What a shim is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ShimSpec {
    /// The UTS host name; `None` with `hostNetwork`.
    pub(crate) hostname: Option<String>,
    /// The pod's cgroup directory, already made.
    pub(crate) cgroup: PathBuf,
    /// Bring up the loopback device of the fresh network namespace.
    pub(crate) loopback: bool,
}

/// A volume or file that a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BindMount {
    /// The path on the node.
    pub(crate) source: PathBuf,
    /// The path in the container.
    pub(crate) path: PathBuf,
    /// Mounted read-only.
    pub(crate) read_only: bool,
}

/// One run of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerSpec {
    /// The container's name within the pod.
    pub(crate) name: String,
    /// How often it has run before.
    pub(crate) attempt: u32,
    /// The image's name, as the pod gives it.
    pub(crate) image: String,
    /// Arguments for the image.
    pub(crate) args: Vec<String>,
    /// The whole environment.
    pub(crate) env: BTreeMap<String, String>,
    /// The working directory.
    pub(crate) working_dir: Option<PathBuf>,
    /// What is mounted into its root.
    pub(crate) mounts: Vec<BindMount>,
    /// `securityContext.runAsUser`.
    pub(crate) uid: Option<u32>,
    /// `securityContext.runAsGroup`.
    pub(crate) gid: Option<u32>,
    /// The executable that carries the images.
    pub(crate) exe: PathBuf,
}

/// What is known of one run of a container; kept in `containers/<name>/<attempt>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    /// The container's name.
    pub(crate) name: String,
    /// How often it had run before.
    pub(crate) attempt: u32,
    /// The image it runs.
    pub(crate) image: String,
    /// An identity of this run.
    pub(crate) id: String,
    /// When it started.
    pub(crate) started_at: Timestamp,
    /// How it ended, if it did.
    pub(crate) exit: Option<ContainerExit>,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerExit {
    /// When.
    pub(crate) finished_at: Timestamp,
    /// The exit code; 128 + the signal's number when one ended it.
    pub(crate) code: i32,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
}

/// The agent asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Request {
    /// Tell all containers.
    List,
    /// Start a container.
    Start(Box<ContainerSpec>),
    /// End a container: ask its process (SIGTERM), or with `force` end its whole process group (SIGKILL).
    Stop {
        /// The container.
        name: String,
        /// SIGKILL.
        force: bool,
    },
    /// Run one of the image's sub-commands inside a running container.
    Exec {
        /// Chosen by the agent, comes back with the result.
        id: u64,
        /// The container.
        name: String,
        /// Arguments for the image.
        args: Vec<String>,
        /// After this it is killed.
        timeout_ms: u64,
    },
}

/// The shim answers and tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Report {
    /// The latest run of every container.
    Containers(Vec<ContainerRecord>),
    /// One container started or ended.
    Container(ContainerRecord),
    /// A container could not be started.
    StartFailed {
        /// The container.
        name: String,
        /// Why.
        message: String,
    },
    /// An exec ended.
    ExecDone {
        /// The id of the request.
        id: u64,
        /// Its exit code; `None` when it was killed or never ran.
        code: Option<i32>,
        /// The beginning of what it printed.
        output: String,
    },
}
