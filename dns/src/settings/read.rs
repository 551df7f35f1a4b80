//! The settings file in TOML: read whole, every mistake named with its line.

use std::fmt;
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::time::{Duration, SystemTime};

use hickory_proto::rr::Name;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use tracing::warn;

use super::{
    CacheSettings, Files, ForwardSettings, HostsSettings, LogClasses, Matching, Prefetch, Rewrite,
    ServeStale, Settings, Template, ZoneSettings, corefile, values,
};
use crate::config::{search_from, upstreams_from};
use crate::{DnsConfig, DnsError};

/// Something that is wrong with a settings file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, where it is one that the settings file imports.
    pub file: Option<String>,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}, ")?;
        }
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// The settings to start with. Where nobody says whom to ask for other names they are refused until somebody does: names of
/// the cluster are not to wait for that.
pub(crate) fn load(config: &DnsConfig) -> Result<Settings, DnsError> {
    let files = Files::new(SystemTime::now());
    match load_strictly(config, &files) {
        Err(error @ DnsError::ResolvConf { .. }) => {
            warn!(%error, "names outside of the cluster are refused until that changes");
            load_strictly(&DnsConfig { resolv_conf: None, ..config.clone() }, &files)
        }
        settings => settings,
    }
}

/// Reads the settings of `config.file` over `config`, in which what `config.resolv_conf` says has taken its place; without
/// these files, `config` is all.
pub(crate) fn load_strictly(config: &DnsConfig, files: &Files) -> Result<Settings, DnsError> {
    let config = &resolved(config, files)?;
    let Some(file) = &config.file else { return Ok(Settings::of(config)) };
    let path = file.display().to_string();
    let text = files.read(file).map_err(|source| DnsError::SettingsFile { path: path.clone(), source })?;
    parse(file, &text, config, files).map_err(|problems| DnsError::Settings { path, problems })
}

fn resolved(config: &DnsConfig, files: &Files) -> Result<DnsConfig, DnsError> {
    let mut config = config.clone();
    let Some(file) = &config.resolv_conf else { return Ok(config) };
    let refused = |why: String| DnsError::ResolvConf { path: file.display().to_string(), why };
    let text = files.read(file).map_err(|error| refused(error.to_string()))?;
    if config.upstreams.is_empty() {
        config.upstreams = upstreams_from(&text);
        if config.upstreams.is_empty() {
            return Err(refused("it names no name server".to_owned()));
        }
    }
    if config.search.is_empty() {
        config.search = search_from(&text, &config.zone);
    }
    Ok(config)
}

fn parse(file: &Path, text: &str, config: &DnsConfig, files: &Files) -> Result<Settings, Vec<Problem>> {
    let mut config = config.clone();
    config.file = Some(file.to_owned());
    let read = if file.extension().is_some_and(|extension| extension == "toml") {
        toml(text, config, files)
    } else {
        corefile::parse(text, config, files)
    };
    read.map_err(|mut problems| {
        problems.sort();
        problems
    })
}

/// Reads TOML.
fn toml(text: &str, config: DnsConfig, files: &Files) -> Result<Settings, Vec<Problem>> {
    let mut reader = Reader { text, files, problems: Vec::new() };
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let span = error.span().unwrap_or_default();
        reader.problem(&span, error.message().to_owned());
    }
    let mut settings = Settings::of(&config);
    for (key, value) in root.get_ref() {
        match &**key.get_ref() {
            "cluster" => reader.cluster(value, &mut settings.config),
            "limits" => reader.limits(value, &mut settings.config),
            "zone" => {}
            other => reader.unknown(key, other, "cluster, limits, zone"),
        }
    }
    if let Some(zones) = root.get_ref().get("zone") {
        let config = settings.config.clone();
        reader.zones(zones, &config, &mut settings.zones);
    }
    if reader.problems.is_empty() { Ok(settings) } else { Err(reader.problems) }
}

struct Reader<'a> {
    text: &'a str,
    files: &'a Files,
    problems: Vec<Problem>,
}

type Value<'i> = Spanned<DeValue<'i>>;

impl Reader<'_> {
    fn problem(&mut self, span: &Range<usize>, what: String) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = 1 + before.matches('\n').count();
        self.problems.push(Problem { file: None, line, what });
    }

    fn unknown<T>(&mut self, key: &Spanned<T>, name: &str, known: &str) {
        self.problem(&key.span(), format!("unknown key {name:?}: want one of {known}"));
    }

    fn expected(&mut self, value: &Value<'_>, what: &str) {
        self.problem(&value.span(), format!("want {what}, found {}", value.get_ref().type_str()));
    }

    fn table<'t, 'i>(&mut self, value: &'t Value<'i>) -> Option<&'t DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.expected(value, "a table");
        }
        table
    }

    fn text<'t>(&mut self, value: &'t Value<'_>) -> Option<&'t str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.expected(value, "a string");
        }
        text
    }

    fn flag(&mut self, value: &Value<'_>, place: &mut bool) {
        match value.get_ref().as_bool() {
            Some(flag) => *place = flag,
            None => self.expected(value, "true or false"),
        }
    }

    fn number<T: TryFrom<u64>>(&mut self, value: &Value<'_>, range: RangeInclusive<u64>, place: &mut T) {
        let integer = value.get_ref().as_integer();
        let number = integer.and_then(|integer| u64::from_str_radix(integer.as_str(), integer.radix()).ok());
        let number =
            number.filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
        if let Some(number) = number {
            *place = number;
        } else {
            let what = format!("want a number from {} to {}", range.start(), range.end());
            self.problem(&value.span(), what);
        }
    }

    fn duration(&mut self, value: &Value<'_>, place: &mut Duration) {
        if value.get_ref().is_integer() {
            let mut seconds = 0_u32;
            self.number(value, 0..=u64::from(u32::MAX), &mut seconds);
            *place = Duration::from_secs(seconds.into());
        } else {
            self.parsed(value, values::duration, place);
        }
    }

    /// A duration that is more than nothing.
    fn some_time(&mut self, value: &Value<'_>, place: &mut Duration) {
        self.duration(value, place);
        if place.is_zero() {
            self.problem(&value.span(), "want more than nothing".to_owned());
        }
    }

    fn parsed<T>(&mut self, value: &Value<'_>, parse: impl Fn(&str) -> Result<T, String>, place: &mut T) {
        let Some(text) = self.text(value) else { return };
        match parse(text) {
            Ok(parsed) => *place = parsed,
            Err(what) => self.problem(&value.span(), what),
        }
    }

    /// A list of texts; a single text is a list of one.
    fn list<T>(&mut self, value: &Value<'_>, parse: impl Fn(&str) -> Result<T, String>, place: &mut Vec<T>) {
        place.clear();
        let single = [value];
        let several: Vec<&Value<'_>>;
        let items: &[&Value<'_>] = if let Some(array) = value.get_ref().as_array() {
            several = array.iter().collect();
            &several
        } else {
            &single
        };
        for item in items {
            let Some(text) = self.text(item) else { continue };
            match parse(text) {
                Ok(parsed) => place.push(parsed),
                Err(what) => self.problem(&item.span(), what),
            }
        }
    }

    fn cluster(&mut self, value: &Value<'_>, config: &mut DnsConfig) {
        let Some(table) = self.table(value) else { return };
        for (key, value) in table {
            match &**key.get_ref() {
                "zone" => {
                    self.parsed(value, |text| values::name(text).map(|_| text.to_owned()), &mut config.zone);
                }
                "ttl" => self.number(value, 0..=3600, &mut config.ttl_s),
                "pods" => self.parsed(value, values::pod_records, &mut config.pod_records),
                "reverse" => self.list(
                    value,
                    |text| text.parse().map_err(|_| format!("{text:?} is no CIDR such as 10.96.0.0/16")),
                    &mut config.reverse,
                ),
                "fallthrough" => self.list(
                    value,
                    |text| values::name(text).map(|name| name.to_ascii()),
                    &mut config.fallthrough,
                ),
                "namespaces" => self.list(value, |text| Ok(text.to_owned()), &mut config.namespaces),
                "ignore-empty-services" => self.flag(value, &mut config.ignore_empty_services),
                "zonal" => self.flag(value, &mut config.zonal),
                "autopath" => self.flag(value, &mut config.autopath),
                "search" => self.list(
                    value,
                    |text| values::name(text).map(|name| name.to_ascii()),
                    &mut config.search,
                ),
                other => self.unknown(
                    key,
                    other,
                    "zone, ttl, pods, reverse, fallthrough, namespaces, ignore-empty-services, zonal, autopath, \
                     search",
                ),
            }
        }
    }

    fn limits(&mut self, value: &Value<'_>, config: &mut DnsConfig) {
        let Some(table) = self.table(value) else { return };
        for (key, value) in table {
            match &**key.get_ref() {
                "queries-per-second-per-source" => {
                    let mut rate = 0_u32;
                    self.number(value, 0..=10_000_000, &mut rate);
                    config.rate_limit = Some(rate).filter(|rate| *rate > 0);
                }
                other => self.unknown(key, other, "queries-per-second-per-source"),
            }
        }
    }

    fn zones(&mut self, value: &Value<'_>, config: &DnsConfig, zones: &mut Vec<ZoneSettings>) {
        let Some(array) = value.get_ref().as_array() else {
            return self.expected(value, "[[zone]], as often as there are zones");
        };
        let mut read: Vec<ZoneSettings> = Vec::new();
        for item in array {
            let Some(table) = self.table(item) else { continue };
            let Some(zone) = self.zone(table, &item.span(), config) else { continue };
            if read.iter().any(|other| other.name == zone.name) {
                self.problem(&item.span(), format!("the zone {} is there twice", zone.name));
            }
            read.push(zone);
        }
        // What the command line says about everything else holds where the file says nothing about it.
        zones.retain(|zone| !read.iter().any(|other| other.name == zone.name));
        zones.append(&mut read);
    }

    fn zone(&mut self, table: &DeTable<'_>, span: &Range<usize>, config: &DnsConfig) -> Option<ZoneSettings> {
        let Some(name) = table.get("name") else {
            self.problem(span, "a zone needs a name, \".\" for everything".to_owned());
            return None;
        };
        let mut zone = ZoneSettings::new(Name::root(), config);
        self.parsed(name, values::name, &mut zone.name);
        for (key, value) in table {
            match &**key.get_ref() {
                "name" => {}
                "log" => zone.log = self.log(value),
                "forward" => zone.forward = self.forward(value, config),
                "cache" => self.cache(value, &mut zone.cache),
                "hosts" => self.hosts(value, &mut zone.hosts),
                "rewrite" => self.rewrites(value, &mut zone.rewrites),
                "answer" => self.templates(value, &mut zone.templates),
                other => self.unknown(key, other, "name, log, forward, cache, hosts, rewrite, answer"),
            }
        }
        Some(zone)
    }

    /// `true`, `false`, or a list of classes.
    fn log(&mut self, value: &Value<'_>) -> LogClasses {
        if let Some(flag) = value.get_ref().as_bool() {
            return if flag { LogClasses::ALL } else { LogClasses::NONE };
        }
        let mut classes = Vec::new();
        self.list(value, values::log_class, &mut classes);
        classes.into_iter().fold(LogClasses::NONE, LogClasses::and)
    }

    fn forward(&mut self, value: &Value<'_>, config: &DnsConfig) -> Option<ForwardSettings> {
        let table = self.table(value)?;
        let mut forward = ForwardSettings::of(config);
        let (mut upstreams, mut texts) = (Vec::new(), (String::new(), String::new()));
        for (key, value) in table {
            match &**key.get_ref() {
                "to" => {
                    let files = self.files;
                    self.list(value, |text| values::upstreams(text, files), &mut upstreams);
                }
                "policy" => self.parsed(value, values::policy, &mut forward.policy),
                "force-tcp" => self.flag(value, &mut forward.force_tcp),
                "tls-server-name" => self.parsed(value, values::server_name, &mut texts.0),
                "tls-ca" => self.parsed(value, |text| Ok(text.to_owned()), &mut texts.1),
                "max-fails" => self.number(value, 0..=1000, &mut forward.max_fails),
                "health-check" => self.some_time(value, &mut forward.health_check),
                "expire" => self.duration(value, &mut forward.expire),
                "max-concurrent" => self.number(value, 1..=1_000_000, &mut forward.max_concurrent),
                "attempt-timeout" => self.some_time(value, &mut forward.attempt_timeout),
                "timeout" => self.some_time(value, &mut forward.timeout),
                "except" => self.list(value, values::name, &mut forward.except),
                other => self.unknown(
                    key,
                    other,
                    "to, policy, force-tcp, tls-server-name, tls-ca, max-fails, health-check, expire, \
                     max-concurrent, attempt-timeout, timeout, except",
                ),
            }
        }
        forward.upstreams = upstreams.into_iter().flatten().collect();
        forward.tls_server_name = Some(texts.0).filter(|name| !name.is_empty());
        forward.tls_ca = Some(texts.1).filter(|path| !path.is_empty()).map(Into::into);
        match table.get("to") {
            Some(to) if to.get_ref().as_array().is_some_and(|list| list.is_empty()) => {
                self.problem(&to.span(), "want one resolver at least".to_owned());
            }
            Some(_) => {}
            None => self.problem(&value.span(), "forward needs \"to\", a list of resolvers".to_owned()),
        }
        Some(forward)
    }

    fn cache(&mut self, value: &Value<'_>, cache: &mut CacheSettings) {
        let Some(table) = self.table(value) else { return };
        for (key, value) in table {
            match &**key.get_ref() {
                "bytes" => self.number(value, 0..=1 << 40, &mut cache.bytes_max),
                "ttl-min" => self.duration(value, &mut cache.ttl_min),
                "ttl-max" => self.duration(value, &mut cache.ttl_max),
                "negative-ttl-min" => self.duration(value, &mut cache.negative_ttl_min),
                "negative-ttl-max" => self.duration(value, &mut cache.negative_ttl_max),
                "servfail-ttl" => self.duration(value, &mut cache.servfail_ttl),
                "keep-ttl" => self.flag(value, &mut cache.keep_ttl),
                "no-success" => self.list(value, values::name, &mut cache.no_success),
                "no-denial" => self.list(value, values::name, &mut cache.no_denial),
                "prefetch" => cache.prefetch = self.prefetch(value),
                "serve-stale" => cache.serve_stale = self.serve_stale(value),
                other => self.unknown(
                    key,
                    other,
                    "bytes, ttl-min, ttl-max, negative-ttl-min, negative-ttl-max, servfail-ttl, keep-ttl, \
                     no-success, no-denial, prefetch, serve-stale",
                ),
            }
        }
    }

    /// `false`, or a table.
    fn prefetch(&mut self, value: &Value<'_>) -> Option<Prefetch> {
        if value.get_ref().as_bool() == Some(false) {
            return None;
        }
        let table = self.table(value)?;
        let mut prefetch = Prefetch { amount: 3, within: Duration::from_secs(60), percentage: 10 };
        for (key, value) in table {
            match &**key.get_ref() {
                "amount" => self.number(value, 1..=1_000_000, &mut prefetch.amount),
                "within" => self.duration(value, &mut prefetch.within),
                "percentage" => self.number(value, 1..=99, &mut prefetch.percentage),
                other => self.unknown(key, other, "amount, within, percentage"),
            }
        }
        Some(prefetch)
    }

    /// `false`, or a table.
    fn serve_stale(&mut self, value: &Value<'_>) -> Option<ServeStale> {
        if value.get_ref().as_bool() == Some(false) {
            return None;
        }
        let table = self.table(value)?;
        let mut stale = ServeStale::default();
        for (key, value) in table {
            match &**key.get_ref() {
                "keep" => self.duration(value, &mut stale.keep),
                "immediate" => self.flag(value, &mut stale.immediate),
                "ttl" => self.duration(value, &mut stale.ttl),
                "verify-timeout" => {
                    let mut patience = Duration::ZERO;
                    self.duration(value, &mut patience);
                    stale.verify_timeout = Some(patience).filter(|patience| !patience.is_zero());
                }
                other => self.unknown(key, other, "keep, immediate, ttl, verify-timeout"),
            }
        }
        Some(stale)
    }

    /// Names with their addresses.
    fn hosts(&mut self, value: &Value<'_>, hosts: &mut HostsSettings) {
        let Some(table) = self.table(value) else { return };
        for (key, value) in table {
            let name = match values::name(key.get_ref()) {
                Ok(name) => name,
                Err(what) => {
                    self.problem(&key.span(), what);
                    continue;
                }
            };
            let mut addrs: Vec<IpAddr> = Vec::new();
            let addr = |text: &str| text.parse().map_err(|_| format!("{text:?} is no IP address"));
            self.list(value, addr, &mut addrs);
            hosts.entries.extend(addrs.into_iter().map(|addr| (addr, name.clone())));
        }
    }

    fn rewrites(&mut self, value: &Value<'_>, rewrites: &mut Vec<Rewrite>) {
        let Some(array) = value.get_ref().as_array() else {
            return self.expected(value, "[[zone.rewrite]], as often as there are rules");
        };
        for item in array {
            let Some(table) = self.table(item) else { continue };
            let (mut matching, mut from, mut to) = (Matching::Exact, String::new(), String::new());
            for (key, value) in table {
                let own = |text: &str| Ok(text.to_owned());
                match &**key.get_ref() {
                    "match" => self.parsed(value, corefile::matching, &mut matching),
                    "from" => self.parsed(value, own, &mut from),
                    "to" => self.parsed(value, own, &mut to),
                    other => self.unknown(key, other, "match, from, to"),
                }
            }
            match corefile::rewrite(matching, &from, &to) {
                Ok(rule) => rewrites.push(rule),
                Err(what) => self.problem(&item.span(), what),
            }
        }
    }

    fn templates(&mut self, value: &Value<'_>, templates: &mut Vec<Template>) {
        let Some(array) = value.get_ref().as_array() else {
            return self.expected(value, "[[zone.answer]], as often as there are rules");
        };
        for item in array {
            let Some(table) = self.table(item) else { continue };
            let (mut zones, mut matching) = (Vec::new(), Vec::new());
            let (mut kind, mut code) = (None, hickory_proto::op::ResponseCode::NXDomain);
            for (key, value) in table {
                match &**key.get_ref() {
                    "names-in" => self.list(value, values::name, &mut zones),
                    "names-like" => self.list(value, values::expression, &mut matching),
                    "type" => self.parsed(value, values::kind, &mut kind),
                    "code" => self.parsed(value, values::code, &mut code),
                    other => self.unknown(key, other, "names-in, names-like, type, code"),
                }
            }
            if zones.is_empty() {
                zones.push(Name::root());
            }
            templates.push(Template { zones, kind, matching, fallthrough: vec![Name::root()], code });
        }
    }
}
