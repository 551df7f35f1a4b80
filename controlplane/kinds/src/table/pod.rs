//! The table of Pods: the one word that sums up what a pod is doing.

use jiff::Timestamp;
use serde_json::Value;

use super::TableSpec;
use super::cells::{NONE, created, name, or_none};
use crate::strategy::{boolean, integer, list, text};
use crate::{Kind, time};

pub(crate) const POD: TableSpec = TableSpec {
    columns: "Name,Ready,Status,Restarts,Age,+IP,+Node,+Nominated Node,+Readiness Gates",
    row: |object, now| {
        let (spec, status) = (&object["spec"], &object["status"]);
        let summary = summarize(object);
        let address = list(status, "podIPs").first().map_or(text(status, "podIP"), |entry| text(entry, "ip"));
        vec![
            name(object),
            format!("{}/{}", summary.ready, summary.containers).into(),
            summary.word.clone().into(),
            summary.restarts(now).into(),
            created(object, now),
            or_none(address),
            or_none(text(spec, "nodeName")),
            or_none(text(status, "nominatedNodeName")),
            readiness_gates(object).into(),
        ]
    },
};

/// Why a finished pod's row is marked as completed.
pub(super) fn completed(kind: &Kind, object: &Value) -> Option<&'static str> {
    if kind.kind != "Pod" || !kind.group.is_empty() {
        return None;
    }
    match text(&object["status"], "phase") {
        "Succeeded" => Some("Succeeded"),
        "Failed" => Some("Failed"),
        _ => None,
    }
}

struct Summary {
    word: String,
    ready: usize,
    containers: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn restarts(&self, now: Timestamp) -> String {
        match self.last_restart {
            Some(then) if self.restarts > 0 => format!("{} ({} ago)", self.restarts, time::age(then, now)),
            _ => self.restarts.to_string(),
        }
    }

    /// Adds a container's restarts.
    fn count(&mut self, status: &Value) {
        self.restarts += integer(status, "restartCount").unwrap_or(0);
        let finished = time::parse(text(&status["lastState"]["terminated"], "finishedAt")).ok();
        self.last_restart = self.last_restart.max(finished);
    }
}

fn has_condition(status: &Value, kind: &str) -> bool {
    list(status, "conditions")
        .iter()
        .any(|condition| text(condition, "type") == kind && text(condition, "status") == "True")
}

fn is_sidecar(container: &Value) -> bool {
    text(container, "restartPolicy") == "Always"
}

/// How a container that ended is called: its reason, or the signal or code that ended it.
fn ended(terminated: &Value) -> String {
    match (text(terminated, "reason"), integer(terminated, "signal").unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", integer(terminated, "exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn summarize(pod: &Value) -> Summary {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let init = list(spec, "initContainers");
    let mut word = text(status, "phase").to_owned();
    if !text(status, "reason").is_empty() {
        text(status, "reason").clone_into(&mut word);
    }
    let gated = list(status, "conditions").iter().any(|condition| {
        text(condition, "type") == "PodScheduled" && text(condition, "reason") == "SchedulingGated"
    });
    if gated {
        "SchedulingGated".clone_into(&mut word);
    }
    let containers = list(spec, "containers").len() + init.iter().filter(|one| is_sidecar(one)).count();
    let mut summary = Summary { word, ready: 0, containers, restarts: 0, last_restart: None };
    let initializing = summarize_init(&mut summary, init, status);
    if !initializing || has_condition(status, "Initialized") {
        summarize_main(&mut summary, init, status);
    }
    if pod["metadata"].get("deletionTimestamp").is_some() {
        let over = matches!(text(status, "phase"), "Succeeded" | "Failed");
        if text(status, "reason") == "NodeLost" {
            "Unknown".clone_into(&mut summary.word);
        } else if !over {
            "Terminating".clone_into(&mut summary.word);
        }
    }
    summary
}

/// Goes through the init containers; returns whether one of them still has to finish.
fn summarize_init(summary: &mut Summary, init: &[Value], status: &Value) -> bool {
    for (at, one) in list(status, "initContainerStatuses").iter().enumerate() {
        summary.count(one);
        let (terminated, waiting) =
            (one["state"].get("terminated"), text(&one["state"]["waiting"], "reason"));
        let sidecar = init.iter().any(|spec| text(spec, "name") == text(one, "name") && is_sidecar(spec));
        if terminated.is_some_and(|end| integer(end, "exitCode").unwrap_or(0) == 0) {
            continue;
        }
        if sidecar && boolean(one, "started") {
            summary.ready += usize::from(boolean(one, "ready"));
            continue;
        }
        summary.word = match (terminated, waiting) {
            (Some(end), _) => format!("Init:{}", ended(end)),
            (None, "" | "PodInitializing") => format!("Init:{at}/{}", init.len()),
            (None, reason) => format!("Init:{reason}"),
        };
        return true;
    }
    false
}

fn summarize_main(summary: &mut Summary, init: &[Value], status: &Value) {
    // From here on only sidecars among the init containers count.
    (summary.restarts, summary.last_restart) = (0, None);
    for one in list(status, "initContainerStatuses") {
        if init.iter().any(|spec| text(spec, "name") == text(one, "name") && is_sidecar(spec)) {
            summary.count(one);
        }
    }
    let mut running = false;
    for one in list(status, "containerStatuses").iter().rev() {
        summary.count(one);
        let waiting = text(&one["state"]["waiting"], "reason");
        if !waiting.is_empty() {
            waiting.clone_into(&mut summary.word);
        } else if let Some(end) = one["state"].get("terminated") {
            summary.word = ended(end);
        } else if boolean(one, "ready") && one["state"].get("running").is_some() {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.word == "Completed" && running {
        let word = if has_condition(status, "Ready") { "Running" } else { "NotReady" };
        word.clone_into(&mut summary.word);
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(&pod["spec"], "readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let passed =
        gates.iter().filter(|gate| has_condition(&pod["status"], text(gate, "conditionType"))).count();
    format!("{passed}/{}", gates.len())
}
