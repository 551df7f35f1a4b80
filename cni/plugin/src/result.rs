//! The result of ADD, in the form of each version, on top of what plugins before us in the chain have made.

use std::net::IpAddr;

use ipnet::IpNet;
use seaway_cni_network::pod::{GATEWAY_V4, GATEWAY_V6, HOST_MAC, Wired};
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::error::{CniError, Code};
use crate::version::Version;

/// What ADD has made.
pub(crate) struct Made<'a> {
    pub(crate) ifname: &'a str,
    pub(crate) netns: &'a str,
    pub(crate) wired: &'a Wired,
    pub(crate) addresses: &'a [IpAddr],
}

/// Joins `prevResult` and what was made. Keys that we do not know stay.
pub(crate) fn result(config: &Config, made: &Made<'_>) -> Value {
    let version = config.version;
    let mut result = config.prev_result.as_ref().and_then(Value::as_object).cloned().unwrap_or_default();
    result.insert("cniVersion".to_owned(), version.as_str().into());
    let before = list(&mut result, "interfaces").len();
    list(&mut result, "interfaces").extend(interfaces(version, made));
    // The pod's end is the second of the two.
    let index = before + 1;
    list(&mut result, "ips").extend(made.addresses.iter().map(|addr| ip(version, *addr, index)));
    fit_version(version, list(&mut result, "ips"));
    list(&mut result, "routes").extend(made.addresses.iter().map(|addr| default_route(*addr)));
    if let Some(dns) = &config.dns {
        result.insert("dns".to_owned(), dns.clone());
    } else {
        result.entry("dns").or_insert_with(|| json!({}));
    }
    Value::Object(result)
}

fn list<'a>(result: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let value = result.entry(key).or_insert_with(|| json!([]));
    // Null is as good as absent, and anything else was refused.
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(values) => values,
        _ => unreachable!("it was made an array two lines above"),
    }
}

fn interfaces(version: Version, made: &Made<'_>) -> [Value; 2] {
    let mut host = json!({ "name": made.wired.host_link, "mac": HOST_MAC.to_string() });
    let mut pod = json!({ "name": made.ifname, "mac": made.wired.mac.to_string(), "sandbox": made.netns });
    if version >= Version::V1_1_0 {
        host["mtu"] = made.wired.mtu.into();
        pod["mtu"] = made.wired.mtu.into();
    }
    [host, pod]
}

fn gateway(addr: IpAddr) -> IpAddr {
    if addr.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() }
}

fn ip(version: Version, addr: IpAddr, interface: usize) -> Value {
    let mut ip = json!({
        "address": IpNet::from(addr).to_string(),
        "gateway": gateway(addr).to_string(),
        "interface": interface,
    });
    if version < Version::V1_0_0 {
        ip["version"] = if addr.is_ipv4() { "4".into() } else { "6".into() };
    }
    ip
}

/// A plugin before us may speak another version than the one that the answer is to have.
fn fit_version(version: Version, ips: &mut [Value]) {
    for ip in ips.iter_mut().filter_map(Value::as_object_mut) {
        if version >= Version::V1_0_0 {
            ip.remove("version");
        } else if !ip.contains_key("version") {
            let v6 = ip.get("address").and_then(Value::as_str).is_some_and(|text| text.contains(':'));
            ip.insert("version".to_owned(), if v6 { "6".into() } else { "4".into() });
        }
    }
}

fn default_route(addr: IpAddr) -> Value {
    let any = if addr.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    json!({ "dst": any, "gw": gateway(addr).to_string() })
}

fn is_text(value: &Value) -> bool {
    value.is_string()
}

fn is_net(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.parse::<IpNet>().is_ok())
}

/// A key of a result or of something in it, and what may stand there.
type Member = (&'static str, fn(&Value) -> bool);

/// The lists of a result.
const KNOWN: [(&str, &[Member]); 3] = [
    ("interfaces", &[("name", is_text), ("mac", is_text), ("sandbox", is_text)]),
    ("ips", &[("address", is_net), ("interface", Value::is_i64)]),
    ("routes", &[("dst", is_net)]),
];

/// Fails if what is known in a result does not have its form. Of what is not known nothing is said.
pub(crate) fn validate_result(result: &Value) -> Result<(), CniError> {
    let wrong = |what: &str| Err(CniError::new(Code::Decoding, format!("\"prevResult\"{what}")));
    let Value::Object(result) = result else {
        return if result.is_null() { Ok(()) } else { wrong(" is not an object") };
    };
    for (key, members) in KNOWN {
        let list = match result.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(list)) => list,
            Some(_) => return wrong(&format!(": \"{key}\" is not a list")),
        };
        for (place, item) in list.iter().enumerate() {
            let bad = members.iter().find(|(member, is_good)| {
                item.get(member).is_some_and(|value| !value.is_null() && !is_good(value))
            });
            if let Some((member, _)) = bad {
                return wrong(&format!(": \"{key}\"[{place}]: \"{member}\" is {}", item[member]));
            }
            if !item.is_object() {
                return wrong(&format!(": \"{key}\"[{place}] is not an object"));
            }
        }
    }
    match result.get("dns") {
        None | Some(Value::Null | Value::Object(_)) => Ok(()),
        Some(_) => wrong(": \"dns\" is not an object"),
    }
}

/// The addresses that a result gives to the interface `ifname` within a pod.
pub(crate) fn addresses_of(result: &Value, ifname: &str) -> Result<Vec<IpAddr>, CniError> {
    let interfaces =
        result.get("interfaces").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let is_ours = |index: usize| {
        interfaces.get(index).is_some_and(|interface| {
            interface.get("name").and_then(Value::as_str) == Some(ifname)
                && interface.get("sandbox").and_then(Value::as_str).is_some_and(|sandbox| !sandbox.is_empty())
        })
    };
    let mut addresses = Vec::new();
    for ip in result.get("ips").and_then(Value::as_array).into_iter().flatten() {
        let index = ip.get("interface").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
        if index.is_some_and(is_ours) {
            let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
            let net: IpNet = text.parse().map_err(|_| {
                CniError::new(
                    Code::Decoding,
                    format!("\"prevResult\": {text:?} is not an address with a prefix length"),
                )
            })?;
            addresses.push(net.addr());
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use seaway_cni_network::netlink::Mac;

    fn render(version: &str, prev_result: &str) -> String {
        let json = format!(r#"{{"cniVersion":"{version}","name":"net","prevResult":{prev_result}}}"#);
        let config = Config::parse(json.as_bytes()).unwrap();
        let wired = Wired { host_link: "swabc".to_owned(), mac: Mac([2, 0, 0, 0, 0, 1]), mtu: 1450 };
        let addresses = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let made = Made { ifname: "eth0", netns: "/run/netns/a", wired: &wired, addresses: &addresses };
        let result = result(&config, &made);
        assert_eq!(addresses_of(&result, "eth0").unwrap(), addresses);
        serde_json::to_string(&result).unwrap()
    }

    #[test]
    fn each_version_has_its_form() {
        let mac = r#""mac":"ee:ee:ee:ee:ee:ee","#;
        for version in ["0.3.1", "0.4.0"] {
            let text = render(version, "null");
            assert!(text.contains(r#""version":"4""#) && text.contains(r#""version":"6""#), "{text}");
            assert!(!text.contains("mtu"), "{text}");
        }
        let text = render("1.0.0", "null");
        assert!(!text.contains(r#""version""#) && !text.contains("mtu") && text.contains(mac), "{text}");
        expect_test::expect![[r#"{"cniVersion":"1.1.0","dns":{},"interfaces":[{"mac":"ee:ee:ee:ee:ee:ee","mtu":1450,"name":"swabc"},{"mac":"02:00:00:00:00:01","mtu":1450,"name":"eth0","sandbox":"/run/netns/a"}],"ips":[{"address":"10.0.0.5/32","gateway":"169.254.1.1","interface":1},{"address":"fd00::5/128","gateway":"fe80::1","interface":1}],"routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"},{"dst":"::/0","gw":"fe80::1"}]}"#]]
        .assert_eq(&render("1.1.0", "null"));
    }

    #[test]
    fn what_came_before_is_passed_on() {
        let before = r#"{"cniVersion":"1.0.0","x":7,"dns":{"domain":"a"},"routes":[{"dst":"10.9.0.0/16"}],
            "interfaces":[{"name":"other"}],"ips":[{"address":"10.9.0.1/16","interface":0}]}"#;
        expect_test::expect![[r#"{"cniVersion":"1.0.0","dns":{"domain":"a"},"interfaces":[{"name":"other"},{"mac":"ee:ee:ee:ee:ee:ee","name":"swabc"},{"mac":"02:00:00:00:00:01","name":"eth0","sandbox":"/run/netns/a"}],"ips":[{"address":"10.9.0.1/16","interface":0},{"address":"10.0.0.5/32","gateway":"169.254.1.1","interface":2},{"address":"fd00::5/128","gateway":"fe80::1","interface":2}],"routes":[{"dst":"10.9.0.0/16"},{"dst":"0.0.0.0/0","gw":"169.254.1.1"},{"dst":"::/0","gw":"fe80::1"}],"x":7}"#]]
        .assert_eq(&render("1.0.0", before));
    }
}
