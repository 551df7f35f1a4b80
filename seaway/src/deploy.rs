//! The manifests in `deploy/` are held against what they speak of: the API's types and this binary's flags.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Parser;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{PodSpec, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::{Cli, Command};

const NODE: &str = include_str!("../../deploy/node.yaml");
const RBAC: &str = include_str!("../../deploy/rbac.yaml");
const KUSTOMIZATION: &str = include_str!("../../deploy/kustomization.yaml");

fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    documents.map(|document| Value::deserialize(document).unwrap()).collect()
}

/// Reads a document as what it says that it is. What the type does not know would be lost on the way.
fn read<T: DeserializeOwned + serde::Serialize>(document: &Value) -> T {
    let read: T = serde_json::from_value(document.clone()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), *document);
    read
}

fn pod() -> PodSpec {
    let set: DaemonSet = read(&documents(NODE)[0]);
    set.spec.unwrap().template.spec.unwrap()
}

#[test]
fn the_api_knows_each_field() {
    for document in documents(RBAC) {
        match document["kind"].as_str().unwrap() {
            "ServiceAccount" => drop(read::<ServiceAccount>(&document)),
            "ClusterRole" => drop(read::<ClusterRole>(&document)),
            "ClusterRoleBinding" => drop(read::<ClusterRoleBinding>(&document)),
            "Role" => drop(read::<Role>(&document)),
            "RoleBinding" => drop(read::<RoleBinding>(&document)),
            other => panic!("{other}"),
        }
    }
    assert_eq!(pod().containers.len(), 1);
}

#[test]
fn the_agent_knows_its_flags_and_sees_the_hosts_directories_under_their_own_names() {
    let settings = &documents(KUSTOMIZATION)[0]["configMapGenerator"][0]["literals"];
    let settings =
        settings.as_array().unwrap().iter().map(|line| line.as_str().unwrap().split_once('=').unwrap());
    let container = pod().containers.remove(0);
    let line = settings.fold(container.args.unwrap().join("\n"), |line, (name, value)| {
        line.replace(&format!("$({name})"), value)
    });
    let cli = Cli::try_parse_from(["seaway"].into_iter().chain(line.lines())).unwrap();
    let Command::Node(node) = cli.command else { panic!("{line}") };
    assert!(!node.run_pods, "there is a kubelet");
    let hosts: BTreeMap<String, String> = pod()
        .volumes
        .unwrap()
        .into_iter()
        .map(|volume| (volume.name, volume.host_path.unwrap().path))
        .collect();
    let mounts = container.volume_mounts.unwrap();
    // The plugin, which a runtime calls on the host, reads what the agent has written.
    for used in [&node.state_dir, &node.bpffs, &node.cni_conf_dir, &node.cni_bin_dir] {
        let mount = mounts.iter().find(|mount| used.starts_with(&mount.mount_path)).unwrap();
        assert_eq!(mount.mount_path, hosts[&mount.name], "{}", used.display());
    }
    let cgroup = node.cgroup.unwrap();
    let mount = mounts.iter().find(|mount| Path::new(&mount.mount_path) == cgroup).unwrap();
    assert_eq!(hosts[&mount.name], "/sys/fs/cgroup");
    // Where runtimes keep the namespaces of pods, also those that come later.
    let mount = mounts.iter().find(|mount| mount.mount_path == "/var/run/netns").unwrap();
    assert_eq!(hosts[&mount.name], mount.mount_path);
    assert_eq!(mount.mount_propagation.as_deref(), Some("HostToContainer"));
}

#[test]
fn every_file_is_applied() {
    let listed = &documents(KUSTOMIZATION)[0]["resources"];
    assert_eq!(*listed, serde_json::json!(["rbac.yaml", "node.yaml"]));
    let tag = &documents(KUSTOMIZATION)[0]["images"][0]["newTag"];
    assert_eq!(tag, env!("CARGO_PKG_VERSION"));
}
