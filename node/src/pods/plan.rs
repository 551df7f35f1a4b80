//! What to do next for one pod: desired (the API object) against actual (sandbox and memory). Pure and
//! level-triggered: called again after every change, it says the same until it is done.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::memory::{
    ContainerMemory, Goal, Memory, grace, init_containers, is_sidecar, later, main_containers,
};

/// The sandbox, as far as decisions go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SandboxView {
    /// There is none.
    None,
    /// It is there but holds nothing any more.
    Dead,
    /// It can run containers.
    Alive,
}

/// Why a running container is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// The pod ends.
    PodEnds,
    /// Its liveness probe failed.
    Liveness,
    /// Its startup probe failed.
    Startup,
    /// It is to run another image.
    ImageChanged,
    /// It did not end in time.
    Overdue,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make the sandbox.
    CreateSandbox,
    /// Take it away.
    RemoveSandbox,
    /// Start a container.
    Start(String),
    /// End a container.
    Stop { name: String, force: bool, deadline: Timestamp, reason: StopReason },
    /// Nothing of the pod is left but its files: report the end, then forget it.
    Finish,
}

/// What to do now, and when to look again at the latest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    /// In this order.
    pub(crate) actions: Vec<Action>,
    /// Without other news.
    pub(crate) wake: Option<Timestamp>,
}

impl Plan {
    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |held| held.min(at)));
    }
}

/// `spec.restartPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    /// Whatever the exit code.
    Always,
    /// If it is not 0.
    OnFailure,
    /// Not at all.
    Never,
}

impl RestartPolicy {
    /// That of a pod.
    pub(crate) fn of(pod: &Pod) -> Self {
        match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    /// A container that ended with `code` runs again.
    pub(crate) fn restarts(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

/// Decides.
pub(crate) fn plan(pod: &Pod, sandbox: SandboxView, memory: &Memory, goal: Goal, now: Timestamp) -> Plan {
    match goal {
        Goal::Terminate(deadline) => end(sandbox, memory, deadline, now),
        Goal::Kill => end(sandbox, memory, now, now),
        Goal::Run if is_finished(pod, memory) => {
            let leftover = sandbox != SandboxView::None;
            Plan { actions: leftover.then_some(Action::RemoveSandbox).into_iter().collect(), wake: None }
        }
        Goal::Run => run(pod, sandbox, memory, now),
    }
}

fn end(sandbox: SandboxView, memory: &Memory, deadline: Timestamp, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let running: Vec<_> = memory.containers.iter().filter(|(_, c)| c.running()).collect();
    match sandbox {
        SandboxView::None => plan.actions.push(Action::Finish),
        SandboxView::Alive if !running.is_empty() => {
            let force = now >= deadline;
            for (name, container) in running {
                let told = container.stopping.is_some_and(|s| s.forced || (!force && s.deadline <= deadline));
                if !told {
                    let reason = if force { StopReason::Overdue } else { StopReason::PodEnds };
                    plan.actions.push(Action::Stop { name: name.clone(), force, deadline, reason });
                }
            }
            if force {
                // What does not die of SIGKILL goes with its sandbox.
                plan.actions.push(Action::RemoveSandbox);
            } else {
                plan.wake_at(deadline);
            }
        }
        SandboxView::Dead | SandboxView::Alive => plan.actions.push(Action::RemoveSandbox),
    }
    plan
}

fn run(pod: &Pod, sandbox: SandboxView, memory: &Memory, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    match sandbox {
        SandboxView::None => match memory.sandbox_retry_at {
            Some(at) if at > now => plan.wake_at(at),
            _ => plan.actions.push(Action::CreateSandbox),
        },
        SandboxView::Dead => plan.actions.push(Action::RemoveSandbox),
        SandboxView::Alive => containers(pod, memory, now, &mut plan),
    }
    plan
}

fn containers(pod: &Pod, memory: &Memory, now: Timestamp, plan: &mut Plan) {
    let empty = ContainerMemory::default();
    let policy = RestartPolicy::of(pod);
    for container in init_containers(pod) {
        let known = memory.containers.get(&container.name).unwrap_or(&empty);
        let sidecar = is_sidecar(container);
        let done = !sidecar && known.exit().is_some_and(|exit| exit.code == 0);
        if done {
            continue;
        }
        let policy = match policy {
            _ if sidecar => RestartPolicy::Always,
            // An init container runs until it succeeds.
            RestartPolicy::Always => RestartPolicy::OnFailure,
            other => other,
        };
        one(pod, container, known, policy, now, plan);
        if !(sidecar && known.started(container)) {
            return;
        }
    }
    for container in main_containers(pod) {
        let known = memory.containers.get(&container.name).unwrap_or(&empty);
        one(pod, container, known, policy, now, plan);
    }
}

fn one(
    pod: &Pod,
    container: &Container,
    known: &ContainerMemory,
    policy: RestartPolicy,
    now: Timestamp,
    plan: &mut Plan,
) {
    if known.running() {
        return watch_running(pod, container, known, now, plan);
    }
    if known.refusal.is_some() || known.exit().is_some_and(|exit| !policy.restarts(exit.code)) {
        return;
    }
    match known.restart_at().max(known.retry_at) {
        Some(at) if at > now => plan.wake_at(at),
        _ => plan.actions.push(Action::Start(container.name.clone())),
    }
}

fn watch_running(pod: &Pod, container: &Container, known: &ContainerMemory, now: Timestamp, plan: &mut Plan) {
    let name = container.name.clone();
    if let Some(stopping) = known.stopping {
        if stopping.forced {
            return;
        }
        if stopping.deadline > now {
            return plan.wake_at(stopping.deadline);
        }
        let deadline = stopping.deadline;
        return plan.actions.push(Action::Stop { name, force: true, deadline, reason: StopReason::Overdue });
    }
    let image = known.record.as_ref().map(|record| record.image.as_str());
    let (reason, probe) = if known.health.startup == Some(false) {
        (StopReason::Startup, container.startup_probe.as_ref())
    } else if known.health.liveness == Some(false) {
        (StopReason::Liveness, container.liveness_probe.as_ref())
    } else if image != container.image.as_deref() {
        (StopReason::ImageChanged, None)
    } else {
        return;
    };
    let deadline = later(now, grace(pod, probe));
    plan.actions.push(Action::Stop { name, force: false, deadline, reason });
}

/// Every container ended and none runs again.
pub(crate) fn is_finished(pod: &Pod, memory: &Memory) -> bool {
    // What has ended stays ended, also when nobody here remembers how.
    if matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")) {
        return true;
    }
    let policy = RestartPolicy::of(pod);
    let exit_of = |container: &Container| memory.containers.get(&container.name).and_then(|c| c.exit());
    let init_failed = policy == RestartPolicy::Never
        && init_containers(pod).iter().any(|c| !is_sidecar(c) && exit_of(c).is_some_and(|e| e.code != 0));
    let all_ended = main_containers(pod)
        .iter()
        .all(|container| exit_of(container).is_some_and(|exit| !policy.restarts(exit.code)));
    init_failed || all_ended
}

#[cfg(test)]
mod tests;
