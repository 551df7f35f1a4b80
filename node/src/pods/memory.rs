//! What is known of one pod between two looks at it: the runs of its containers, their health, and what waits for
//! its time. Filled from the sandbox and the probes; decisions and status are functions of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};

use super::backoff::{Backoff, doubled};
use crate::runtime::{Refusal, SandboxState};
use crate::shim::protocol::{ContainerExit, ContainerRecord};

/// What the pod is to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// To run.
    Run,
    /// To end, at the latest at this time by force.
    Terminate(Timestamp),
    /// To be gone: the API does not know it any more.
    Kill,
}

/// A container that is being ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopping {
    /// After this by force.
    pub(crate) deadline: Timestamp,
    /// SIGKILL was sent.
    pub(crate) forced: bool,
}

/// What a probe last found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Health {
    /// The startup probe: `Some(false)` means that it failed for good.
    pub(crate) startup: Option<bool>,
    /// The liveness probe.
    pub(crate) liveness: Option<bool>,
    /// The readiness probe.
    pub(crate) readiness: Option<bool>,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ContainerMemory {
    /// Its latest run.
    pub(crate) record: Option<ContainerRecord>,
    /// The run before.
    pub(crate) previous: Option<ContainerRecord>,
    /// The delay before its next run.
    pub(crate) backoff: Backoff,
    /// What probes found in its latest run.
    pub(crate) health: Health,
    /// It is being ended.
    pub(crate) stopping: Option<Stopping>,
    /// Why it cannot run here at all.
    pub(crate) refusal: Option<Refusal>,
    /// The last start did not work: reason, message.
    pub(crate) problem: Option<(&'static str, String)>,
    /// Not before this time again.
    pub(crate) retry_at: Option<Timestamp>,
}

impl ContainerMemory {
    /// It runs.
    pub(crate) fn running(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.exit.is_none())
    }

    /// How its latest run ended.
    pub(crate) fn exit(&self) -> Option<&ContainerExit> {
        self.record.as_ref().and_then(|record| record.exit.as_ref())
    }

    /// The number of its next run.
    pub(crate) fn next_attempt(&self) -> u32 {
        let last = self.record.as_ref().or(self.previous.as_ref());
        last.map_or(0, |record| record.attempt + 1)
    }

    /// It runs and its startup probe, if any, has passed.
    pub(crate) fn started(&self, container: &Container) -> bool {
        self.running() && (container.startup_probe.is_none() || self.health.startup == Some(true))
    }

    /// It takes traffic.
    pub(crate) fn ready(&self, container: &Container) -> bool {
        self.started(container)
            && (container.readiness_probe.is_none() || self.health.readiness == Some(true))
    }

    /// When it may run again after its end.
    pub(crate) fn restart_at(&self) -> Option<Timestamp> {
        self.exit().map(|exit| later(exit.finished_at, self.backoff.delay()))
    }
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Memory {
    /// Its containers, init containers among them, by name.
    pub(crate) containers: BTreeMap<String, ContainerMemory>,
    /// Its addresses.
    pub(crate) ips: Vec<IpAddr>,
    /// How often making the sandbox failed in a row.
    pub(crate) sandbox_failures: u32,
    /// Not before this time again.
    pub(crate) sandbox_retry_at: Option<Timestamp>,
    /// When it was first seen to be deleted.
    pub(crate) terminating_since: Option<Timestamp>,
}

impl Memory {
    /// One container's part.
    pub(crate) fn container(&mut self, name: &str) -> &mut ContainerMemory {
        self.containers.entry(name.to_owned()).or_default()
    }

    /// Takes over what the sandbox shows. What ran in a sandbox that died, died with it.
    pub(crate) fn observe(&mut self, state: &SandboxState, now: Timestamp) {
        for (name, seen) in &state.containers {
            let mut seen = seen.clone();
            if !state.alive {
                let lost = ContainerExit { finished_at: now, code: 137, signal: Some(9) };
                seen.exit.get_or_insert(lost);
            }
            let known = self.container(name);
            let is_new = known.record.as_ref().is_none_or(|record| record.id != seen.id);
            if is_new && known.record.as_ref().is_some_and(|record| record.attempt > seen.attempt) {
                continue;
            }
            if is_new {
                known.previous = known.record.take();
                known.health = Health::default();
                known.stopping = None;
                known.problem = None;
            }
            let ended_now = seen.exit.is_some() && known.exit().is_none();
            if ended_now && let Some(exit) = &seen.exit {
                known.backoff.ended(elapsed(seen.started_at, exit.finished_at));
                known.stopping = None;
            }
            // A loss that was noted keeps the time when it was noted.
            if ended_now || known.exit().is_none() {
                known.record = Some(seen);
            }
        }
    }

    /// The sandbox was taken away while the pod is still to run: init containers run again in the next one.
    pub(crate) fn sandbox_lost(&mut self, pod: &Pod) {
        for container in init_containers(pod) {
            if let Some(known) = self.containers.get_mut(&container.name)
                && let Some(record) = known.record.take()
            {
                known.previous = Some(record);
            }
        }
    }

    /// Making the sandbox failed.
    pub(crate) fn sandbox_failed(&mut self, now: Timestamp) {
        self.sandbox_failures = self.sandbox_failures.saturating_add(1);
        let delay = doubled(Duration::from_millis(100), self.sandbox_failures, Duration::from_secs(10));
        self.sandbox_retry_at = Some(later(now, delay));
    }
}

/// The pod's init containers.
pub(crate) fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default()
}

/// The pod's containers.
pub(crate) fn main_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map_or(&[], |spec| &spec.containers)
}

/// An init container that stays (KEP-753).
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The time that a container gets to end by itself.
pub(crate) fn grace(pod: &Pod, probe: Option<&Probe>) -> Duration {
    let own = probe.and_then(|probe| probe.termination_grace_period_seconds);
    let pods = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    Duration::from_secs(own.or(pods).unwrap_or(30).max(0).unsigned_abs())
}

/// `at` + `by`, as far as time goes.
pub(crate) fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// The time from `from` to `to`; zero when the clock went back.
pub(crate) fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, attempt: u32, code: Option<i32>) -> ContainerRecord {
        ContainerRecord {
            name: "web".into(),
            attempt,
            image: "seaway/echo".into(),
            id: id.into(),
            started_at: Timestamp::UNIX_EPOCH,
            exit: code.map(|code| ContainerExit { finished_at: Timestamp::UNIX_EPOCH, code, signal: None }),
        }
    }

    fn state(alive: bool, record: ContainerRecord) -> SandboxState {
        SandboxState { alive, containers: BTreeMap::from([("web".to_owned(), record)]) }
    }

    #[test]
    fn a_new_run_forgets_the_health_of_the_last() {
        let mut memory = Memory::default();
        let now = Timestamp::UNIX_EPOCH;
        memory.observe(&state(true, record("a", 0, None)), now);
        memory.container("web").health.readiness = Some(true);
        memory.observe(&state(true, record("a", 0, Some(1))), now);
        memory.observe(&state(true, record("b", 1, None)), now);
        let web = memory.container("web");
        assert_eq!(web.health, Health::default());
        assert_eq!(web.previous.as_ref().map(|r| r.id.as_str()), Some("a"));
        assert!(web.running());
        assert_eq!(web.next_attempt(), 2);
    }

    #[test]
    fn a_lost_sandbox_takes_its_containers_along_once() {
        let mut memory = Memory::default();
        let (then, now) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(60).unwrap());
        memory.observe(&state(true, record("a", 0, None)), then);
        memory.observe(&state(false, record("a", 0, None)), then);
        memory.observe(&state(false, record("a", 0, None)), now);
        let exit = memory.container("web").exit().cloned().unwrap();
        assert_eq!((exit.code, exit.finished_at), (137, then));
    }
}
