//! Rollouts played against a model of the ReplicaSet controller: every step is one write and one sync.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::plan::{Action, View, decide, replicas};
use super::revision::{REVISION, number};
use super::scaling::resolve;

fn deployment(size: i32, strategy: Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "dep", "generation": 1,
                     "annotations": {"kubernetes.io/change-cause": "first"}},
        "spec": {
            "replicas": size,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}},
            "strategy": strategy,
        },
    }))
    .unwrap()
}

fn rolling(surge: Value, unavailable: Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

/// The cluster: the Deployment, its ReplicaSets, and a ReplicaSet controller that makes every pod available when told to.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    second: i64,
    healthy: bool,
    fewest: i32,
    most: i32,
}

impl World {
    fn new(deployment: Deployment) -> Self {
        Self { deployment, sets: Vec::new(), second: 0, healthy: true, fewest: i32::MAX, most: 0 }
    }

    fn spec(&mut self) -> &mut k8s_openapi::api::apps::v1::DeploymentSpec {
        *self.deployment.metadata.generation.get_or_insert(0) += 1;
        self.deployment.spec.as_mut().unwrap()
    }

    fn set_image(&mut self, image: &str) {
        self.spec().template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    }

    fn view(&self) -> View {
        let sets = self.sets.iter().cloned().map(Arc::new).collect();
        let pods: Vec<Arc<Pod>> = self.sets.iter().flat_map(pods_of).collect();
        let now = Timestamp::from_second(self.second).unwrap();
        View::new(Arc::new(self.deployment.clone()), sets, pods, now)
    }

    /// One reconciliation; whether anything was written.
    fn reconcile(&mut self) -> bool {
        self.second += 1;
        let actions = decide(&self.view());
        let busy = !actions.is_empty();
        for action in actions {
            match action {
                Action::Create(mut set) => {
                    set.metadata.uid = set.metadata.name.clone();
                    let at = Timestamp::from_second(self.second).unwrap();
                    set.metadata.creation_timestamp =
                        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
                    self.sets.push(*set);
                }
                Action::Update { set, .. } => {
                    let old =
                        self.sets.iter_mut().find(|old| old.metadata.name == set.metadata.name).unwrap();
                    *old = *set;
                }
                Action::Delete(set) => self.sets.retain(|old| old.metadata.name != set.metadata.name),
                Action::Annotate(patch) => {
                    let value = patch["metadata"]["annotations"][REVISION].as_str().unwrap().to_owned();
                    self.deployment
                        .metadata
                        .annotations
                        .get_or_insert_default()
                        .insert(REVISION.into(), value);
                }
                Action::Status(status) => self.deployment.status = Some(*status),
            }
        }
        busy
    }

    /// The ReplicaSet controller and the nodes: pods of `v…` images come up when the world is healthy.
    fn nodes(&mut self) -> bool {
        let healthy = self.healthy;
        let mut busy = false;
        for set in &mut self.sets {
            let size = replicas(set);
            let before = set.status.clone().unwrap_or_default();
            let bad = set.spec.as_ref().unwrap().template.as_ref().unwrap().spec.as_ref().unwrap().containers
                [0]
            .image
            .as_deref()
                == Some("broken");
            let up = if bad {
                0
            } else if healthy {
                size
            } else {
                before.available_replicas.unwrap_or(0).min(size)
            };
            let after = ReplicaSetStatus {
                replicas: size,
                ready_replicas: Some(up),
                available_replicas: Some(up),
                observed_generation: set.metadata.generation,
                ..ReplicaSetStatus::default()
            };
            busy |= set.status.as_ref() != Some(&after);
            set.status = Some(after);
        }
        busy
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            let available = self.sets.iter().filter_map(|set| set.status.as_ref()?.available_replicas).sum();
            let total = self.sets.iter().map(replicas).sum();
            let busy = self.reconcile();
            self.fewest = self.fewest.min(available);
            self.most = self.most.max(total);
            if !(self.nodes() | busy) {
                return;
            }
        }
        panic!("never settles: {:?}", self.sizes());
    }

    fn watch_limits(&mut self) {
        (self.fewest, self.most) = (i32::MAX, 0);
    }

    /// Image and size of each ReplicaSet, oldest first.
    fn sizes(&self) -> Vec<(String, i32)> {
        let image = |set: &ReplicaSet| {
            let spec = set.spec.clone().unwrap().template.unwrap().spec.unwrap();
            spec.containers[0].image.clone().unwrap_or_default()
        };
        self.sets.iter().map(|set| (image(set), replicas(set))).collect()
    }

    fn condition(&self, kind: &str) -> Option<(String, String)> {
        let conditions = self.deployment.status.as_ref()?.conditions.as_ref()?;
        let condition = conditions.iter().find(|condition| condition.type_ == kind)?;
        Some((condition.status.clone(), condition.reason.clone()?))
    }
}

fn pods_of(set: &ReplicaSet) -> Vec<Arc<Pod>> {
    let count = set.status.as_ref().map_or(0, |status| status.replicas);
    let pod = json!({"metadata": {"ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": set.metadata.uid, "controller": true}]}});
    (0..count).map(|_| Arc::new(serde_json::from_value(pod.clone()).unwrap())).collect()
}

fn sizes(expected: &[(&str, i32)]) -> Vec<(String, i32)> {
    expected.iter().map(|(image, size)| ((*image).to_owned(), *size)).collect()
}

fn is(condition: Option<(String, String)>, status: &str, reason: &str) -> bool {
    condition.is_some_and(|(is, why)| is == status && why == reason)
}

#[test]
fn a_new_deployment_comes_up_and_says_so() {
    let mut world = World::new(deployment(3, rolling(json!("25%"), json!("25%"))));
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("v1", 3)]));
    assert!(is(world.condition("Progressing"), "True", "NewReplicaSetAvailable"));
    assert!(is(world.condition("Available"), "True", "MinimumReplicasAvailable"));
    let status = world.deployment.status.clone().unwrap();
    assert_eq!(
        (status.replicas, status.updated_replicas, status.available_replicas),
        (Some(3), Some(3), Some(3))
    );
    assert_eq!((status.unavailable_replicas, status.observed_generation), (None, Some(1)));
    let set = &world.sets[0];
    let annotations = set.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations["kubernetes.io/change-cause"], "first");
    assert_eq!(annotations["deployment.kubernetes.io/desired-replicas"], "3");
    assert_eq!(annotations["deployment.kubernetes.io/max-replicas"], "4");
    let hash = set.metadata.labels.as_ref().unwrap()["pod-template-hash"].clone();
    assert_eq!(set.metadata.name.as_deref(), Some(format!("web-{hash}").as_str()));
    assert_eq!(set.spec.as_ref().unwrap().selector.match_labels.as_ref().unwrap()["pod-template-hash"], hash);
    assert_eq!(world.deployment.metadata.annotations.as_ref().unwrap()[REVISION], "1");
}

#[test]
fn a_rollout_keeps_within_its_limits_and_can_be_undone() {
    let mut world = World::new(deployment(4, rolling(json!(1), json!(0))));
    world.settle();
    world.watch_limits();
    world.set_image("v2");
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("v1", 0), ("v2", 4)]));
    assert!((world.fewest, world.most) == (4, 5), "{} to {}", world.fewest, world.most);
    assert_eq!(number(&world.sets[1], REVISION), Some(2));
    world.set_image("v1");
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("v1", 4), ("v2", 0)]), "the old ReplicaSet is used again");
    assert_eq!(number(&world.sets[0], REVISION), Some(3));
    assert_eq!(
        world.sets[0].metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision-history"],
        "1"
    );
    assert_eq!(world.deployment.metadata.annotations.as_ref().unwrap()[REVISION], "3");
}

#[test]
fn a_broken_rollout_leaves_the_old_pods_and_misses_its_deadline() {
    let mut world = World::new(deployment(4, rolling(json!("25%"), json!("25%"))));
    world.settle();
    world.watch_limits();
    world.set_image("broken");
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("v1", 3), ("broken", 2)]));
    assert_eq!(world.fewest, 3);
    assert!(is(world.condition("Progressing"), "True", "ReplicaSetUpdated"));
    world.second += 700;
    world.settle();
    assert!(is(world.condition("Progressing"), "False", "ProgressDeadlineExceeded"));
    world.set_image("v3");
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("v1", 0), ("broken", 0), ("v3", 4)]), "rolled over");
    assert!(is(world.condition("Progressing"), "True", "NewReplicaSetAvailable"));
}

#[test]
fn recreate_ends_all_old_pods_first() {
    let mut world = World::new(deployment(3, json!({"type": "Recreate"})));
    world.settle();
    world.set_image("v2");
    world.reconcile();
    assert_eq!(world.sizes(), sizes(&[("v1", 0)]), "the old pods still run");
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("v1", 0), ("v2", 3)]));
}

#[test]
fn a_change_of_size_during_a_rollout_is_shared() {
    let mut world = World::new(deployment(10, rolling(json!(3), json!(2))));
    world.settle();
    world.set_image("broken");
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("v1", 8), ("broken", 5)]));
    world.spec().replicas = Some(15);
    world.reconcile();
    assert_eq!(world.sizes(), sizes(&[("v1", 11), ("broken", 7)]), "upstream's documented example");
}

#[test]
fn paused_it_scales_but_does_not_roll() {
    let mut world = World::new(deployment(2, rolling(json!(1), json!(1))));
    world.settle();
    world.spec().paused = Some(true);
    world.set_image("v2");
    world.spec().replicas = Some(4);
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("v1", 4)]));
    assert!(is(world.condition("Progressing"), "Unknown", "DeploymentPaused"));
    world.spec().paused = None;
    world.settle();
    assert_eq!(world.sizes(), sizes(&[("v1", 0), ("v2", 4)]));
}

#[test]
fn history_is_kept_up_to_its_limit() {
    let mut world = World::new(deployment(1, rolling(json!(1), json!(0))));
    world.spec().revision_history_limit = Some(2);
    for image in ["v1", "v2", "v3", "v4", "v5"] {
        world.set_image(image);
        world.settle();
    }
    assert_eq!(world.sizes(), sizes(&[("v3", 0), ("v4", 0), ("v5", 1)]));
}

#[test]
fn to_nothing_and_back() {
    let mut world = World::new(deployment(2, rolling(json!("25%"), json!("25%"))));
    for size in [0, 5, 1, 0, 3] {
        world.settle();
        world.spec().replicas = Some(size);
        world.settle();
        assert_eq!(world.sizes(), sizes(&[("v1", size)]));
    }
}

#[test]
fn percentages_round_up_for_the_surge_and_down_for_the_rest() {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::{Int, String};
    assert_eq!(resolve(Some(&String("25%".into())), 10, true), 3);
    assert_eq!(resolve(Some(&String("25%".into())), 10, false), 2);
    assert_eq!(resolve(Some(&Int(7)), 10, false), 7);
    assert_eq!(resolve(None, 4, true), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_rollout_ends_and_keeps_within_its_limits(
        size in 1..12_i32, surge in 0..5_i32, unavailable in 0..5_i32, next in 0..12_i32,
    ) {
        let mut world = World::new(deployment(size, rolling(json!(surge), json!(unavailable))));
        world.settle();
        world.watch_limits();
        world.set_image("v2");
        world.settle();
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable.min(size) };
        prop_assert!(world.fewest >= size - unavailable, "{} available", world.fewest);
        prop_assert!(world.most <= size + surge, "{} pods", world.most);
        prop_assert_eq!(world.sizes(), sizes(&[("v1", 0), ("v2", size)]));
        world.spec().replicas = Some(next);
        world.set_image("v3");
        world.settle();
        prop_assert_eq!(world.sizes(), sizes(&[("v1", 0), ("v2", 0), ("v3", next)]));
    }
}
