//! From a container of a pod's spec to what the runtime starts: fetches what it refers to, makes its volumes, sets its
//! environment.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};
use kube::api::Api;

use super::env::{self, Objects, Place, Reference};
use super::{Runner, etc, volumes};
use crate::runtime::{Refusal, Runtime, SandboxRequest};
use crate::shim::protocol::ContainerSpec;

/// The sandbox that a pod asks for.
pub(super) async fn sandbox_request<R: Runtime>(runner: &Runner<R>, pod: &Pod) -> SandboxRequest {
    let spec = pod.spec.as_ref();
    let (hostname, fqdn) = etc::hostname(pod, &runner.zone);
    let aliases = spec.and_then(|s| s.host_aliases.as_ref());
    let mut runtime_config = std::collections::BTreeMap::new();
    let ports: Vec<serde_json::Value> = super::memory::main_containers(pod)
        .iter()
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|port| {
            Some(serde_json::json!({
                "hostPort": port.host_port.filter(|p| *p > 0)?,
                "containerPort": port.container_port,
                "protocol": port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                "hostIP": port.host_ip.clone().unwrap_or_default(),
            }))
        })
        .collect();
    if !ports.is_empty() {
        runtime_config.insert("portMappings".to_owned(), ports.into());
    }
    SandboxRequest {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        hostname,
        fqdn,
        host_network: spec.and_then(|s| s.host_network).unwrap_or(false),
        node_ips: runner.node_ips.clone(),
        host_aliases: aliases
            .into_iter()
            .flatten()
            .map(|alias| (alias.ip.clone(), alias.hostnames.clone().unwrap_or_default()))
            .collect(),
        resolv_conf: etc::resolv_conf(pod, &runner.dns().await),
        runtime_config,
    }
}

/// Why a container cannot be started now: reason and message.
pub(super) type Problem = (&'static str, String);

/// What the runtime is to start.
pub(super) async fn container_spec<R: Runtime>(
    runner: &Runner<R>,
    pod: &Pod,
    container: &Container,
    attempt: u32,
    ips: &[IpAddr],
) -> Result<ContainerSpec, Problem> {
    let config_error = |message: String| ("CreateContainerConfigError", message);
    let args = runner.runtime.accept(container).map_err(|refusal| match refusal {
        Refusal::Image(message) => ("ErrImagePull", message),
        Refusal::Settings(message) => config_error(message),
    })?;
    let mut wanted = env::references(container);
    if container.volume_mounts.is_some() {
        wanted.extend(volumes::references(pod));
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let objects = fetch(&runner.client, namespace, wanted).await.map_err(config_error)?;
    let place = Place { pod, ips, node_ips: &runner.node_ips };
    let services = env::services(pod, &runner.snapshots.borrow());
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    let hostname = if host_network { runner.node.clone() } else { etc::hostname(pod, &runner.zone).0 };
    let env = env::environment(place, container, &hostname, services, &objects).map_err(config_error)?;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let dir = runner.runtime.pod_dir(uid).join("volumes");
    let mut mounts = runner.runtime.pod_mounts(uid);
    mounts.extend(volumes::prepare(place, container, &dir, &objects).map_err(config_error)?);
    let id = |value: Option<i64>| value.and_then(|v| u32::try_from(v).ok());
    let own = container.security_context.as_ref();
    let pods = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    Ok(ContainerSpec {
        name: container.name.clone(),
        attempt,
        image: container.image.clone().unwrap_or_default(),
        args: args.iter().map(|arg| env::expand(arg, &env)).collect(),
        env,
        working_dir: container.working_dir.as_ref().map(Into::into),
        mounts,
        uid: id(own.and_then(|s| s.run_as_user).or(pods.and_then(|s| s.run_as_user))),
        gid: id(own.and_then(|s| s.run_as_group).or(pods.and_then(|s| s.run_as_group))),
        exe: runner.exe.clone(),
    })
}

async fn fetch(
    client: &kube::Client,
    namespace: &str,
    wanted: BTreeSet<Reference>,
) -> Result<Objects, String> {
    let mut objects = Objects::new();
    for reference in wanted {
        let failed = |error: kube::Error| format!("cannot read {reference}: {error}");
        let data = match &reference {
            Reference::ConfigMap(name) => {
                let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
                api.get_opt(name).await.map_err(failed)?.map(|map| {
                    let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
                    let binary = map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0));
                    text.chain(binary).collect()
                })
            }
            Reference::Secret(name) => {
                let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
                let secret = api.get_opt(name).await.map_err(failed)?;
                secret.map(|s| s.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect())
            }
        };
        objects.insert(reference, data);
    }
    Ok(objects)
}
