//! Values that settings files of either kind write as text.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};

use super::{Policy, UpstreamSettings};
use crate::PodRecords;

const DNS_PORT: u16 = 53;
const DNS_TLS_PORT: u16 = 853;

/// `5s`, `500ms`, `1m30s`, `2h`, or a number of seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as \"5s\", \"500ms\" or \"1m30s\"");
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| at + digits);
        let unit = match &rest[digits..unit_end] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(wrong()),
        };
        total = unit.checked_mul(number).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = &rest[unit_end..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// A domain name, lower case, absolute whether or not it ends in a dot.
pub(super) fn name(text: &str) -> Result<Name, String> {
    let mut name = Name::from_ascii(text).map_err(|error| format!("{text:?} is no domain name: {error}"))?;
    name.set_fqdn(true);
    Ok(name.to_lowercase())
}

/// `192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1`, `[2001:db8::1]:5353`, with `tls://` or `dns://` before it; or a file in
/// the form of resolv.conf.
pub(super) fn upstreams(text: &str) -> Result<Vec<UpstreamSettings>, String> {
    if text.starts_with('/') {
        let file = std::fs::read_to_string(text).map_err(|error| format!("cannot read {text}: {error}"))?;
        let found: Vec<_> = crate::upstreams_from(&file).into_iter().map(UpstreamSettings::plain).collect();
        return if found.is_empty() { Err(format!("{text} names no name server")) } else { Ok(found) };
    }
    let (tls, rest) = match text.split_once("://") {
        Some(("tls", rest)) => (true, rest),
        Some(("dns", rest)) => (false, rest),
        None => (false, text),
        Some((scheme, _)) => {
            return Err(format!("{text:?}: {scheme:?} is not supported, want tls:// or nothing"));
        }
    };
    let port = if tls { DNS_TLS_PORT } else { DNS_PORT };
    let address = rest
        .parse::<SocketAddr>()
        .or_else(|_| rest.parse::<IpAddr>().map(|addr| SocketAddr::new(addr, port)))
        .map_err(|_| format!("{text:?} is no address of a resolver (an IP, with or without a port)"))?;
    Ok(vec![UpstreamSettings { address, tls }])
}

pub(super) fn pod_records(text: &str) -> Result<PodRecords, String> {
    match text {
        "disabled" => Ok(PodRecords::Disabled),
        "insecure" => Ok(PodRecords::Insecure),
        "verified" => Ok(PodRecords::Verified),
        other => Err(format!("{other:?}: want disabled, insecure or verified")),
    }
}

pub(super) fn policy(text: &str) -> Result<Policy, String> {
    match text {
        "sequential" => Ok(Policy::Sequential),
        "round_robin" => Ok(Policy::RoundRobin),
        "random" => Ok(Policy::Random),
        other => Err(format!("{other:?}: want sequential, round_robin or random")),
    }
}

pub(super) fn code(text: &str) -> Result<ResponseCode, String> {
    match text.to_ascii_uppercase().as_str() {
        "NOERROR" => Ok(ResponseCode::NoError),
        "NXDOMAIN" => Ok(ResponseCode::NXDomain),
        "SERVFAIL" => Ok(ResponseCode::ServFail),
        "REFUSED" => Ok(ResponseCode::Refused),
        _ => Err(format!("{text:?}: want NOERROR, NXDOMAIN, SERVFAIL or REFUSED")),
    }
}

/// An expression that names are matched with.
pub(super) fn expression(text: &str) -> Result<String, String> {
    // Its own words are many lines long.
    regex::Regex::new(text).map(|_| text.to_owned()).map_err(|_| format!("{text:?} is no regular expression"))
}

/// A record type; `ANY` is every type.
pub(super) fn kind(text: &str) -> Result<Option<RecordType>, String> {
    match text.to_ascii_uppercase().as_str() {
        "ANY" => Ok(None),
        name => name.parse().map(Some).map_err(|_| format!("{text:?} is no record type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let millis = |text| duration(text).map(|duration| duration.as_millis()).ok();
        assert_eq!(millis("5"), Some(5000));
        assert_eq!(millis("500ms"), Some(500));
        assert_eq!(millis("1m30s"), Some(90_000));
        assert_eq!(millis("1h"), Some(3_600_000));
        for wrong in ["", "s", "5 s", "5x", "-1s", "1.5s", "s5", "99999999999s", "4294967295h1"] {
            assert_eq!(millis(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn upstream_addresses() {
        let one =
            |text: &str| upstreams(text).map(|found| format!("{} {}", found[0].address, found[0].tls)).ok();
        assert_eq!(one("192.0.2.1").as_deref(), Some("192.0.2.1:53 false"));
        assert_eq!(one("2001:db8::1").as_deref(), Some("[2001:db8::1]:53 false"));
        assert_eq!(one("dns://[2001:db8::1]:5353").as_deref(), Some("[2001:db8::1]:5353 false"));
        assert_eq!(one("tls://192.0.2.1").as_deref(), Some("192.0.2.1:853 true"));
        for wrong in ["", "one.one", "https://192.0.2.1", "192.0.2.1:x", "/nowhere/at/all"] {
            assert_eq!(one(wrong), None, "{wrong}");
        }
    }
}
