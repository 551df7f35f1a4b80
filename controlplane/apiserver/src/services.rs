//! Addresses and ports of Services, found when a Service is written and taken in the same critical section as the write:
//! the lock is held from the search until the store has answered.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use seaway_kinds::{ApiError, Kind, field::Errors};
use seaway_store::{ListOptions, Store};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};

use crate::{
    allocate::{Allocations, Claims, Refusal},
    objects,
};

/// The allocations behind their lock.
pub(crate) struct Services {
    allocations: Arc<Mutex<Allocations>>,
    unsettled: Arc<Notify>,
}

/// What a write will hold once it has succeeded. Dropped without [`Claim::confirm`], nothing changes.
#[must_use]
pub(crate) struct Claim(Option<Pending>);

struct Pending {
    allocations: OwnedMutexGuard<Allocations>,
    key: String,
    claims: Claims,
    /// The Service does not get every load balancer address that it waits for.
    waits: bool,
    unsettled: Arc<Notify>,
}

impl Claim {
    /// The write has succeeded.
    pub(crate) fn confirm(&mut self) {
        if let Some(mut pending) = self.0.take() {
            let held = pending.allocations.held(&pending.key).map(|held| &held.load_balancer_ips);
            let frees = held.is_some_and(|held| !held.is_subset(&pending.claims.load_balancer_ips));
            if frees || pending.waits {
                pending.unsettled.notify_one();
            }
            for double in pending.allocations.set(&pending.key, pending.claims) {
                tracing::error!(double, "an address is held twice");
            }
        }
    }
}

fn is_service(kind: &Kind) -> bool {
    kind.plural == "services" && kind.group.is_empty()
}

impl Services {
    pub(crate) fn new(allocations: Allocations) -> Self {
        Self { allocations: Arc::new(Mutex::new(allocations)), unsettled: Arc::new(Notify::new()) }
    }

    /// Takes what the stored Services hold. Called once, before anything is served.
    pub(crate) async fn restore(&self, store: &dyn Store, kind: &Kind) -> Result<(), ApiError> {
        let page = store.list(&objects::prefix(kind, None), ListOptions::default()).await;
        let page = page.map_err(|error| objects::store_error(kind, "", error))?;
        let mut allocations = self.allocations.lock().await;
        for entry in page.entries {
            let service = objects::decode(&entry.value)?;
            for double in allocations.set(&entry.key, claims_of(&service)) {
                tracing::error!(double, "two stored Services hold the same address; change one of them");
            }
        }
        Ok(())
    }

    /// Returns when, since it last returned, a load balancer address was given back or a Service did not get one.
    pub(crate) async fn unsettled(&self) {
        self.unsettled.notified().await;
    }

    /// Why the Service at `key` still waits for a load balancer address; `None` when it does not, or when there are no
    /// pools and somebody else may give it one.
    pub(crate) async fn why_pending(&self, key: &str, service: &Value) -> Option<String> {
        let allocations = self.allocations.lock().await;
        if allocations.pools.is_empty() || !is_pending(service) {
            return None;
        }
        let given = claims_of(service).load_balancer_ips;
        let missing = strings(&service["spec"]["ipFamilies"]);
        let missing = missing.iter().map(|family| family == "IPv4");
        let missing = missing.filter(|ipv4| !given.iter().any(|ip| ip.is_ipv4() == *ipv4));
        let wanted: Option<IpAddr> =
            service["spec"]["loadBalancerIP"].as_str().and_then(|ip| ip.parse().ok());
        let whys = missing.map(|ipv4| {
            let wanted = wanted.filter(|ip| ip.is_ipv4() == ipv4);
            allocations.why_no_load_balancer_ip(key, wanted, ipv4)
        });
        Some(whys.collect::<Vec<_>>().join("; "))
    }

    /// The first address of each service range: that of Service `default/kubernetes`.
    pub(crate) async fn first_addresses(&self) -> Vec<IpAddr> {
        self.allocations.lock().await.services.iter().map(|range| range.at(1)).collect()
    }

    /// Fills in the addresses of a Service that is about to be written at `key` (objects of other kinds pass).
    pub(crate) async fn claim(
        &self,
        kind: &Kind,
        key: &str,
        old: Option<&Value>,
        object: &mut Value,
    ) -> Result<Claim, ApiError> {
        if !is_service(kind) {
            return Ok(Claim(None));
        }
        let mut allocations = Arc::clone(&self.allocations).lock_owned().await;
        let mut errors = Errors::default();
        let mut planner =
            Planner { allocations: &mut allocations, key, old, errors: &mut errors, full: None };
        let claims = planner.plan(object);
        let waits = is_pending(object);
        let full = planner.full.take();
        let errors = errors.into_vec();
        if !errors.is_empty() {
            return Err(ApiError::invalid(kind, objects::meta(object, "name"), &errors));
        }
        if let Some(what) = full {
            return Err(ApiError::internal(format!("failed to allocate {what}: range is full")));
        }
        let (key, unsettled) = (key.to_owned(), Arc::clone(&self.unsettled));
        Ok(Claim(Some(Pending { allocations, key, claims, waits, unsettled })))
    }

    /// Gives back what the Service at `key` holds, once it is confirmed that it is gone.
    pub(crate) async fn release(&self, kind: &Kind, key: &str) -> Claim {
        if !is_service(kind) {
            return Claim(None);
        }
        let allocations = Arc::clone(&self.allocations).lock_owned().await;
        let (key, unsettled) = (key.to_owned(), Arc::clone(&self.unsettled));
        Claim(Some(Pending { allocations, key, claims: Claims::default(), waits: false, unsettled }))
    }
}

/// What a complete Service holds.
fn claims_of(service: &Value) -> Claims {
    let spec = &service["spec"];
    let addresses = |list: &Value| -> BTreeSet<IpAddr> {
        list.as_array().into_iter().flatten().filter_map(|ip| ip.as_str()?.parse().ok()).collect()
    };
    let port =
        |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
    let ports = spec["ports"].as_array().into_iter().flatten().filter_map(|entry| port(&entry["nodePort"]));
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    Claims {
        cluster_ips: addresses(&spec["clusterIPs"]),
        load_balancer_ips: ingress.filter_map(|entry| entry["ip"].as_str()?.parse().ok()).collect(),
        ports: ports.chain(port(&spec["healthCheckNodePort"])).collect(),
    }
}

/// Whether the Service has node ports of its own accord.
fn wants_node_ports(spec: &Value) -> bool {
    match spec["type"].as_str() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec["allocateLoadBalancerNodePorts"].as_bool() != Some(false),
        _ => false,
    }
}

fn may_have_node_ports(spec: &Value) -> bool {
    matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer"))
}

fn wants_health_port(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

fn is_external_name(spec: &Value) -> bool {
    spec["type"] == "ExternalName"
}

/// Whether this server gives the Service a load balancer address.
fn is_ours(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer"
        && spec["loadBalancerClass"]
            .as_str()
            .is_none_or(|class| class.is_empty() || class.starts_with("seaway.dev/"))
}

/// Whether the Service waits for a load balancer address of one of its families.
pub(crate) fn is_pending(service: &Value) -> bool {
    let wanted = strings(&service["spec"]["ipFamilies"]).len();
    let given = service["status"]["loadBalancer"]["ingress"].as_array().map_or(0, Vec::len);
    is_ours(&service["spec"]) && given < wanted
}

fn remove(object: &mut Value, field: &str) {
    if let Some(object) = object.as_object_mut() {
        object.remove(field);
    }
}

/// A replacement keeps what was allocated unless it says otherwise, and loses what its type no longer has.
pub(crate) fn carry_over(kind: &Kind, new: &mut Value, old: &Value) {
    if !is_service(kind) || !new["spec"].is_object() {
        return;
    }
    let (old, spec) = (&old["spec"], &mut new["spec"]);
    if spec["type"].is_null() {
        spec["type"] = "ClusterIP".into();
    }
    if is_external_name(spec) {
        if !is_external_name(old) {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                drop_unchanged(spec, old, field);
            }
        }
    } else if !is_external_name(old) {
        let untouched = spec["clusterIP"].as_str().is_none_or(|ip| ip.is_empty() || old["clusterIP"] == ip);
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let missing = spec[field].is_null() || spec[field] == "" || spec[field] == json!([]);
            if untouched && missing && !old[field].is_null() {
                spec[field] = old[field].clone();
            }
        }
    }
    drop_second_family(spec, old);
    carry_ports(spec, old);
    if wants_health_port(old)
        && wants_health_port(spec)
        && spec["healthCheckNodePort"].as_u64().unwrap_or(0) == 0
    {
        spec["healthCheckNodePort"] = old["healthCheckNodePort"].clone();
    } else if !wants_health_port(spec) {
        drop_unchanged(spec, old, "healthCheckNodePort");
    }
    if !may_have_node_ports(spec) {
        drop_unchanged(spec, old, "externalTrafficPolicy");
    }
    if spec["type"] != "LoadBalancer" {
        drop_unchanged(spec, old, "allocateLoadBalancerNodePorts");
        drop_unchanged(spec, old, "loadBalancerClass");
    }
}

fn drop_unchanged(spec: &mut Value, old: &Value, field: &str) {
    if spec[field] == old[field] {
        remove(spec, field);
    }
}

/// Back to a single stack: who says only that, and leaves both families and addresses as they were, gives up the second.
fn drop_second_family(spec: &mut Value, old: &Value) {
    if spec["ipFamilyPolicy"] != "SingleStack" || old["ipFamilyPolicy"] == "SingleStack" {
        return;
    }
    for field in ["clusterIPs", "ipFamilies"] {
        if spec[field] == old[field]
            && let Some(list) = spec[field].as_array_mut()
        {
            list.truncate(1);
        }
    }
}

fn carry_ports(spec: &mut Value, old: &Value) {
    let old_ports = old["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let (had, has) = (may_have_node_ports(old), may_have_node_ports(spec));
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
        let same = |known: &&Value| known["port"] == port["port"] && protocol(known) == protocol(port);
        let before = old_ports.iter().find(same).map_or(&Value::Null, |known| &known["nodePort"]);
        let given = port["nodePort"].as_u64().unwrap_or(0) != 0;
        if had && has && !given && !before.is_null() {
            port["nodePort"] = before.clone();
        } else if had && !has && given && old_ports.iter().any(|known| known["nodePort"] == port["nodePort"])
        {
            remove(port, "nodePort");
        }
    }
}

/// Finds the addresses of one Service.
struct Planner<'a> {
    allocations: &'a mut Allocations,
    key: &'a str,
    old: Option<&'a Value>,
    errors: &'a mut Errors,
    /// What ran out.
    full: Option<&'static str>,
}

impl Planner<'_> {
    fn plan(&mut self, service: &mut Value) -> Claims {
        let mut claims = Claims::default();
        let spec = &mut service["spec"];
        if is_external_name(spec) {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                remove(spec, field);
            }
        } else {
            let families = self.families(spec);
            self.cluster_ips(spec, &families, &mut claims);
            self.node_ports(spec, &mut claims);
        }
        self.load_balancer(service, &mut claims);
        claims
    }

    fn has_family(&self, ipv4: bool) -> bool {
        self.allocations.services.iter().any(|range| range.is_ipv4() == ipv4)
    }

    /// Decides `ipFamilies` and `ipFamilyPolicy`; `true` is IPv4.
    fn families(&mut self, spec: &mut Value) -> Vec<bool> {
        let headless = spec["clusterIP"] == "None";
        let primary = self.allocations.services.first().is_none_or(crate::allocate::AddressRange::is_ipv4);
        let both = self.has_family(true) && self.has_family(false);
        let mut families: Vec<bool> =
            strings(&spec["ipFamilies"]).iter().map(|family| family == "IPv4").collect();
        if families.is_empty() {
            families = requested(spec).iter().map(IpAddr::is_ipv4).collect();
        }
        if families.is_empty() {
            families.push(primary);
        }
        let selects = spec["selector"].as_object().is_some_and(|selector| !selector.is_empty());
        let policy = match spec["ipFamilyPolicy"].as_str() {
            Some(policy) => policy.to_owned(),
            None if families.len() == 2 || headless && !selects && both => "RequireDualStack".to_owned(),
            None => "SingleStack".to_owned(),
        };
        if policy == "SingleStack" {
            families.truncate(1);
        } else if families.len() == 1 && both {
            families.push(!families[0]);
        }
        if policy == "RequireDualStack" && families.len() < 2 {
            let detail = "this cluster is not configured for dual-stack services";
            self.errors.invalid("spec.ipFamilyPolicy", policy.as_str(), detail);
        }
        for (at, family) in families.iter().enumerate() {
            if !self.has_family(*family) {
                let path = format!("spec.ipFamilies[{at}]");
                self.errors.invalid(&path, family_word(*family), "not configured on this cluster");
            }
        }
        spec["ipFamilyPolicy"] = policy.into();
        spec["ipFamilies"] = families.iter().map(|family| family_word(*family)).collect();
        families
    }

    fn cluster_ips(&mut self, spec: &mut Value, families: &[bool], claims: &mut Claims) {
        if spec["clusterIP"] == "None" {
            spec["clusterIPs"] = json!(["None"]);
            self.check_immutable("None");
            return;
        }
        let mut wanted = requested(spec);
        if spec["clusterIPs"].as_array().is_some_and(|list| list.len() > families.len()) {
            wanted.truncate(families.len());
        }
        let mut addresses = Vec::new();
        for (at, ipv4) in families.iter().enumerate() {
            let found = match wanted.get(at) {
                Some(ip) => {
                    self.check_requested_ip(at, *ip, *ipv4);
                    Some(*ip)
                }
                None => self.allocations.free_cluster_ip(*ipv4),
            };
            match found {
                Some(ip) => addresses.push(ip),
                None => self.full = self.full.or(Some("a serviceIP")),
            }
        }
        if let Some(first) = addresses.first() {
            self.check_immutable(&first.to_string());
            spec["clusterIP"] = first.to_string().into();
            spec["clusterIPs"] = addresses.iter().map(ToString::to_string).collect();
        }
        claims.cluster_ips = addresses.into_iter().collect();
    }

    fn check_requested_ip(&mut self, at: usize, ip: IpAddr, ipv4: bool) {
        let path = format!("spec.clusterIPs[{at}]");
        if ip.is_ipv4() != ipv4 {
            let detail =
                format!("expected an {} value as indicated by `ipFamilies[{at}]`", family_word(ipv4));
            self.errors.invalid(&path, ip.to_string(), detail);
        }
        match self.allocations.check_cluster_ip(self.key, ip) {
            Ok(()) => {}
            Err(Refusal::Taken) => {
                let detail = "failed to allocate IP: provided IP is already allocated";
                self.errors.invalid(&path, ip.to_string(), detail);
            }
            Err(Refusal::OutOfRange) => {
                let ranges: Vec<String> =
                    self.allocations.services.iter().map(|range| range.net().to_string()).collect();
                let detail = format!(
                    "failed to allocate IP: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                    ranges.join(", ")
                );
                self.errors.invalid(&path, ip.to_string(), detail);
            }
        }
    }

    /// A ClusterIP stays as long as the Service has one.
    fn check_immutable(&mut self, new: &str) {
        let Some(old) = self.old else { return };
        let had = old["spec"]["clusterIP"].as_str().unwrap_or_default();
        if !is_external_name(&old["spec"]) && !had.is_empty() && had != new {
            self.errors.invalid("spec.clusterIPs[0]", new, "may not change once set");
        }
    }

    fn node_ports(&mut self, spec: &mut Value, claims: &mut Claims) {
        let allocate = wants_node_ports(spec);
        let mut ports = spec["ports"].as_array().cloned().unwrap_or_default();
        if may_have_node_ports(spec) {
            // Ports that were asked for first, so that a found one does not take their place.
            for (at, port) in ports.iter().enumerate() {
                self.requested_port(&format!("spec.ports[{at}].nodePort"), &port["nodePort"], claims);
            }
            for at in 0..ports.len() {
                if allocate && ports[at]["nodePort"].as_u64().unwrap_or(0) == 0 {
                    let shared = shared_node_port(&ports, at);
                    let found = shared.or_else(|| self.allocations.free_port(&claims.ports));
                    match found {
                        Some(port) => {
                            claims.ports.insert(port);
                            ports[at]["nodePort"] = port.into();
                        }
                        None => self.full = Some("a nodePort"),
                    }
                }
            }
            spec["ports"] = ports.into();
        }
        if wants_health_port(spec) {
            self.requested_port("spec.healthCheckNodePort", &spec["healthCheckNodePort"], claims);
            if spec["healthCheckNodePort"].as_u64().unwrap_or(0) == 0 {
                match self.allocations.free_port(&claims.ports) {
                    Some(port) => {
                        claims.ports.insert(port);
                        spec["healthCheckNodePort"] = port.into();
                    }
                    None => self.full = Some("a healthCheckNodePort"),
                }
            }
        }
    }

    fn requested_port(&mut self, path: &str, value: &Value, claims: &mut Claims) {
        let wanted = value.as_u64().unwrap_or(0);
        if wanted == 0 {
            return;
        }
        let refusal = match u16::try_from(wanted) {
            Err(_) => Some(Refusal::OutOfRange),
            Ok(port) => {
                claims.ports.insert(port);
                self.allocations.check_port(self.key, port).err()
            }
        };
        match refusal {
            None => {}
            Some(Refusal::Taken) => self.errors.invalid(path, wanted, "provided port is already allocated"),
            Some(Refusal::OutOfRange) => {
                let (first, last) = (self.allocations.ports.start(), self.allocations.ports.end());
                let detail = format!(
                    "provided port is not in the valid range. The range of valid ports is {first}-{last}"
                );
                self.errors.invalid(path, wanted, detail);
            }
        }
    }

    /// Puts addresses from the pools into the status. What cannot be had stays pending.
    fn load_balancer(&mut self, service: &mut Value, claims: &mut Claims) {
        let was_ours = self.old.is_some_and(|old| is_ours(&old["spec"]));
        if !is_ours(&service["spec"]) {
            if service["spec"]["type"] != "LoadBalancer" || was_ours {
                service["status"]["loadBalancer"] = json!({});
            }
            return;
        }
        if self.allocations.pools.is_empty() {
            return;
        }
        let wanted: Option<IpAddr> =
            service["spec"]["loadBalancerIP"].as_str().and_then(|ip| ip.parse().ok());
        let held =
            self.allocations.held(self.key).map(|held| held.load_balancer_ips.clone()).unwrap_or_default();
        for family in strings(&service["spec"]["ipFamilies"]) {
            let ipv4 = family == "IPv4";
            let found = match wanted.filter(|ip| ip.is_ipv4() == ipv4) {
                Some(ip) => self.allocations.check_load_balancer_ip(self.key, ip).is_ok().then_some(ip),
                None => held.iter().copied().find(|ip| ip.is_ipv4() == ipv4),
            };
            let pending = wanted.is_some_and(|ip| ip.is_ipv4() == ipv4);
            let found =
                if pending { found } else { found.or_else(|| self.allocations.free_load_balancer_ip(ipv4)) };
            claims.load_balancer_ips.extend(found);
        }
        let families = strings(&service["spec"]["ipFamilies"]);
        let first_v4 = families.first().is_none_or(|family| family == "IPv4");
        let mut addresses: Vec<&IpAddr> = claims.load_balancer_ips.iter().collect();
        addresses.sort_by_key(|ip| ip.is_ipv4() != first_v4);
        let ingress: Vec<Value> =
            addresses.iter().map(|ip| json!({"ip": ip.to_string(), "ipMode": "VIP"})).collect();
        service["status"]["loadBalancer"] =
            if ingress.is_empty() { json!({}) } else { json!({"ingress": ingress}) };
    }
}

/// One port number for several protocols gets one node port, as long as each protocol uses it once.
fn shared_node_port(ports: &[Value], at: usize) -> Option<u16> {
    let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
    let own = &ports[at];
    let twin = ports.iter().find(|port| {
        port["port"] == own["port"]
            && protocol(port) != protocol(own)
            && port["nodePort"].as_u64().unwrap_or(0) != 0
    })?;
    let used =
        ports.iter().any(|port| port["nodePort"] == twin["nodePort"] && protocol(port) == protocol(own));
    if used { None } else { twin["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok()) }
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The ClusterIPs that the Service says.
fn requested(spec: &Value) -> Vec<IpAddr> {
    let listed: Vec<IpAddr> = strings(&spec["clusterIPs"]).iter().filter_map(|ip| ip.parse().ok()).collect();
    if !listed.is_empty() {
        return listed;
    }
    spec["clusterIP"].as_str().and_then(|ip| ip.parse().ok()).into_iter().collect()
}

fn family_word(ipv4: bool) -> &'static str {
    if ipv4 { "IPv4" } else { "IPv6" }
}
