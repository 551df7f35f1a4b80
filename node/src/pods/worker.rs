//! The worker of one pod: looks at what is desired and what is there, takes the steps of the plan, reports the
//! status, and waits for news.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ExecAction, LifecycleHandler, ObjectReference, Pod, PodStatus};
use kube::api::Api;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::hook::{self, HookKind};
use super::memory::{Goal, Memory, Stopping, elapsed, init_containers, later, main_containers};
use super::plan::{Action, SandboxView, StopReason, plan};
use super::probe::ProbeKind;
use super::prober::{self, News, Target};
use super::status::{self, Facts};
use super::writer::{Writer, Written};
use super::{Runner, start};
use crate::events::Severity;
use crate::runtime::{Refusal, Runtime, Sandbox};

/// After a start that failed for a reason outside, it is tried again.
const RETRY_START: Duration = Duration::from_secs(2);
/// A hook after the start may take this long.
const POST_START: Duration = Duration::from_secs(300);

/// What a worker is told.
#[derive(Debug, Clone)]
pub(super) struct Desired {
    /// The pod as the API last had it.
    pub(super) pod: Arc<Pod>,
    /// The API does not have it any more.
    pub(super) gone: bool,
}

/// Runs a pod until it is gone, or until `shutdown`, which leaves it running.
pub(super) async fn run<R: Runtime>(
    runner: Arc<Runner<R>>,
    desired: watch::Receiver<Desired>,
    adopted: Option<Sandbox>,
    shutdown: CancellationToken,
) {
    let pod = Arc::clone(&desired.borrow().pod);
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let writer = Writer {
        api: Api::namespaced(runner.client.clone(), &namespace),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
    };
    let (news_sender, news) = mpsc::unbounded_channel();
    let mut memory = Memory::default();
    if let Some(sandbox) = &adopted {
        memory.ips.clone_from(&sandbox.meta.ips);
    }
    let worker = Worker {
        runner,
        desired,
        sandbox: adopted.map(Arc::new),
        memory,
        probes: BTreeMap::new(),
        news,
        news_sender,
        writer,
        status: pod.status.clone().unwrap_or_default(),
        writing: None,
        written: pod.status.clone(),
        written_version: None,
    };
    shutdown.run_until_cancelled(worker.work()).await;
}

struct Worker<R> {
    runner: Arc<Runner<R>>,
    desired: watch::Receiver<Desired>,
    sandbox: Option<Arc<Sandbox>>,
    memory: Memory,
    /// Probes by container and kind, with the run that they belong to.
    probes: BTreeMap<(String, ProbeKind), (String, AbortOnDropHandle<()>)>,
    news: mpsc::UnboundedReceiver<News>,
    news_sender: mpsc::UnboundedSender<News>,
    writer: Writer,
    /// As last computed.
    status: PodStatus,
    /// The write that is under way.
    writing: Option<BoxFuture<'static, (PodStatus, Written)>>,
    /// As last written.
    written: Option<PodStatus>,
    written_version: Option<u64>,
}

impl<R: Runtime> Worker<R> {
    async fn work(mut self) {
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let now = Timestamp::now();
            self.observe(&desired.pod, now);
            let goal = self.goal(&desired, now);
            let plan = plan(&desired.pod, self.view(), &self.memory, goal, now);
            let acts = !plan.actions.is_empty();
            for action in plan.actions {
                if action == Action::Finish {
                    return self.finish(&desired.pod, goal).await;
                }
                self.act(&desired.pod, action).await;
            }
            let now = Timestamp::now();
            self.observe(&desired.pod, now);
            self.probe(&desired.pod, goal);
            self.report(&desired.pod, goal, now);
            if !acts {
                self.wait(plan.wake).await;
            }
        }
    }

    /// Waits for whatever comes first: another desire, a change in the sandbox, a probe, a written status, the time.
    async fn wait(&mut self, wake: Option<Timestamp>) {
        let sleep = wake.map(|at| elapsed(Timestamp::now(), at) + Duration::from_millis(1));
        let timer = tokio::time::sleep(sleep.unwrap_or(Duration::from_secs(3600)));
        let sandbox = self.sandbox.as_ref().map(|sandbox| sandbox.state.clone());
        let changed = async {
            match sandbox {
                Some(mut state) => {
                    let seen = state.borrow().clone();
                    // The sender lives as long as the sandbox; when it is gone there is nothing more to hear.
                    if state.wait_for(|current| *current != seen).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        let writing = async {
            match &mut self.writing {
                Some(writing) => writing.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.desired.changed() => {
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            () = changed => {}
            Some(news) = self.news.recv() => self.hear(news),
            (status, written) = writing => self.wrote(status, written),
            () = timer => {}
        }
    }

    fn view(&self) -> SandboxView {
        match &self.sandbox {
            None => SandboxView::None,
            Some(sandbox) if sandbox.state.borrow().alive => SandboxView::Alive,
            Some(_) => SandboxView::Dead,
        }
    }

    fn goal(&mut self, desired: &Desired, now: Timestamp) -> Goal {
        if desired.gone {
            return Goal::Kill;
        }
        let metadata = &desired.pod.metadata;
        let Some(deleted) = &metadata.deletion_timestamp else { return Goal::Run };
        let since = *self.memory.terminating_since.get_or_insert(now);
        let grace = metadata.deletion_grace_period_seconds.unwrap_or(30).max(0).unsigned_abs();
        // The deadline of the API, unless its clock and ours disagree.
        Goal::Terminate(deleted.0.clamp(since, later(since, Duration::from_secs(grace))))
    }

    fn observe(&mut self, pod: &Pod, now: Timestamp) {
        if let Some(sandbox) = &self.sandbox {
            let state = sandbox.state.borrow().clone();
            let before: Vec<String> =
                self.memory.containers.iter().filter(|(_, c)| c.running()).map(|(n, _)| n.clone()).collect();
            self.memory.observe(&state, now);
            for name in before {
                self.note_crash(pod, &name);
            }
        }
        for container in init_containers(pod).iter().chain(main_containers(pod)) {
            let refusal = self.runner.runtime.accept(container).err();
            let known = self.memory.container(&container.name);
            let is_new = refusal.is_some() && known.refusal != refusal;
            known.refusal.clone_from(&refusal);
            if is_new && let Some(refusal) = refusal {
                let message = match refusal {
                    Refusal::Image(why) | Refusal::Settings(why) => why,
                };
                self.note(pod, Some(&container.name), Severity::Warning, "Failed", message);
            }
        }
    }

    fn note_crash(&self, pod: &Pod, name: &str) {
        let Some(known) = self.memory.containers.get(name) else { return };
        let delay = known.backoff.delay();
        if known.running() || delay.is_zero() || pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        let message = format!("Back-off {} s restarting failed container {name}", delay.as_secs());
        self.note(pod, Some(name), Severity::Warning, "BackOff", message);
    }

    fn hear(&mut self, news: News) {
        let pod = Arc::clone(&self.desired.borrow().pod);
        let known = self.memory.container(&news.container);
        if known.record.as_ref().is_none_or(|record| record.id != news.id) {
            return;
        }
        match (news.kind, news.changed) {
            (_, None) => {}
            (ProbeKind::Startup, changed) => known.health.startup = changed,
            (ProbeKind::Liveness, changed) => known.health.liveness = changed,
            (ProbeKind::Readiness, changed) => known.health.readiness = changed,
        }
        if let Some(failure) = news.failure {
            let message = format!("{} probe failed: {failure}", news.kind.as_str());
            self.note(&pod, Some(&news.container), Severity::Warning, "Unhealthy", message);
        }
    }

    async fn act(&mut self, pod: &Pod, action: Action) {
        match action {
            Action::CreateSandbox => self.create_sandbox(pod).await,
            Action::RemoveSandbox => self.remove_sandbox(pod).await,
            Action::Start(name) => self.start(pod, &name).await,
            Action::Stop { name, force, deadline, reason } => self.stop(pod, &name, force, deadline, reason),
            Action::Finish => {}
        }
    }

    async fn create_sandbox(&mut self, pod: &Pod) {
        let request = start::sandbox_request(&self.runner, pod).await;
        match self.runner.runtime.create(&request).await {
            Ok(sandbox) => {
                self.memory.ips.clone_from(&sandbox.meta.ips);
                self.memory.sandbox_failures = 0;
                self.memory.sandbox_retry_at = None;
                self.sandbox = Some(Arc::new(sandbox));
            }
            Err(error) => {
                self.memory.sandbox_failed(Timestamp::now());
                let message = format!("Failed to create pod sandbox: {error}");
                tracing::warn!(%error, pod = %self.writer.name, "cannot make the pod's sandbox");
                self.note(pod, None, Severity::Warning, "FailedCreatePodSandBox", message);
            }
        }
    }

    async fn remove_sandbox(&mut self, pod: &Pod) {
        let Some(sandbox) = self.sandbox.clone() else { return };
        self.probes.clear();
        let mut delay = Duration::from_millis(50);
        while let Err(error) = self.runner.runtime.remove(&sandbox).await {
            tracing::warn!(%error, pod = %self.writer.name, "cannot take the pod's sandbox away; trying again");
            self.note(pod, None, Severity::Warning, "FailedKillPod", format!("error killing pod: {error}"));
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_secs(10));
        }
        let mut last = sandbox.state.borrow().clone();
        last.alive = false;
        self.memory.observe(&last, Timestamp::now());
        let runs_on =
            pod.metadata.deletion_timestamp.is_none() && !super::plan::is_finished(pod, &self.memory);
        if runs_on {
            self.memory.sandbox_lost(pod);
            self.note(
                pod,
                None,
                Severity::Normal,
                "SandboxChanged",
                "Pod sandbox changed, it will be re-created.".into(),
            );
        }
        self.sandbox = None;
    }

    async fn start(&mut self, pod: &Pod, name: &str) {
        let Some(sandbox) = self.sandbox.clone() else { return };
        let Some(container) = find(pod, name).cloned() else { return };
        let attempt = self.memory.container(name).next_attempt();
        let ips = self.memory.ips.clone();
        let spec = start::container_spec(&self.runner, pod, &container, attempt, &ips).await;
        let started = match spec {
            Ok(spec) => sandbox.start(spec).await.map_err(|message| ("CreateContainerError", message)),
            Err(problem) => Err(problem),
        };
        match started {
            Ok(record) => {
                let known = self.memory.container(name);
                if known.record.is_some() {
                    known.backoff.restarted();
                }
                (known.problem, known.retry_at) = (None, None);
                if attempt > 1 {
                    self.drop_old_runs(name, attempt);
                }
                let pulled = format!("Container image {:?} already present on machine", record.image);
                self.note(pod, Some(name), Severity::Normal, "Pulled", pulled);
                self.note(pod, Some(name), Severity::Normal, "Created", format!("Created container: {name}"));
                self.note(pod, Some(name), Severity::Normal, "Started", format!("Started container {name}"));
                if let Some(handler) = container.lifecycle.as_ref().and_then(|all| all.post_start.clone()) {
                    let deadline = later(Timestamp::now(), POST_START);
                    self.hook(pod, name, HookKind::PostStart, handler, deadline);
                }
            }
            Err((reason, message)) => {
                let known = self.memory.container(name);
                known.retry_at = Some(later(Timestamp::now(), RETRY_START));
                let is_new = known.problem.as_ref() != Some(&(reason, message.clone()));
                known.problem = Some((reason, message.clone()));
                if is_new {
                    self.note(pod, Some(name), Severity::Warning, "Failed", format!("Error: {message}"));
                }
            }
        }
    }

    /// Logs and records of all runs but the last two.
    fn drop_old_runs(&self, name: &str, attempt: u32) {
        let dir =
            self.runner.runtime.pod_dir(&self.writer.uid).join(crate::shim::protocol::CONTAINERS).join(name);
        for suffix in ["log", "log.1", "json"] {
            // Not there is as good.
            let _absent = std::fs::remove_file(dir.join(format!("{}.{suffix}", attempt - 2)));
        }
    }

    fn stop(&mut self, pod: &Pod, name: &str, force: bool, deadline: Timestamp, reason: StopReason) {
        let Some(sandbox) = self.sandbox.clone() else { return };
        self.memory.container(name).stopping = Some(Stopping { deadline, forced: force });
        let container = find(pod, name);
        let hook = container.and_then(|c| c.lifecycle.as_ref()?.pre_stop.clone()).filter(|_| !force);
        match hook {
            Some(handler) => self.hook(pod, name, HookKind::PreStop, handler, deadline),
            None => sandbox.stop(name, force),
        }
        let why = match reason {
            StopReason::PodEnds => format!("Stopping container {name}"),
            StopReason::Liveness => format!("Container {name} failed liveness probe, will be restarted"),
            StopReason::Startup => format!("Container {name} failed startup probe, will be restarted"),
            StopReason::ImageChanged => format!("Container {name} definition changed, will be restarted"),
            StopReason::Overdue => format!("Container {name} did not end in time, killing it"),
        };
        self.note(pod, Some(name), Severity::Normal, "Killing", why);
    }

    /// Runs a hook beside everything else, then ends the container, after `PostStart` only if that failed.
    fn hook(&self, pod: &Pod, name: &str, kind: HookKind, handler: LifecycleHandler, deadline: Timestamp) {
        let (Some(sandbox), Some(container)) = (self.sandbox.clone(), find(pod, name).cloned()) else {
            return;
        };
        let run = sandbox.state.borrow().containers.get(name).map(|run| run.id.clone());
        let Some(id) = run else { return };
        let target = self.target(container, id.clone(), &sandbox, handler.exec.as_ref());
        let (recorder, about) = (self.runner.recorder.clone(), about(pod, Some(name)));
        let (name, limit) = (name.to_owned(), elapsed(Timestamp::now(), deadline));
        tokio::spawn(async move {
            let done = hook::run(&handler, &target, limit).await;
            if let Err(failure) = &done {
                let message = format!("{} failed: {failure}", kind.as_str());
                recorder.note(about, Severity::Warning, kind.failure(), message);
            }
            let ends = kind == HookKind::PreStop || done.is_err();
            if ends && hook::is_current(&sandbox, &name, &id) {
                sandbox.stop(&name, false);
            }
        });
    }

    fn target(
        &self,
        container: Container,
        id: String,
        sandbox: &Arc<Sandbox>,
        exec: Option<&ExecAction>,
    ) -> Target {
        let exec = exec.map(|exec| {
            let image = container.image.as_deref().unwrap_or_default();
            let command = exec.command.as_deref().unwrap_or_default();
            self.runner.runtime.accept_exec(image, command).map_err(|refusal| match refusal {
                Refusal::Image(why) | Refusal::Settings(why) => why,
            })
        });
        let ip = self.memory.ips.first().copied();
        Target { container, id, ip, sandbox: Arc::clone(sandbox), exec }
    }

    /// Starts probes of containers that run and drops those of others.
    fn probe(&mut self, pod: &Pod, goal: Goal) {
        let mut wanted = BTreeMap::new();
        let Some(sandbox) = self.sandbox.clone() else { return self.probes.clear() };
        for container in
            init_containers(pod).iter().filter(|c| super::memory::is_sidecar(c)).chain(main_containers(pod))
        {
            let Some(known) = self.memory.containers.get(&container.name).filter(|c| c.running()) else {
                continue;
            };
            let Some(record) = &known.record else { continue };
            let mut want = |kind, probe: &Option<k8s_openapi::api::core::v1::Probe>| {
                if let Some(probe) = probe {
                    wanted.insert(
                        (container.name.clone(), kind),
                        (record.id.clone(), container.clone(), probe.clone()),
                    );
                }
            };
            let starting = container.startup_probe.is_some() && known.health.startup.is_none();
            if starting {
                want(ProbeKind::Startup, &container.startup_probe);
            } else if known.health.startup != Some(false) {
                want(ProbeKind::Readiness, &container.readiness_probe);
                if known.stopping.is_none() && goal == Goal::Run {
                    want(ProbeKind::Liveness, &container.liveness_probe);
                }
            }
        }
        self.probes.retain(|key, (id, _)| wanted.get(key).is_some_and(|(wanted_id, ..)| wanted_id == id));
        for ((name, kind), (id, container, probe)) in wanted {
            let key = (name, kind);
            if self.probes.contains_key(&key) {
                continue;
            }
            let target = self.target(container, id.clone(), &sandbox, probe.exec.as_ref());
            let task = prober::spawn(target, kind, probe, self.news_sender.clone());
            self.probes.insert(key, (id, task));
        }
    }

    fn facts<'a>(&'a self, pod: &'a Pod, goal: Goal, now: Timestamp) -> Facts<'a> {
        let sandbox = self.view() == SandboxView::Alive;
        Facts { pod, memory: &self.memory, sandbox, goal, node_ips: &self.runner.node_ips, now }
    }

    /// Computes the status and writes it, unless it is there already or a write is under way.
    fn report(&mut self, pod: &Pod, goal: Goal, now: Timestamp) {
        let ended =
            matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
        if goal == Goal::Kill || ended {
            return;
        }
        let mut previous = self.status.clone();
        previous.conditions = Some(conditions(previous.conditions.take(), pod));
        self.status = status::compute(self.facts(pod, goal, now), &previous);
        if self.overwritten(pod) {
            self.written = None;
        }
        if self.writing.is_none() && self.written.as_ref() != Some(&self.status) {
            let mut writing = self.writer.clone().status(self.status.clone()).boxed();
            // Polled once so that it is on its way before anything else is waited for.
            match (&mut writing).now_or_never() {
                Some((status, written)) => self.wrote(status, written),
                None => self.writing = Some(writing),
            }
        }
    }

    /// The API shows a status that is newer than our last write and says something else, such as the Ready=False of
    /// a node that was away.
    fn overwritten(&self, pod: &Pod) -> bool {
        let version = pod.metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok());
        let ready = |status: &PodStatus| {
            status.conditions.iter().flatten().find(|c| c.type_ == "Ready").map(|c| c.status.clone())
        };
        match (version, self.written_version, &pod.status, &self.written) {
            (Some(seen), Some(ours), Some(shown), Some(written)) if seen > ours => {
                ready(shown) != ready(written) || shown.phase != written.phase
            }
            _ => false,
        }
    }

    fn wrote(&mut self, status: PodStatus, written: Written) {
        self.writing = None;
        self.written = Some(status);
        if let Written::Done(version) = written {
            self.written_version = version.and_then(|v| v.parse().ok());
        }
    }

    /// Nothing runs any more: the last status, the end of the object, the end of the files.
    async fn finish(mut self, pod: &Pod, goal: Goal) {
        if matches!(goal, Goal::Terminate(_)) {
            if let Some(writing) = self.writing.take() {
                writing.await;
            }
            self.report(pod, goal, Timestamp::now());
            if let Some(writing) = self.writing.take() {
                writing.await;
            }
            self.writer.delete().await;
        }
        while let Err(error) = self.runner.runtime.purge(&self.writer.uid).await {
            tracing::warn!(%error, pod = %self.writer.name, "cannot remove the pod's files; trying again");
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }

    fn note(
        &self,
        pod: &Pod,
        container: Option<&str>,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        self.runner.recorder.note(about(pod, container), severity, reason, message);
    }
}

/// What an event is about.
fn about(pod: &Pod, container: Option<&str>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        field_path: container.map(|name| format!("spec.containers{{{name}}}")),
        resource_version: None,
    }
}

fn find<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    init_containers(pod).iter().chain(main_containers(pod)).find(|container| container.name == name)
}

/// Conditions that are ours as we know them, those of others as the API has them.
fn conditions(
    ours: Option<Vec<k8s_openapi::api::core::v1::PodCondition>>,
    pod: &Pod,
) -> Vec<k8s_openapi::api::core::v1::PodCondition> {
    let mut list = ours.unwrap_or_default();
    list.retain(|c| status::OWN_CONDITIONS.contains(&c.type_.as_str()));
    let shown = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    list.extend(shown.filter(|c| !status::OWN_CONDITIONS.contains(&c.type_.as_str())).cloned());
    list
}
