//! The network configuration on stdin. Keys that are not ours are left alone: they belong to the runtime or to
//! other plugins of the chain.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use seaway_cni_network::ipam::Range;
use seaway_cni_network::netlink::Mac;
use seaway_cni_network::pod::Bandwidth;
use serde::Deserialize;
use serde_json::Value;

use crate::capability::{self, RawArgs, RawRuntimeConfig};
use crate::env::{Command, Environment, is_identifier};
use crate::error::{CniError, Code};
use crate::result::validate_result;
use crate::version::Version;

/// Where reservations are kept if nothing else is said.
const DEFAULT_DATA_DIR: &str = "/var/lib/cni/seaway";
/// The longest name of a network: it names a directory.
const MAX_NAME: usize = 200;
/// IPv4 needs 68; below 1280 there is no IPv6.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;
const LEAST_MTU_V6: u32 = 1280;
/// More ranges, and addresses that are asked for, than anybody means: all are held against each other.
const MAX_RANGES: usize = 1024;
const MAX_WANTED: usize = 64;
/// What no pod can have: this host, loopback, link-local (the gateways are), multicast, broadcast, and IPv4 in the
/// clothes of IPv6.
const NEVER: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/127",
    "::ffff:0.0.0.0/96",
    "fe80::/10",
    "ff00::/8",
];

/// A configuration that can be worked with.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    pub(crate) version: Version,
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    /// The ranges, one pool per family, in the order in which the families appear.
    pub(crate) pools: Vec<Vec<Range>>,
    pub(crate) mtu: Option<u32>,
    /// Addresses that the runtime asks for (capability `ips`).
    pub(crate) wanted: Vec<IpAddr>,
    /// The Ethernet address that the runtime asks for (capability `mac`).
    pub(crate) mac: Option<Mac>,
    /// Limits on the pod's traffic (capability `bandwidth`).
    pub(crate) bandwidth: Bandwidth,
    /// Ports of the node that lead to the pod (capability `portMappings`): remembered for the service proxy.
    pub(crate) port_mappings: Option<Value>,
    /// The device that packets to other nodes take, if there is one: without it pods are cut off.
    pub(crate) overlay_device: Option<String>,
    /// Where the node's agent tells that the pod network is set up: ADD waits for it.
    pub(crate) ready_file: Option<PathBuf>,
    /// What the plugins before us in the chain have made.
    pub(crate) prev_result: Option<Value>,
    /// GC: the attachments that are to stay. An empty list is not the same as none.
    pub(crate) valid_attachments: Option<Vec<ValidAttachment>>,
    /// Passed on in the result.
    pub(crate) dns: Option<Value>,
}

/// An attachment that GC leaves alone.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConfig {
    cni_version: Option<String>,
    #[serde(default)]
    name: String,
    data_dir: Option<PathBuf>,
    ranges: Option<Vec<RawRange>>,
    mtu: Option<u32>,
    #[serde(default, deserialize_with = "capability::runtime_config")]
    runtime_config: Option<RawRuntimeConfig>,
    args: Option<RawArgs>,
    overlay_device: Option<String>,
    ready_file: Option<PathBuf>,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
    /// An older libcni writes this key.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<ValidAttachment>>,
    dns: Option<Value>,
    ipam: Option<RawIpam>,
}

/// Somebody else who is to give addresses.
#[derive(Debug, Deserialize)]
struct RawIpam {
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// What undoing needs of it: what cannot be used was never made.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPlace {
    cni_version: Option<String>,
    #[serde(default)]
    name: String,
    data_dir: Option<PathBuf>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<ValidAttachment>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawRange {
    subnet: IpNet,
    #[serde(default, alias = "rangestart", deserialize_with = "capability::addr_or_empty")]
    range_start: Option<IpAddr>,
    #[serde(default, alias = "rangeend", deserialize_with = "capability::addr_or_empty")]
    range_end: Option<IpAddr>,
    #[serde(default, deserialize_with = "capability::addr_or_empty")]
    gateway: Option<IpAddr>,
}

impl Config {
    /// Reads and checks what `command` needs of a configuration.
    pub(crate) fn parse_for(command: Command, stdin: &[u8]) -> Result<Self, CniError> {
        match command {
            Command::Del | Command::Gc => RawConfig::from(decode::<RawPlace>(stdin)?).check(),
            _ => Self::parse(stdin),
        }
    }

    /// Reads and checks a configuration.
    pub(crate) fn parse(stdin: &[u8]) -> Result<Self, CniError> {
        decode::<RawConfig>(stdin)?.check()
    }

    /// Takes in what the environment asks for, an older way of asking. What the configuration says goes before it.
    pub(crate) fn ask_for(&mut self, environment: &Environment) -> Result<(), CniError> {
        let in_environment = |error| CniError { code: Code::Environment, ..error };
        if let Some(text) = environment.argument("IP") {
            self.wanted.push(capability::wanted("CNI_ARGS: IP", text).map_err(in_environment)?);
        }
        if let Some(text) = environment.argument("MAC").filter(|_| self.mac.is_none()) {
            self.mac = Some(capability::parse_mac("CNI_ARGS: MAC", text).map_err(in_environment)?);
        }
        Ok(())
    }

    /// The pools, which ADD cannot do without.
    pub(crate) fn require_pools(&self) -> Result<&[Vec<Range>], CniError> {
        if self.pools.is_empty() {
            return Err(invalid("\"ranges\" is missing or empty: there are no addresses to give"));
        }
        Ok(&self.pools)
    }

    /// ADD gives all addresses that are asked for or none: each has to be in a pool, and a pool gives one.
    pub(crate) fn require_wanted(&self) -> Result<(), CniError> {
        if self.wanted.len() > MAX_WANTED {
            return Err(invalid(format!(
                "{} addresses are asked for: a pod has one of a family",
                self.wanted.len()
            )));
        }
        let has = |pool: &[Range], addr: &IpAddr| pool.iter().any(|range| range.contains(*addr));
        for addr in &self.wanted {
            let Some(pool) = self.pools.iter().find(|pool| has(pool, addr)) else {
                return Err(invalid(format!(
                    "the address {addr} is asked for, which is in none of the ranges"
                )));
            };
            if let Some(other) = self.wanted.iter().find(|other| *other != addr && has(pool, other)) {
                return Err(invalid(format!("{addr} and {other} are asked for: a pod has one of a family")));
            }
        }
        Ok(())
    }
}

impl From<RawPlace> for RawConfig {
    fn from(place: RawPlace) -> Self {
        Self {
            cni_version: place.cni_version,
            name: place.name,
            data_dir: place.data_dir,
            valid_attachments: place.valid_attachments,
            attachments: place.attachments,
            ..Self::default()
        }
    }
}

fn decode<'de, T: Deserialize<'de>>(stdin: &'de [u8]) -> Result<T, CniError> {
    serde_json::from_slice(stdin).map_err(|error| {
        CniError::new(Code::Decoding, "the network configuration on stdin cannot be read").because(&error)
    })
}

impl RawConfig {
    fn check(self) -> Result<Config, CniError> {
        let version = Version::parse(self.cni_version.as_deref());
        // As the reference implementation: that a name is missing is told before that the version is.
        let told_in = version.as_ref().map_or(Version::NEWEST, |version| *version);
        validate_name(&self.name).map_err(|error| error.at_version(told_in))?;
        let version = version?;
        self.validate(version).map_err(|error| error.at_version(version))
    }

    fn validate(self, version: Version) -> Result<Config, CniError> {
        let data_dir = absolute("dataDir", self.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into()))?;
        let ready_file = self.ready_file.filter(|path| !path.as_os_str().is_empty());
        let ready_file = ready_file.map(|path| absolute("readyFile", path)).transpose()?;
        if let Some(prev_result) = &self.prev_result {
            validate_result(prev_result)?;
        }
        if let Some(kind) = self.ipam.and_then(|ipam| ipam.kind).filter(|kind| !kind.is_empty()) {
            let message =
                format!("\"ipam.type\" {kind:?} is not supported: addresses are given out of \"ranges\"");
            return Err(CniError::new(Code::UnsupportedField, message));
        }
        let runtime = self.runtime_config.unwrap_or_default();
        let args = self.args.and_then(|args| args.cni).unwrap_or_default();
        let asked = args.ips.unwrap_or_default();
        let macs = [("\"runtimeConfig.mac\"", runtime.mac), ("\"args.cni.mac\"", args.mac)];
        let mac =
            macs.iter().find_map(|(key, mac)| Some((key, mac.as_deref().filter(|mac| !mac.is_empty())?)));
        let wanted =
            [("\"runtimeConfig.ips\"", runtime.ips.unwrap_or_default()), ("\"args.cni.ips\"", asked)];
        let wanted =
            wanted.iter().flat_map(|(key, ips)| ips.iter().map(|text| capability::wanted(key, text)));
        let ranges = match runtime.ip_ranges.filter(|sets| !sets.is_empty()) {
            Some(sets) => sets.into_iter().flatten().collect(),
            None => self.ranges.unwrap_or_default(),
        };
        let pools = pools(ranges)?;
        let mtu = self.mtu.filter(|mtu| *mtu != 0);
        mtu.map_or(Ok(()), |mtu| validate_mtu(mtu, &pools))?;
        Ok(Config {
            version,
            name: self.name,
            data_dir,
            pools,
            mtu,
            wanted: wanted.collect::<Result<_, _>>()?,
            mac: mac.map(|(key, mac)| capability::parse_mac(key, mac)).transpose()?,
            bandwidth: runtime.bandwidth.unwrap_or_default().limits()?,
            port_mappings: capability::port_mappings(runtime.port_mappings.unwrap_or_default())?,
            overlay_device: self.overlay_device,
            ready_file,
            prev_result: self.prev_result.filter(Value::is_object),
            valid_attachments: self.valid_attachments.or(self.attachments),
            dns: self.dns.filter(|dns| dns.as_object().is_some_and(|dns| !dns.is_empty())),
        })
    }
}

pub(crate) fn invalid(message: impl Into<String>) -> CniError {
    CniError::new(Code::Config, message)
}

fn validate_name(name: &str) -> Result<(), CniError> {
    if name.len() > MAX_NAME {
        let length = name.len();
        return Err(invalid(format!("the network's name has {length} characters, more than {MAX_NAME}")));
    }
    if !is_identifier(name) {
        return Err(invalid(format!(
            "the network's name {name:?} is missing or has characters other than letters, digits, '_', '.', '-'"
        )));
    }
    Ok(())
}

fn absolute(key: &str, path: PathBuf) -> Result<PathBuf, CniError> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(invalid(format!("\"{key}\" {} is not an absolute path", path.display())))
}

fn validate_mtu(mtu: u32, pools: &[Vec<Range>]) -> Result<(), CniError> {
    if !MTU.contains(&mtu) {
        return Err(invalid(format!("\"mtu\" {mtu} is not between {} and {}", MTU.start(), MTU.end())));
    }
    let v6 = pools.iter().flatten().find(|range| range.subnet().addr().is_ipv6());
    match v6.filter(|_| mtu < LEAST_MTU_V6) {
        Some(range) => Err(invalid(format!(
            "\"mtu\" {mtu} is less than {LEAST_MTU_V6}, without which there is no IPv6, and there is the range {}",
            range.subnet()
        ))),
        None => Ok(()),
    }
}

/// A network in which a range has addresses that no pod can have.
fn never(range: &Range) -> Option<IpNet> {
    let nets = NEVER.iter().filter_map(|text| text.parse::<IpNet>().ok());
    nets.into_iter().find(|net| range.reaches_into(*net))
}

fn pools(raw: Vec<RawRange>) -> Result<Vec<Vec<Range>>, CniError> {
    if raw.len() > MAX_RANGES {
        return Err(invalid(format!("\"ranges\": {} of them, more than {MAX_RANGES}", raw.len())));
    }
    let mut pools: Vec<Vec<Range>> = Vec::new();
    for raw in raw {
        let subnet = raw.subnet.trunc();
        for addr in [raw.range_start, raw.range_end, raw.gateway].into_iter().flatten() {
            if !subnet.contains(&addr) {
                return Err(invalid(format!("\"ranges\": {addr} is not in the subnet {subnet}")));
            }
        }
        let range = Range::new(subnet).within(raw.range_start, raw.range_end).without(raw.gateway);
        if range.size() == 0 {
            return Err(invalid(format!("\"ranges\": the range in {subnet} has no addresses")));
        }
        if let Some(never) = never(&range) {
            return Err(invalid(format!("\"ranges\": no pod can have addresses of {never}, as in {subnet}")));
        }
        if let Some(other) = pools.iter().flatten().find(|other| other.overlaps(&range)) {
            let other = other.subnet();
            return Err(invalid(format!("\"ranges\": those in the subnets {other} and {subnet} overlap")));
        }
        let v4 = subnet.addr().is_ipv4();
        match pools.iter_mut().find(|pool| pool[0].subnet().addr().is_ipv4() == v4) {
            Some(pool) => pool.push(range),
            None => pools.push(vec![range]),
        }
    }
    Ok(pools)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Config, CniError> {
        Config::parse(json.as_bytes())
    }

    #[test]
    fn a_configuration_is_read_and_foreign_keys_are_left_alone() {
        let config = parse(
            r#"{"cniVersion":"1.1.0","name":"seaway","type":"seaway-cni","dataDir":"/d","mtu":1450,"x":{"y":1},"ipam":{},
                "ranges":[{"subnet":"10.244.1.0/24"},{"subnet":"fd00:10:244:1::/64"},{"subnet":"10.9.0.0/24"}],
                "runtimeConfig":{"ips":["10.244.1.7/24"],"mac":"02:00:00:00:00:07","portMappings":[]}}"#,
        )
        .unwrap();
        assert_eq!((config.name.as_str(), config.mtu), ("seaway", Some(1450)));
        let subnets: Vec<Vec<String>> = config
            .pools
            .iter()
            .map(|pool| pool.iter().map(|range| range.subnet().to_string()).collect())
            .collect();
        assert_eq!(subnets, [vec!["10.244.1.0/24", "10.9.0.0/24"], vec!["fd00:10:244:1::/64"]]);
        assert_eq!(config.wanted, ["10.244.1.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(config.mac, Some(Mac([2, 0, 0, 0, 0, 7])));
    }

    #[test]
    fn all_addresses_that_are_asked_for_can_be_given() {
        let many = vec![r#""10.244.1.7""#; MAX_WANTED + 1].join(",");
        let table = [
            (r#""10.244.1.7","fd00:1::7/64""#, "ok"),
            (r#""fd00:1::7","fd00:1::7""#, "ok"),
            (&many, "65 addresses are asked for: a pod has one of a family"),
            (r#""10.9.0.200""#, "ok"),
            ("", "ok"),
            (r#""10.244.2.7""#, "the address 10.244.2.7 is asked for, which is in none of the ranges"),
            (r#""10.244.1.0""#, "the address 10.244.1.0 is asked for, which is in none of the ranges"),
            (
                r#""10.244.1.7","10.9.0.7""#,
                "10.244.1.7 and 10.9.0.7 are asked for: a pod has one of a family",
            ),
        ];
        for (ips, wanted) in table {
            let config = parse(&format!(
                r#"{{"cniVersion":"1.1.0","name":"seaway","runtimeConfig":{{"ips":[{ips}]}},"ranges":
                    [{{"subnet":"10.244.1.0/24"}},{{"subnet":"fd00:1::/64"}},{{"subnet":"10.9.0.0/24"}}]}}"#
            ));
            let outcome = config.unwrap().require_wanted();
            let said = outcome.map_or_else(|error| error.message, |()| "ok".to_owned());
            assert_eq!(said, wanted, "{ips}");
        }
    }

    #[test]
    fn what_the_runtime_fills_in_is_read() {
        let config = parse(
            r#"{"cniVersion":"1.1.0","name":"seaway","ranges":[{"subnet":"10.244.1.0/24"}],"args":{"cni":{"ips":["10.9.0.4"]},"x":1},
                "runtimeConfig":{"ipRanges":[[{"subnet":"10.9.0.0/24"}],[{"subnet":"fd00:9::/64"}]],"mac":"","ips":null,
                "bandwidth":{"ingressRate":8000000,"ingressBurst":80000,"egressRate":16000000},
                "portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"TCP"},{"hostPort":0,"containerPort":81}],
                "aliases":["a"]}}"#,
        )
        .unwrap();
        assert_eq!(config.pools[0][0].subnet(), "10.9.0.0/24".parse().unwrap());
        assert_eq!((config.pools.len(), config.wanted.len(), config.mac), (2, 1, None));
        let (ingress, egress) = (config.bandwidth.ingress.unwrap(), config.bandwidth.egress.unwrap());
        assert_eq!((ingress.rate_bytes, ingress.burst_bytes), (1_000_000, 10_000));
        assert_eq!((egress.rate_bytes, egress.burst_bytes), (2_000_000, 20_000));
        expect_test::expect![[r#"[{"containerPort":80,"hostIP":"","hostPort":8080,"protocol":"tcp"}]"#]]
            .assert_eq(&config.port_mappings.unwrap().to_string());
    }

    /// Those of the reference implementation, in whose order name and version are looked at. Neither looks at `type`.
    #[test]
    fn what_cannot_be_used_gets_its_code() {
        let table = [
            ("", Code::Decoding),
            ("[]", Code::Decoding),
            ("{", Code::Decoding),
            (r#"{"cniVersion":1}"#, Code::Decoding),
            (r#"{"name":7}"#, Code::Decoding),
            ("{}", Code::Config),
            (r#"{"type":"seaway-cni"}"#, Code::Config),
            (r#"{"cniVersion":"9.9.9"}"#, Code::Config),
            (r#"{"cniVersion":"9.9.9","name":"../a"}"#, Code::Config),
            (r#"{"name":"a"}"#, Code::IncompatibleVersion),
            (r#"{"cniVersion":"","name":"a"}"#, Code::IncompatibleVersion),
            (r#"{"cniVersion":"9.9.9","name":"a"}"#, Code::IncompatibleVersion),
            (r#"{"cniVersion":"1.0.0"}"#, Code::Config),
            (r#"{"cniVersion":"1.0.0","name":"../a"}"#, Code::Config),
        ];
        for (json, code) in table {
            let error = parse(json).unwrap_err();
            assert_eq!(error.code, code, "{json}: {error}");
            assert!(!error.message.is_empty());
        }
        parse(r#"{"cniVersion":"1.0.0","name":"a"}"#).unwrap();
    }

    #[test]
    fn each_key_that_cannot_be_used_gets_its_code() {
        let table = [
            (r#""dataDir":"relative""#, Code::Config),
            (r#""mtu":-1"#, Code::Decoding),
            (r#""mtu":7"#, Code::Config),
            (r#""ranges":[{"subnet":"10.0.0.0"}]"#, Code::Decoding),
            (r#""ranges":[{"subnet":"10.0.0.0/33"}]"#, Code::Decoding),
            (r#""ranges":[{}]"#, Code::Decoding),
            (r#""ranges":[{"subnet":"10.0.0.0/24","gateway":"10.1.0.1"}]"#, Code::Config),
            (r#""ranges":[{"subnet":"10.0.0.0/24"},{"subnet":"10.0.0.0/25"}]"#, Code::Config),
            (r#""runtimeConfig":{"ips":["x"]}"#, Code::Config),
            (r#""ipam":{"type":"host-local"}"#, Code::UnsupportedField),
            (r#""ipam":7"#, Code::Decoding),
            (r#""runtimeConfig":{"mac":"01:00:00:00:00:00"}"#, Code::Config),
            (r#""runtimeConfig":{"mac":"ee:ee:ee:ee:ee:ee"}"#, Code::Config),
            (r#""runtimeConfig":{"mac":"02:00:00:00:00"}"#, Code::Config),
            (r#""runtimeConfig":{"mac":7}"#, Code::Decoding),
            (r#""runtimeConfig":{"bandwidth":{"ingressRate":1}}"#, Code::Config),
            (r#""runtimeConfig":{"bandwidth":{"ingressRate":1.5}}"#, Code::Decoding),
            (r#""runtimeConfig":{"bandwidth":{"ingressRate":"8M"}}"#, Code::Decoding),
            (
                r#""runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.1"}]]}"#,
                Code::Config,
            ),
            (r#""runtimeConfig":{"ipRanges":[{"subnet":"10.0.0.0/24"}]}"#, Code::Decoding),
            (
                r#""runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"hostIP":"::1%lo"}]}"#,
                Code::Config,
            ),
            (r#""runtimeConfig":{"portMappings":[null]}"#, Code::Decoding),
            (r#""prevResult":3"#, Code::Decoding),
            (r#""prevResult":{"interfaces":7}"#, Code::Decoding),
            (r#""prevResult":{"ips":[7]}"#, Code::Decoding),
            (r#""prevResult":{"ips":[{"address":"10.0.0.1"}]}"#, Code::Decoding),
            (r#""prevResult":{"ips":[{"interface":"0"}]}"#, Code::Decoding),
            (r#""prevResult":{"routes":[{"dst":"x"}]}"#, Code::Decoding),
            (r#""prevResult":{"dns":[]}"#, Code::Decoding),
            (r#""readyFile":"x""#, Code::Config),
            (r#""mtu":1279,"ranges":[{"subnet":"fd00::/64"}]"#, Code::Config),
            (
                r#""ranges":[{"subnet":"10.0.0.0/24","rangeEnd":"10.0.0.9"},{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9"}]"#,
                Code::Config,
            ),
            (
                r#""ranges":[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}]"#,
                Code::Config,
            ),
            (r#""runtimeConfig":{"ips":["10.0.0.1/33"]}"#, Code::Config),
            (r#""args":{"cni":{"ips":["10.0.0"]}}"#, Code::Config),
            (r#""runtimeConfig":{"bandwidth":{"ingressBurst":8}}"#, Code::Config),
            (r#""runtimeConfig":{"bandwidth":{"egressRate":-8}}"#, Code::Decoding),
            (r#""runtimeConfig":{"portMappings":[{"containerPort":0}]}"#, Code::Config),
            (r#""runtimeConfig":{"portMappings":[{"hostPort":70000,"containerPort":1}]}"#, Code::Decoding),
            (r#""runtimeConfig":{"portMappings":[{"containerPort":1,"protocol":"x"}]}"#, Code::Config),
        ];
        for (members, code) in table {
            let error = parse(&format!(r#"{{"cniVersion":"1.0.0","name":"a",{members}}}"#)).unwrap_err();
            assert_eq!(error.code, code, "{members}: {error}");
            assert!(!error.message.is_empty());
        }
    }

    /// As containerd writes it: the names of its fields, and what is empty as well.
    #[test]
    fn the_case_of_what_the_runtime_fills_in_does_not_matter() {
        let config = parse(
            r#"{"cniVersion":"1.0.0","name":"a","runtimeConfig":{
                "ipRanges":[[{"Subnet":"10.9.0.0/24","RangeStart":"10.9.0.7","RangeEnd":"","Gateway":""}]],
                "bandwidth":{"IngressRate":8000000,"IngressBurst":4294967295,"EgressRate":0,"EgressBurst":0},
                "portMappings":[{"HostPort":8080,"ContainerPort":80,"Protocol":"tcp","HostIP":""}],
                "dns":{"Servers":["10.0.0.10"],"Searches":[],"Options":[]}}}"#,
        )
        .unwrap();
        assert!(!config.pools[0][0].contains("10.9.0.6".parse().unwrap()));
        let ingress = config.bandwidth.ingress.unwrap();
        assert_eq!((ingress.rate_bytes, ingress.burst_bytes), (1_000_000, 536_870_911));
        assert_eq!(config.bandwidth.egress, None);
        assert_eq!(config.port_mappings.unwrap()[0]["hostPort"], 8080);
    }

    #[test]
    fn ranges_have_what_a_pod_can_have() {
        let table = [
            ("0.0.0.0/0", "0.0.0.0/8"),
            ("127.1.0.0/24", "127.0.0.0/8"),
            ("169.254.1.0/24", "169.254.0.0/16"),
            ("239.0.0.0/24", "224.0.0.0/4"),
            ("::/64", "::/127"),
            ("::ffff:10.0.0.0/120", "::ffff:0.0.0.0/96"),
            ("fe80::/64", "fe80::/10"),
            ("ff02::/64", "ff00::/8"),
        ];
        for (subnet, never) in table {
            for keys in [r#""ranges":[{"subnet":"S"}]"#, r#""runtimeConfig":{"ipRanges":[[{"subnet":"S"}]]}"#]
            {
                let keys = keys.replace('S', subnet);
                let error = parse(&format!(r#"{{"cniVersion":"1.0.0","name":"a",{keys}}}"#)).unwrap_err();
                let wanted = format!("\"ranges\": no pod can have addresses of {never}, as in {subnet}");
                assert_eq!((error.code, error.message), (Code::Config, wanted));
            }
        }
        for subnet in ["10.0.0.0/8", "100.64.0.0/10", "240.0.0.0/8", "fc00::/7", "2001:db8::/32"] {
            parse(&format!(r#"{{"cniVersion":"1.0.0","name":"a","ranges":[{{"subnet":"{subnet}"}}]}}"#))
                .unwrap();
        }
    }

    #[test]
    fn what_is_too_much_is_told_how_much_it_is() {
        let many = (0..=MAX_RANGES)
            .map(|number| format!(r#"{{"subnet":"10.0.{}.{}/32"}}"#, number / 256, number % 256));
        let many = many.collect::<Vec<_>>().join(",");
        let error = parse(&format!(r#"{{"cniVersion":"1.0.0","name":"a","ranges":[{many}]}}"#)).unwrap_err();
        assert!(error.code == Code::Config && error.message.contains("1025 of them"), "{error}");
        let long = format!(r#"{{"cniVersion":"1.0.0","name":"{}"}}"#, "a".repeat(201));
        assert!(parse(&long).unwrap_err().message.contains("201 characters"));
        let deep = format!("{{\"cniVersion\":\"1.0.0\",\"name\":\"a\",\"x\":{}", "[".repeat(100_000));
        assert_eq!(parse(&deep).unwrap_err().code, Code::Decoding);
    }

    #[test]
    fn an_empty_list_of_attachments_is_not_an_absent_one() {
        let with = |key: &str| {
            parse(&format!(r#"{{"cniVersion":"1.1.0","name":"a"{key}}}"#)).unwrap().valid_attachments
        };
        assert_eq!(with(""), None);
        assert_eq!(with(r#","cni.dev/valid-attachments":[]"#), Some(vec![]));
        let one = with(r#","cni.dev/attachments":[{"containerID":"c","ifname":"eth0"}]"#).unwrap();
        assert_eq!(one, [ValidAttachment { container_id: "c".to_owned(), ifname: "eth0".to_owned() }]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            drop(Config::parse(&bytes));
        }
    }
}
