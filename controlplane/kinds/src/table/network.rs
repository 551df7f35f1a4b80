//! Tables of Services, Endpoints and EndpointSlices.

use serde_json::Value;

use super::TableSpec;
use super::cells::{NONE, at_most_three, created, labels, name, or_none};
use crate::strategy::{integer, list, text};

pub(crate) const SERVICE: TableSpec = TableSpec {
    columns: "Name,Type,Cluster-IP,External-IP,Port(s),Age,+Selector",
    row: |object, now| {
        let spec = &object["spec"];
        let address = list(spec, "clusterIPs").first().and_then(Value::as_str).unwrap_or(NONE);
        vec![
            name(object),
            text(spec, "type").into(),
            address.into(),
            external(object),
            or_none(&service_ports(spec)),
            created(object, now),
            labels(&spec["selector"]),
        ]
    },
};

pub(crate) const ENDPOINTS: TableSpec = TableSpec {
    columns: "Name,Endpoints,Age",
    row: |object, now| {
        let mut words = Vec::new();
        for subset in list(object, "subsets") {
            let ports = list(subset, "ports");
            for address in list(subset, "addresses") {
                let ip = text(address, "ip");
                if ports.is_empty() {
                    words.push(ip.to_owned());
                }
                words.extend(ports.iter().map(|port| host_port(ip, integer(port, "port").unwrap_or(0))));
            }
        }
        vec![name(object), at_most_three(&words, NONE), created(object, now)]
    },
};

pub(crate) const ENDPOINT_SLICE: TableSpec = TableSpec {
    columns: "Name,AddressType,Ports,Endpoints,Age",
    row: |object, now| {
        let ports: Vec<String> = list(object, "ports").iter().map(slice_port).collect();
        let addresses: Vec<String> = list(object, "endpoints")
            .iter()
            .flat_map(|endpoint| list(endpoint, "addresses"))
            .filter_map(|address| address.as_str().map(str::to_owned))
            .collect();
        vec![
            name(object),
            text(object, "addressType").into(),
            at_most_three(&ports, "<unset>"),
            at_most_three(&addresses, "<unset>"),
            created(object, now),
        ]
    },
};

fn host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

fn slice_port(port: &Value) -> String {
    match (integer(port, "port"), text(port, "name")) {
        (Some(number), _) => number.to_string(),
        (None, "") => "*".to_owned(),
        (None, name) => name.to_owned(),
    }
}

fn external(object: &Value) -> Value {
    let spec = &object["spec"];
    let words = |list: &[Value]| -> Vec<String> {
        list.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let mut addresses = words(list(spec, "externalIPs"));
    match text(spec, "type") {
        "ExternalName" => return or_none(text(spec, "externalName")),
        "LoadBalancer" => {
            let ingress = list(&object["status"]["loadBalancer"], "ingress");
            let mut own: Vec<String> = ingress
                .iter()
                .map(|ingress| match text(ingress, "ip") {
                    "" => text(ingress, "hostname").to_owned(),
                    ip => ip.to_owned(),
                })
                .collect();
            own.append(&mut addresses);
            if own.is_empty() {
                return "<pending>".into();
            }
            addresses = own;
        }
        _ => {}
    }
    or_none(&addresses.join(","))
}

fn service_ports(spec: &Value) -> String {
    let words: Vec<String> = list(spec, "ports")
        .iter()
        .map(|port| {
            let (number, protocol) = (integer(port, "port").unwrap_or(0), text(port, "protocol"));
            match integer(port, "nodePort").filter(|node_port| *node_port != 0) {
                Some(node_port) => format!("{number}:{node_port}/{protocol}"),
                None => format!("{number}/{protocol}"),
            }
        })
        .collect();
    words.join(",")
}
