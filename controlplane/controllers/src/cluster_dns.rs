//! The Service that pods ask for names: `kube-system/kube-dns`, on the tenth address of each service CIDR.
//!
//! It has no selector. Each node's agent answers on its own address and publishes itself as an endpoint, and
//! `PreferSameNode` keeps a pod's questions on its node.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::ResourceExt;
use seaway_client::{Informer, Key, Queue, WorkError, work};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::context::Context;
use crate::serviceaccount::is_active;
use crate::write;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
/// The address within each service CIDR.
const ORDINAL: u8 = 10;

/// Starts the controller, if cluster DNS is wanted.
pub(crate) fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    let addresses = addresses(&context.config.service_cidrs);
    if !context.config.cluster_dns || addresses.is_empty() {
        return;
    }
    let queue: Arc<Queue<Key>> = Arc::default();
    let (namespaces, services) = (context.caches.namespaces(), context.caches.services());
    namespaces.on_change({
        let queue = Arc::clone(&queue);
        move |change| {
            if change.new.as_ref().is_some_and(|one| one.name_any() == NAMESPACE) {
                queue.add(Key::new(NAMESPACE, NAME));
            }
        }
    });
    services.on_change({
        let queue = Arc::clone(&queue);
        move |change| {
            let gone = change.old.as_ref().filter(|_| change.new.is_none());
            let gone = gone.map(|one| Key::of(one.as_ref()));
            gone.filter(|key| *key == Key::new(NAMESPACE, NAME)).into_iter().for_each(|key| queue.add(key));
        }
    });
    let reconcile = {
        let context = Arc::clone(context);
        move |_| {
            let (context, namespaces, services) =
                (Arc::clone(&context), Arc::clone(&namespaces), Arc::clone(&services));
            let addresses = addresses.clone();
            async move { reconcile(&context, &namespaces, &services, &addresses).await.map(|()| None) }
        }
    };
    work("cluster-dns", &queue, 1, reconcile, tasks, &context.shutdown);
}

async fn reconcile(
    context: &Context,
    namespaces: &Informer<Namespace>,
    services: &Informer<Service>,
    addresses: &[IpAddr],
) -> Result<(), WorkError> {
    services.wait_until_synced().await;
    let there = services.store().get(&Key::new(NAMESPACE, NAME)).is_some();
    if there || !is_active(namespaces, NAMESPACE) {
        return Ok(());
    }
    let Ok(service) = serde_json::from_value::<Service>(service(addresses)) else { return Ok(()) };
    match write::create(&context.namespaced(NAMESPACE), services, &service).await {
        Err(error) if error.code() == Some(409) => Ok(()),
        other => other.map(drop),
    }
}

/// The tenth address of each network.
fn addresses(cidrs: &[IpNet]) -> Vec<IpAddr> {
    let tenth = |cidr: &IpNet| match cidr.network() {
        IpAddr::V4(base) => {
            IpAddr::V4(std::net::Ipv4Addr::from_bits(base.to_bits().saturating_add(ORDINAL.into())))
        }
        IpAddr::V6(base) => {
            IpAddr::V6(std::net::Ipv6Addr::from_bits(base.to_bits().saturating_add(ORDINAL.into())))
        }
    };
    cidrs
        .iter()
        .map(tenth)
        .zip(cidrs)
        .filter(|(address, cidr)| cidr.contains(address))
        .map(|(address, _)| address)
        .collect()
}

fn service(addresses: &[IpAddr]) -> Value {
    let families: Vec<_> = addresses.iter().map(|one| if one.is_ipv4() { "IPv4" } else { "IPv6" }).collect();
    let policy = if addresses.len() > 1 { "RequireDualStack" } else { "SingleStack" };
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {
                "k8s-app": "kube-dns",
                "kubernetes.io/cluster-service": "true",
                "kubernetes.io/name": "SeawayDNS",
            },
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ipFamilies": families,
            "ipFamilyPolicy": policy,
            "trafficDistribution": "PreferSameNode",
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tenth_address_of_each_family() {
        let cidrs: Vec<IpNet> =
            ["10.96.0.0/16", "fd00:10:96::/112", "192.0.2.0/30"].map(|cidr| cidr.parse().unwrap()).into();
        let expected: Vec<IpAddr> = ["10.96.0.10", "fd00:10:96::a"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(addresses(&cidrs), expected);
        let service: Service = serde_json::from_value(service(&expected)).unwrap();
        let spec = service.spec.unwrap();
        assert_eq!(spec.cluster_ips.unwrap(), ["10.96.0.10", "fd00:10:96::a"]);
        assert_eq!(spec.ip_families.unwrap(), ["IPv4", "IPv6"]);
    }
}
