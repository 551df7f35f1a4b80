//! What must be there before the first client comes: the system's namespaces, and Service `default/kubernetes` with the
//! endpoints of this server.

use std::net::IpAddr;

use jiff::Timestamp;
use seaway_kinds::{ApiError, CreateContext, Kind};
use seaway_store::Store;
use serde_json::{Value, json};

use crate::{api::Api, objects, write};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing and brings the endpoints up to date.
pub(crate) async fn run(api: &Api, advertise: &[IpAddr], port: u16) -> Result<(), ApiError> {
    for name in NAMESPACES {
        ensure(api, ("", "v1", "namespaces"), None, json!({"metadata": {"name": name}})).await?;
    }
    let Some(service) = service(api, port).await? else { return Ok(()) };
    // An endpoint on loopback would lead every node to itself.
    let advertise: Vec<IpAddr> = advertise.iter().copied().filter(|ip| !ip.is_loopback()).collect();
    let primary_v4 = service["spec"]["clusterIP"].as_str().is_none_or(|ip| !ip.contains(':'));
    let metadata =
        json!({"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}});
    let own: Vec<&IpAddr> = advertise.iter().filter(|ip| ip.is_ipv4() == primary_v4).collect();
    let addresses: Vec<Value> = own.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
    let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
    let subsets = if own.is_empty() { json!([]) } else { json!([{"addresses": addresses, "ports": ports}]) };
    put(api, ("", "v1", "endpoints"), json!({"metadata": metadata, "subsets": subsets}), &["subsets"])
        .await?;
    for ipv4 in [true, false] {
        let addresses: Vec<String> =
            advertise.iter().filter(|ip| ip.is_ipv4() == ipv4).map(ToString::to_string).collect();
        let name = if ipv4 == primary_v4 { "kubernetes" } else { "kubernetes-secondary" };
        if addresses.is_empty() && ipv4 != primary_v4 {
            continue;
        }
        let slice = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": if ipv4 { "IPv4" } else { "IPv6" },
            "endpoints": addresses.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect::<Vec<_>>(),
            "ports": ports,
        });
        put(api, ("discovery.k8s.io", "v1", "endpointslices"), slice, &["endpoints", "ports"]).await?;
    }
    Ok(())
}

async fn service(api: &Api, port: u16) -> Result<Option<Value>, ApiError> {
    let addresses = api.services.first_addresses().await;
    if addresses.is_empty() {
        return Ok(None);
    }
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let policy = if addresses.len() > 1 { "PreferDualStack" } else { "SingleStack" };
    let service = json!({
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": addresses[0], "clusterIPs": addresses, "ipFamilyPolicy": policy,
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
            "sessionAffinity": "None",
        },
    });
    ensure(api, ("", "v1", "services"), Some("default"), service).await.map(Some)
}

fn kind<'a>(api: &'a Api, (group, version, plural): (&str, &str, &str)) -> Result<&'a Kind, ApiError> {
    let kind = api.registry.resource(group, version, plural);
    kind.map(|kind| &**kind).ok_or_else(|| ApiError::internal(format!("{plural} are not served")))
}

/// The stored object, created if it is not there.
async fn ensure(
    api: &Api,
    resource: (&str, &str, &str),
    namespace: Option<&str>,
    mut object: Value,
) -> Result<Value, ApiError> {
    let kind = kind(api, resource)?;
    let name = objects::meta(&object, "name").to_owned();
    let found = api.store.get(&objects::key(kind, namespace, &name)).await;
    if let Some(entry) = found.map_err(|error| objects::store_error(kind, &name, error))? {
        return objects::decode(&entry.value);
    }
    kind.stamp(&mut object);
    let uid = uuid::Uuid::new_v4().to_string();
    let context = CreateContext { namespace, uid: &uid, suffix: "", now: Timestamp::now() };
    let conformed =
        seaway_kinds::decode::conform(&kind.body(), object, seaway_kinds::FieldValidation::Ignore)?;
    let mut prepared = kind.prepare_create(conformed.object, &context)?;
    write::insert(api, kind, namespace, &mut prepared, false).await?;
    Ok(prepared)
}

/// Creates the object in namespace `default`, or sets these fields of it.
async fn put(
    api: &Api,
    resource: (&str, &str, &str),
    object: Value,
    fields: &[&str],
) -> Result<(), ApiError> {
    let kind = kind(api, resource)?;
    let name = objects::meta(&object, "name").to_owned();
    let current = ensure(api, resource, Some("default"), object.clone()).await?;
    let mut wanted = current.clone();
    for field in fields {
        wanted[*field] = object[*field].clone();
    }
    if wanted == current {
        return Ok(());
    }
    let key = objects::key(kind, Some("default"), &name);
    let put = objects::encode(&kind.to_storage(wanted));
    let stored = api.store.put(&key, put, seaway_store::Expect::Present).await;
    stored.map(drop).map_err(|error| objects::store_error(kind, &name, error))
}
