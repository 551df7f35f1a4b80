//! The status of a pod, from what is known of it. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::memory::{ContainerMemory, Goal, Memory, init_containers, is_sidecar, main_containers};
use super::plan::RestartPolicy;
use crate::runtime::Refusal;
use crate::shim::protocol::ContainerRecord;

/// The conditions that the agent writes.
pub(crate) const OWN_CONDITIONS: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready", "PodScheduled"];

/// What status is computed from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// The pod as the API has it.
    pub(crate) pod: &'a Pod,
    /// What is known of it here.
    pub(crate) memory: &'a Memory,
    /// Its sandbox is there, with its network.
    pub(crate) sandbox: bool,
    /// What it is to become.
    pub(crate) goal: Goal,
    /// The node's addresses.
    pub(crate) node_ips: &'a [IpAddr],
    /// The time.
    pub(crate) now: Timestamp,
}

/// The pod's status. What others wrote into `previous` (foreign conditions, the start time) is kept.
pub(crate) fn compute(facts: Facts<'_>, previous: &PodStatus) -> PodStatus {
    let Facts { pod, memory, sandbox, goal, node_ips, now } = facts;
    let initialized = initialized(pod, memory);
    let phase = phase(facts);
    let statuses = |containers: &[Container], main: bool| {
        let list: Vec<_> = containers.iter().map(|c| container_status(facts, c, main, initialized)).collect();
        (!list.is_empty()).then_some(list)
    };
    let ips: Vec<PodIP> = memory.ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect();
    let ended = matches!(phase, "Succeeded" | "Failed");
    let unready: Vec<&str> = main_containers(pod)
        .iter()
        .filter(|c| !memory.containers.get(&c.name).is_some_and(|known| known.ready(c)))
        .map(|c| c.name.as_str())
        .collect();
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        start_time: previous.start_time.clone().or(Some(Time(whole_seconds(now)))),
        host_ip: node_ips.first().map(ToString::to_string),
        host_ips: Some(node_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: ips.first().map(|ip| ip.ip.clone()),
        pod_ips: (!ips.is_empty()).then_some(ips),
        qos_class: previous.qos_class.clone().or_else(|| Some(qos_class(pod).to_owned())),
        container_statuses: statuses(main_containers(pod), true),
        init_container_statuses: statuses(init_containers(pod), false),
        conditions: previous.conditions.clone(),
        nominated_node_name: previous.nominated_node_name.clone(),
        ..PodStatus::default()
    };
    let mut conditions = Conditions { list: status.conditions.take().unwrap_or_default(), now };
    conditions.set("PodReadyToStartContainers", sandbox && !ended, None);
    let uninitialized = ("ContainersNotInitialized", "init containers have not completed".to_owned());
    conditions.set("Initialized", initialized || phase == "Succeeded", Some(uninitialized));
    let not_ready = if phase == "Succeeded" {
        ("PodCompleted", String::new())
    } else {
        ("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))
    };
    let containers_ready = unready.is_empty() && !ended;
    conditions.set("ContainersReady", containers_ready, Some(not_ready.clone()));
    let gates = missing_gates(pod, &conditions.list);
    let not_ready = if containers_ready {
        ("ReadinessGatesNotReady", format!("the status of pod readiness gates is not \"True\": {gates}"))
    } else {
        not_ready
    };
    let stopping = goal == Goal::Kill;
    conditions.set("Ready", containers_ready && gates.is_empty() && !stopping, Some(not_ready));
    conditions.set("PodScheduled", true, None);
    status.conditions = Some(conditions.list);
    status
}

struct Conditions {
    list: Vec<PodCondition>,
    now: Timestamp,
}

impl Conditions {
    fn set(&mut self, kind: &str, holds: bool, otherwise: Option<(&str, String)>) {
        let (reason, message) = match otherwise {
            Some((reason, message)) if !holds => (Some(reason.to_owned()), Some(message)),
            _ => (None, None),
        };
        let status = if holds { "True" } else { "False" };
        let held = self.list.iter().position(|c| c.type_ == kind);
        let same = held.map(|i| &self.list[i]).filter(|c| c.status == status);
        let since = same.and_then(|c| c.last_transition_time.clone());
        let condition = PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason,
            message: message.filter(|m| !m.is_empty()),
            last_transition_time: since.or(Some(Time(whole_seconds(self.now)))),
            ..PodCondition::default()
        };
        match held {
            Some(i) => self.list[i] = condition,
            None => self.list.push(condition),
        }
    }
}

fn missing_gates(pod: &Pod, conditions: &[PodCondition]) -> String {
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let missing: Vec<&str> = gates
        .map(|gate| gate.condition_type.as_str())
        .filter(|gate| !conditions.iter().any(|c| c.type_ == *gate && c.status == "True"))
        .collect();
    missing.join(" ")
}

/// All init containers are done (sidecars: started).
fn initialized(pod: &Pod, memory: &Memory) -> bool {
    init_containers(pod).iter().all(|container| {
        let known = memory.containers.get(&container.name);
        known.is_some_and(|known| {
            if is_sidecar(container) {
                known.started(container)
            } else {
                known.exit().is_some_and(|exit| exit.code == 0)
            }
        })
    })
}

fn phase(facts: Facts<'_>) -> &'static str {
    let Facts { pod, memory, goal, sandbox, .. } = facts;
    // A phase that ended does not come back.
    match pod.status.as_ref().and_then(|s| s.phase.as_deref()) {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ => {}
    }
    let policy = RestartPolicy::of(pod);
    let known = |c: &Container| memory.containers.get(&c.name);
    let codes: Vec<i32> =
        main_containers(pod).iter().filter_map(|c| known(c)?.exit().map(|exit| exit.code)).collect();
    let all_ended = codes.len() == main_containers(pod).len();
    let all_well = codes.iter().all(|code| *code == 0);
    if goal != Goal::Run && !sandbox {
        return if all_ended && all_well { "Succeeded" } else { "Failed" };
    }
    if !initialized(pod, memory)
        && !main_containers(pod).iter().any(|c| known(c).is_some_and(|k| k.record.is_some()))
    {
        let failed = policy == RestartPolicy::Never
            && init_containers(pod).iter().any(|c| {
                !is_sidecar(c) && known(c).and_then(ContainerMemory::exit).is_some_and(|e| e.code != 0)
            });
        return if failed { "Failed" } else { "Pending" };
    }
    if all_ended && !codes.iter().any(|code| policy.restarts(*code)) {
        return if all_well { "Succeeded" } else { "Failed" };
    }
    let every_one_ran = main_containers(pod)
        .iter()
        .all(|c| known(c).is_some_and(|k| k.record.is_some() || k.previous.is_some()));
    if every_one_ran { "Running" } else { "Pending" }
}

fn container_status(
    facts: Facts<'_>,
    container: &Container,
    main: bool,
    initialized: bool,
) -> ContainerStatus {
    let empty = ContainerMemory::default();
    let known = facts.memory.containers.get(&container.name).unwrap_or(&empty);
    let image = container.image.clone().unwrap_or_default();
    let latest = known.record.as_ref().or(known.previous.as_ref());
    let ready = if main || is_sidecar(container) {
        known.ready(container)
    } else {
        known.exit().is_some_and(|exit| exit.code == 0)
    };
    let (state, last_state) = states(facts, container, known, main, initialized);
    ContainerStatus {
        name: container.name.clone(),
        ready,
        started: Some(known.started(container)),
        restart_count: latest.map_or(0, |record| i32::try_from(record.attempt).unwrap_or(i32::MAX)),
        image_id: latest.map(|record| format!("seaway://{}", record.image)).unwrap_or_default(),
        image,
        container_id: latest.map(container_id),
        state: Some(state),
        last_state: Some(last_state),
        ..ContainerStatus::default()
    }
}

fn states(
    facts: Facts<'_>,
    container: &Container,
    known: &ContainerMemory,
    main: bool,
    initialized: bool,
) -> (ContainerState, ContainerState) {
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    };
    let before = known.previous.as_ref().map(ended).unwrap_or_default();
    let refused = match (&known.refusal, &known.problem) {
        _ if known.running() => None,
        (Some(Refusal::Image(why)), _) => Some(("ErrImagePull", why.clone())),
        (Some(Refusal::Settings(why)), _) => Some(("CreateContainerConfigError", why.clone())),
        (None, Some((reason, why))) => Some((*reason, why.clone())),
        (None, None) => None,
    };
    if let Some((reason, message)) = refused {
        let last = known.record.as_ref().map_or(before, ended);
        return (waiting(reason, Some(message)), last);
    }
    let Some(record) = &known.record else {
        let reason = if main && !initialized { "PodInitializing" } else { "ContainerCreating" };
        return (waiting(reason, None), before);
    };
    let Some(exit) = &record.exit else {
        let running = ContainerStateRunning { started_at: Some(Time(whole_seconds(record.started_at))) };
        return (ContainerState { running: Some(running), ..ContainerState::default() }, before);
    };
    let policy = match RestartPolicy::of(facts.pod) {
        _ if is_sidecar(container) => RestartPolicy::Always,
        RestartPolicy::Always if !main => RestartPolicy::OnFailure,
        policy => policy,
    };
    let backs_off = known.restart_at().is_some_and(|at| at > facts.now);
    if facts.goal == Goal::Run && policy.restarts(exit.code) && backs_off {
        let message = format!(
            "back-off {}s restarting failed container={} pod={}_{}({})",
            known.backoff.delay().as_secs(),
            container.name,
            facts.pod.metadata.name.as_deref().unwrap_or_default(),
            facts.pod.metadata.namespace.as_deref().unwrap_or_default(),
            facts.pod.metadata.uid.as_deref().unwrap_or_default(),
        );
        return (waiting("CrashLoopBackOff", Some(message)), ended(record));
    }
    (ended(record), before)
}

fn ended(record: &ContainerRecord) -> ContainerState {
    let Some(exit) = &record.exit else { return ContainerState::default() };
    let terminated = ContainerStateTerminated {
        container_id: Some(container_id(record)),
        exit_code: exit.code,
        signal: exit.signal,
        reason: Some(if exit.code == 0 { "Completed" } else { "Error" }.to_owned()),
        started_at: Some(Time(whole_seconds(record.started_at))),
        finished_at: Some(Time(whole_seconds(exit.finished_at))),
        ..ContainerStateTerminated::default()
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

fn container_id(record: &ContainerRecord) -> String {
    format!("seaway-builtin://{}", record.id)
}

/// API times have seconds: finer ones would differ from what comes back.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// `status.qosClass`.
pub(crate) fn qos_class(pod: &Pod) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for container in init_containers(pod).iter().chain(main_containers(pod)) {
        let resources = container.resources.as_ref();
        let limits = resources.and_then(|r| r.limits.as_ref());
        let requests = resources.and_then(|r| r.requests.as_ref());
        let names: BTreeSet<&str> =
            limits.into_iter().chain(requests).flat_map(|r| r.keys()).map(String::as_str).collect();
        any |= names.contains("cpu") || names.contains("memory");
        for name in ["cpu", "memory"] {
            let limit = limits.and_then(|l| l.get(name));
            let request = requests.and_then(|r| r.get(name)).or(limit);
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests;
