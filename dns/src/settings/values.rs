//! Values that settings files of either kind write as text.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use rustls_pki_types::ServerName;

use super::{Files, LogClasses, Policy, UpstreamSettings};
use crate::PodRecords;

const DNS_PORT: u16 = 53;
const DNS_TLS_PORT: u16 = 853;

/// Longer than anything that makes sense, and short enough to be added to any point in time.
const DURATION_MAX: Duration = Duration::from_secs(u32::MAX as u64);

/// `5s`, `500ms`, `0.5s`, `1m30s`, `2h`, or a number of seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as \"5s\", \"500ms\" or \"1m30s\"");
    let total = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => parts(text).ok_or_else(wrong)?,
    };
    if total <= DURATION_MAX { Ok(total) } else { Err(wrong()) }
}

/// A sum of numbers with their units.
fn parts(text: &str) -> Option<Duration> {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let (mut total, mut rest) = (None::<Duration>, text);
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c| !is_number(c))?);
        let (unit, after) = after.split_at(after.find(is_number).unwrap_or(after.len()));
        let unit_s = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit_s).ok()?;
        total = Some(total.unwrap_or_default().checked_add(part)?);
        rest = after;
    }
    total
}

/// A duration that is more than nothing.
pub(super) fn some_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(format!("{text:?}: want more than nothing")),
        some => Ok(some),
    }
}

/// A class of answers to log.
pub(super) fn log_class(text: &str) -> Result<LogClasses, String> {
    match text {
        "success" => Ok(LogClasses { success: true, ..LogClasses::NONE }),
        "denial" => Ok(LogClasses { denial: true, ..LogClasses::NONE }),
        "error" => Ok(LogClasses { error: true, ..LogClasses::NONE }),
        "all" => Ok(LogClasses::ALL),
        other => Err(format!("{other:?}: want success, denial, error or all")),
    }
}

/// A name that a certificate can have.
pub(super) fn server_name(text: &str) -> Result<String, String> {
    match ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("{text:?} is no name of a server")),
    }
}

/// A domain name, lower case, absolute whether or not it ends in a dot.
pub(crate) fn name(text: &str) -> Result<Name, String> {
    let mut name = Name::from_ascii(text).map_err(|error| format!("{text:?} is no domain name: {error}"))?;
    name.set_fqdn(true);
    Ok(name.to_lowercase())
}

/// `192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1`, `[2001:db8::1]:5353`, with `tls://` or `dns://` before it, and with
/// `tls://` the name of its certificate behind the address (`192.0.2.1%dns.example:853`); or a file in the form of
/// resolv.conf.
pub(super) fn upstreams(text: &str, files: &Files) -> Result<Vec<UpstreamSettings>, String> {
    if text.starts_with('/') {
        let file = files.read(text).map_err(|error| format!("cannot read {text}: {error}"))?;
        let found: Vec<_> =
            crate::config::upstreams_from(&file).into_iter().map(UpstreamSettings::plain).collect();
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
    let (address, tls_name) = match rest.split_once('%').filter(|_| tls) {
        Some((address, name)) => {
            let (name, port) = name.split_once(':').map_or((name, None), |(name, port)| (name, Some(port)));
            (
                port.map_or_else(|| address.to_owned(), |port| format!("{address}:{port}")),
                Some(server_name(name)?),
            )
        }
        None => (rest.to_owned(), None),
    };
    let address = address
        .parse::<SocketAddr>()
        .or_else(|_| address.parse::<IpAddr>().map(|addr| SocketAddr::new(addr, port)))
        .map_err(|_| format!("{text:?} is no address of a resolver (an IP, with or without a port)"))?;
    Ok(vec![UpstreamSettings { address, tls, tls_name }])
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
        // As Go writes them.
        assert_eq!(millis("0.5s"), Some(500));
        assert_eq!(millis("1.5m250ms2000us"), Some(90_252));
        for wrong in [
            "",
            "s",
            "5 s",
            "5x",
            "-1s",
            "s5",
            "1.2.3s",
            ".s",
            "99999999999s",
            "99999999999",
            "4294967295h1",
            "1e3s",
        ] {
            assert_eq!(millis(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn upstream_addresses() {
        let one = |text: &str| {
            let found = upstreams(text, &Files::new(std::time::SystemTime::now())).ok()?.remove(0);
            let name = found.tls_name.map(|name| format!(" {name}")).unwrap_or_default();
            Some(format!("{} {}{name}", found.address, found.tls))
        };
        assert_eq!(one("192.0.2.1").as_deref(), Some("192.0.2.1:53 false"));
        assert_eq!(one("2001:db8::1").as_deref(), Some("[2001:db8::1]:53 false"));
        assert_eq!(one("dns://[2001:db8::1]:5353").as_deref(), Some("[2001:db8::1]:5353 false"));
        assert_eq!(one("tls://192.0.2.1").as_deref(), Some("192.0.2.1:853 true"));
        assert_eq!(one("tls://192.0.2.1%dns.example").as_deref(), Some("192.0.2.1:853 true dns.example"));
        assert_eq!(one("tls://192.0.2.1%dns.example:99").as_deref(), Some("192.0.2.1:99 true dns.example"));
        assert_eq!(
            one("tls://[2001:db8::1]%dns.example:99").as_deref(),
            Some("[2001:db8::1]:99 true dns.example")
        );
        for wrong in [
            "",
            "one.one",
            "https://192.0.2.1",
            "192.0.2.1:x",
            "/nowhere/at/all",
            "192.0.2.1%dns.example",
            "tls://192.0.2.1%",
            "tls://192.0.2.1%a b",
        ] {
            assert_eq!(one(wrong), None, "{wrong}");
        }
    }
}
