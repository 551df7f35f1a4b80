//! Decisions, one situation at a time.

use serde_json::{Value, json};

use super::*;
use crate::pods::memory::{Health, Stopping};
use crate::runtime::Refusal;
use crate::shim::protocol::{ContainerExit, ContainerRecord};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec}))
        .unwrap()
}

fn simple() -> Pod {
    pod(json!({"containers": [{"name": "a", "image": "seaway/echo"}, {"name": "b", "image": "seaway/echo"}]}))
}

fn ran(code: Option<i32>) -> ContainerMemory {
    let exit = code.map(|code| ContainerExit { finished_at: at(100), code, signal: None });
    let record = ContainerRecord {
        name: "x".into(),
        attempt: 0,
        image: "seaway/echo".into(),
        id: "id".into(),
        started_at: at(90),
        exit,
    };
    ContainerMemory { record: Some(record), ..ContainerMemory::default() }
}

fn memory(containers: &[(&str, ContainerMemory)]) -> Memory {
    let containers = containers.iter().map(|(name, c)| ((*name).to_owned(), c.clone())).collect();
    Memory { containers, ..Memory::default() }
}

fn starts(plan: &Plan) -> Vec<&str> {
    let names = plan.actions.iter().filter_map(|action| match action {
        Action::Start(name) => Some(name.as_str()),
        _ => None,
    });
    names.collect()
}

#[test]
fn a_new_pod_gets_a_sandbox_then_all_its_containers() {
    let first = plan(&simple(), SandboxView::None, &Memory::default(), Goal::Run, at(0));
    assert_eq!(first.actions, [Action::CreateSandbox]);
    let second = plan(&simple(), SandboxView::Alive, &Memory::default(), Goal::Run, at(0));
    assert_eq!(starts(&second), ["a", "b"]);
}

#[test]
fn a_sandbox_that_failed_waits() {
    let mut memory = Memory::default();
    memory.sandbox_failed(at(10));
    let waiting = plan(&simple(), SandboxView::None, &memory, Goal::Run, at(10));
    assert!(waiting.actions.is_empty());
    let wake = waiting.wake.unwrap();
    let again = plan(&simple(), SandboxView::None, &memory, Goal::Run, wake);
    assert_eq!(again.actions, [Action::CreateSandbox]);
}

#[test]
fn what_runs_well_is_left_alone() {
    let memory = memory(&[("a", ran(None)), ("b", ran(None))]);
    assert_eq!(plan(&simple(), SandboxView::Alive, &memory, Goal::Run, at(200)), Plan::default());
}

#[test]
fn restart_follows_policy_and_back_off() {
    for (policy, code, restarts) in [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Never", 1, false),
    ] {
        let pod = pod(json!({"restartPolicy": policy, "containers": [
            {"name": "a", "image": "seaway/echo"}, {"name": "b", "image": "seaway/echo"}]}));
        let known = memory(&[("a", ran(Some(code))), ("b", ran(None))]);
        let plan = plan(&pod, SandboxView::Alive, &known, Goal::Run, at(101));
        assert_eq!(starts(&plan) == ["a"], restarts, "{policy} {code}");
    }
    let mut crashed = ran(Some(1));
    crashed.backoff.restarted();
    let known = memory(&[("a", crashed), ("b", ran(None))]);
    let waiting = plan(&simple(), SandboxView::Alive, &known, Goal::Run, at(101));
    assert_eq!((starts(&waiting).len(), waiting.wake), (0, Some(at(110))));
    let due = plan(&simple(), SandboxView::Alive, &known, Goal::Run, at(110));
    assert_eq!(starts(&due), ["a"]);
}

#[test]
fn init_containers_come_one_after_the_other() {
    let pod = pod(json!({
        "initContainers": [
            {"name": "i1", "image": "seaway/echo"},
            {"name": "side", "image": "seaway/echo", "restartPolicy": "Always",
             "startupProbe": {"tcpSocket": {"port": 1}}},
            {"name": "i2", "image": "seaway/echo"}],
        "containers": [{"name": "a", "image": "seaway/echo"}]}));
    let mut started = ran(None);
    started.health.startup = Some(true);
    for (known, want) in [
        (vec![], vec!["i1"]),
        (vec![("i1", ran(None))], vec![]),
        (vec![("i1", ran(Some(1)))], vec!["i1"]),
        (vec![("i1", ran(Some(0)))], vec!["side"]),
        (vec![("i1", ran(Some(0))), ("side", ran(None))], vec![]),
        (vec![("i1", ran(Some(0))), ("side", started.clone())], vec!["i2"]),
        (vec![("i1", ran(Some(0))), ("side", started.clone()), ("i2", ran(Some(0)))], vec!["a"]),
    ] {
        let memory = memory(&known);
        let plan = plan(&pod, SandboxView::Alive, &memory, Goal::Run, at(101));
        assert_eq!(starts(&plan), want, "{:?}", known.iter().map(|k| k.0).collect::<Vec<_>>());
    }
}

#[test]
fn an_unhealthy_container_is_asked_then_forced() {
    let pod = pod(json!({"terminationGracePeriodSeconds": 5, "containers": [
        {"name": "a", "image": "seaway/echo", "livenessProbe": {"tcpSocket": {"port": 1}}}]}));
    let mut sick = ran(None);
    sick.health = Health { liveness: Some(false), ..Health::default() };
    let asked = plan(&pod, SandboxView::Alive, &memory(&[("a", sick.clone())]), Goal::Run, at(200));
    let stop = |force, deadline, reason| Action::Stop { name: "a".into(), force, deadline, reason };
    assert_eq!(asked.actions, [stop(false, at(205), StopReason::Liveness)]);
    sick.stopping = Some(Stopping { deadline: at(205), forced: false });
    let waiting = plan(&pod, SandboxView::Alive, &memory(&[("a", sick.clone())]), Goal::Run, at(201));
    assert_eq!(waiting, Plan { actions: vec![], wake: Some(at(205)) });
    let forced = plan(&pod, SandboxView::Alive, &memory(&[("a", sick)]), Goal::Run, at(205));
    assert_eq!(forced.actions, [stop(true, at(205), StopReason::Overdue)]);
}

#[test]
fn another_image_replaces_the_container() {
    let pod = pod(json!({"containers": [{"name": "a", "image": "seaway/client"}]}));
    let plan = plan(&pod, SandboxView::Alive, &memory(&[("a", ran(None))]), Goal::Run, at(0));
    assert!(matches!(&plan.actions[..], [Action::Stop { reason: StopReason::ImageChanged, .. }]), "{plan:?}");
}

#[test]
fn a_refused_container_does_not_hold_up_the_others() {
    let refusal = Some(Refusal::Image("no".into()));
    let refused = ContainerMemory { refusal, ..ContainerMemory::default() };
    let plan = plan(&simple(), SandboxView::Alive, &memory(&[("a", refused)]), Goal::Run, at(0));
    assert_eq!(starts(&plan), ["b"]);
}

#[test]
fn termination_asks_waits_forces_and_finishes() {
    let goal = Goal::Terminate(at(230));
    let mut known = memory(&[("a", ran(None)), ("b", ran(Some(0)))]);
    let asked = plan(&simple(), SandboxView::Alive, &known, goal, at(200));
    assert!(matches!(&asked.actions[..], [Action::Stop { force: false, .. }]), "{asked:?}");
    known.container("a").stopping = Some(Stopping { deadline: at(230), forced: false });
    let waiting = plan(&simple(), SandboxView::Alive, &known, goal, at(201));
    assert_eq!(waiting, Plan { actions: vec![], wake: Some(at(230)) });
    let forced = plan(&simple(), SandboxView::Alive, &known, goal, at(230));
    assert!(matches!(&forced.actions[..], [Action::Stop { force: true, .. }, Action::RemoveSandbox]));
    let ended = memory(&[("a", ran(Some(143))), ("b", ran(Some(0)))]);
    let removed = plan(&simple(), SandboxView::Alive, &ended, goal, at(202));
    assert_eq!(removed.actions, [Action::RemoveSandbox]);
    let finished = plan(&simple(), SandboxView::None, &ended, goal, at(202));
    assert_eq!(finished.actions, [Action::Finish]);
}

#[test]
fn a_pod_that_is_gone_is_killed_at_once() {
    let known = memory(&[("a", ran(None))]);
    let plan = plan(&simple(), SandboxView::Alive, &known, Goal::Kill, at(200));
    assert!(
        matches!(&plan.actions[..], [Action::Stop { force: true, .. }, Action::RemoveSandbox]),
        "{plan:?}"
    );
}

#[test]
fn a_finished_pod_gives_its_sandbox_back_and_stays() {
    let pod = pod(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "seaway/echo"}]}));
    let known = memory(&[("a", ran(Some(3)))]);
    let leaves = plan(&pod, SandboxView::Alive, &known, Goal::Run, at(200));
    assert_eq!(leaves.actions, [Action::RemoveSandbox]);
    assert_eq!(plan(&pod, SandboxView::None, &known, Goal::Run, at(200)), Plan::default());
}
