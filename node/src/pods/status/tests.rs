//! Status, one situation at a time, as a table that a person can read.

use std::fmt::Write;

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::*;
use crate::shim::protocol::ContainerExit;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn pod(spec: Value) -> Pod {
    let metadata = json!({"name": "web", "namespace": "default", "uid": "u"});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
}

fn ran(attempt: u32, exit: Option<i32>) -> ContainerRecord {
    ContainerRecord {
        name: "a".into(),
        attempt,
        image: "seaway/echo".into(),
        id: format!("id{attempt}"),
        started_at: at(90),
        exit: exit.map(|code| ContainerExit { finished_at: at(100), code, signal: None }),
    }
}

fn known(record: Option<ContainerRecord>, previous: Option<ContainerRecord>) -> ContainerMemory {
    ContainerMemory { record, previous, ..ContainerMemory::default() }
}

fn memory(containers: Vec<(&str, ContainerMemory)>) -> Memory {
    Memory {
        containers: containers.into_iter().map(|(name, c)| (name.to_owned(), c)).collect(),
        ips: vec!["10.244.1.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        ..Memory::default()
    }
}

fn check(pod: &Pod, memory: &Memory, sandbox: bool, goal: Goal, want: &Expect) {
    let node_ips = ["172.30.0.11".parse().unwrap()];
    let facts = Facts { pod, memory, sandbox, goal, node_ips: &node_ips, now: at(101) };
    want.assert_eq(&render(&compute(facts, &PodStatus::default())));
}

fn render(status: &PodStatus) -> String {
    let mut text = format!("{} ip={:?}\n", status.phase.as_deref().unwrap(), status.pod_ip);
    for c in status.conditions.iter().flatten() {
        let reason = c.reason.as_deref().unwrap_or_default();
        writeln!(text, "  {}={} {reason}", c.type_, c.status).unwrap();
    }
    for c in status.init_container_statuses.iter().chain(&status.container_statuses).flatten() {
        let side = |state: &Option<ContainerState>| {
            let state = state.as_ref().unwrap();
            match (&state.waiting, &state.running, &state.terminated) {
                (Some(w), ..) => w.reason.clone().unwrap(),
                (_, Some(_), _) => "running".to_owned(),
                (.., Some(t)) => format!("exit {}", t.exit_code),
                _ => "-".to_owned(),
            }
        };
        let (state, last) = (side(&c.state), side(&c.last_state));
        writeln!(text, "  {} ready={} restarts={} {state} (last {last})", c.name, c.ready, c.restart_count)
            .unwrap();
    }
    text
}

const SIMPLE: &str = r#"{"containers": [{"name": "a", "image": "seaway/echo"}]}"#;

fn simple() -> Pod {
    pod(serde_json::from_str(SIMPLE).unwrap())
}

#[test]
fn pending_while_it_is_made() {
    check(
        &simple(),
        &Memory::default(),
        false,
        Goal::Run,
        &expect![[r"
            Pending ip=None
              PodReadyToStartContainers=False 
              Initialized=True 
              ContainersReady=False ContainersNotReady
              Ready=False ContainersNotReady
              PodScheduled=True 
              a ready=false restarts=0 ContainerCreating (last -)
        "]],
    );
}

#[test]
fn running_and_ready() {
    check(
        &simple(),
        &memory(vec![("a", known(Some(ran(0, None)), None))]),
        true,
        Goal::Run,
        &expect![[r#"
            Running ip=Some("10.244.1.5")
              PodReadyToStartContainers=True 
              Initialized=True 
              ContainersReady=True 
              Ready=True 
              PodScheduled=True 
              a ready=true restarts=0 running (last -)
        "#]],
    );
}

#[test]
fn running_but_not_ready_before_its_probe_passed() {
    let pod = pod(json!({"containers": [
        {"name": "a", "image": "seaway/echo", "readinessProbe": {"tcpSocket": {"port": 80}}}]}));
    check(
        &pod,
        &memory(vec![("a", known(Some(ran(0, None)), None))]),
        true,
        Goal::Run,
        &expect![[r#"
            Running ip=Some("10.244.1.5")
              PodReadyToStartContainers=True 
              Initialized=True 
              ContainersReady=False ContainersNotReady
              Ready=False ContainersNotReady
              PodScheduled=True 
              a ready=false restarts=0 running (last -)
        "#]],
    );
}

#[test]
fn crash_loop_back_off() {
    let mut crashed = known(Some(ran(2, Some(1))), Some(ran(1, Some(1))));
    crashed.backoff.restarted();
    check(
        &simple(),
        &memory(vec![("a", crashed)]),
        true,
        Goal::Run,
        &expect![[r#"
            Running ip=Some("10.244.1.5")
              PodReadyToStartContainers=True 
              Initialized=True 
              ContainersReady=False ContainersNotReady
              Ready=False ContainersNotReady
              PodScheduled=True 
              a ready=false restarts=2 CrashLoopBackOff (last exit 1)
        "#]],
    );
}

#[test]
fn init_containers_hold_the_others_up() {
    let pod = pod(json!({
        "initContainers": [{"name": "i", "image": "seaway/client"}],
        "containers": [{"name": "a", "image": "seaway/echo"}]}));
    check(
        &pod,
        &memory(vec![("i", known(Some(ran(0, None)), None))]),
        true,
        Goal::Run,
        &expect![[r#"
            Pending ip=Some("10.244.1.5")
              PodReadyToStartContainers=True 
              Initialized=False ContainersNotInitialized
              ContainersReady=False ContainersNotReady
              Ready=False ContainersNotReady
              PodScheduled=True 
              i ready=false restarts=0 running (last -)
              a ready=false restarts=0 PodInitializing (last -)
        "#]],
    );
}

#[test]
fn an_image_that_is_not_there() {
    let mut refused = known(None, None);
    refused.refusal = Some(Refusal::Image("no such image".into()));
    check(
        &simple(),
        &memory(vec![("a", refused)]),
        true,
        Goal::Run,
        &expect![[r#"
            Pending ip=Some("10.244.1.5")
              PodReadyToStartContainers=True 
              Initialized=True 
              ContainersReady=False ContainersNotReady
              Ready=False ContainersNotReady
              PodScheduled=True 
              a ready=false restarts=0 ErrImagePull (last -)
        "#]],
    );
}

#[test]
fn finished_by_policy() {
    for (policy, code, phase) in [
        ("Never", 0, "Succeeded"),
        ("Never", 3, "Failed"),
        ("OnFailure", 0, "Succeeded"),
        ("OnFailure", 3, "Running"),
    ] {
        let pod =
            pod(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "seaway/echo"}]}));
        let memory = memory(vec![("a", known(Some(ran(0, Some(code))), None))]);
        let facts =
            Facts { pod: &pod, memory: &memory, sandbox: true, goal: Goal::Run, node_ips: &[], now: at(101) };
        let status = compute(facts, &PodStatus::default());
        assert_eq!(status.phase.as_deref(), Some(phase), "{policy} {code}");
    }
}

#[test]
fn the_end_of_a_deleted_pod() {
    check(
        &simple(),
        &memory(vec![("a", known(Some(ran(0, Some(143))), None))]),
        false,
        Goal::Terminate(at(130)),
        &expect![[r#"
            Failed ip=Some("10.244.1.5")
              PodReadyToStartContainers=False 
              Initialized=True 
              ContainersReady=False ContainersNotReady
              Ready=False ContainersNotReady
              PodScheduled=True 
              a ready=false restarts=0 exit 143 (last -)
        "#]],
    );
}

#[test]
fn computing_again_changes_nothing() {
    let memory = memory(vec![("a", known(Some(ran(0, None)), None))]);
    let pod = simple();
    let facts = |now| Facts {
        pod: &pod,
        memory: &memory,
        sandbox: true,
        goal: Goal::Run,
        node_ips: &[],
        now: at(now),
    };
    let first = compute(facts(101), &PodStatus::default());
    assert_eq!(compute(facts(500), &first), first);
}

#[test]
fn foreign_conditions_and_readiness_gates() {
    let pod = pod(json!({"readinessGates": [{"conditionType": "example.com/up"}],
        "containers": [{"name": "a", "image": "seaway/echo"}]}));
    let memory = memory(vec![("a", known(Some(ran(0, None)), None))]);
    let facts =
        Facts { pod: &pod, memory: &memory, sandbox: true, goal: Goal::Run, node_ips: &[], now: at(101) };
    let ready = |status: &PodStatus| {
        status.conditions.iter().flatten().find(|c| c.type_ == "Ready").map(|c| c.status.clone()).unwrap()
    };
    let mut status = compute(facts, &PodStatus::default());
    assert_eq!(ready(&status), "False");
    let gate =
        PodCondition { type_: "example.com/up".into(), status: "True".into(), ..PodCondition::default() };
    status.conditions.as_mut().unwrap().push(gate);
    let status = compute(facts, &status);
    assert_eq!(ready(&status), "True");
    assert!(status.conditions.unwrap().iter().any(|c| c.type_ == "example.com/up"));
}

#[test]
fn qos_classes() {
    for (resources, want) in [
        (json!({}), "BestEffort"),
        (json!({"requests": {"cpu": "1"}}), "Burstable"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
        (json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}}), "Burstable"),
    ] {
        let pod = pod(json!({"containers": [{"name": "a", "resources": resources}]}));
        assert_eq!(qos_class(&pod), want);
    }
}
