//! A CoreDNS Corefile, as far as it says what this server can do. What it cannot do is refused by name: a file that is read
//! in part would answer otherwise than its author meant.

mod import;
mod rewrite;
mod syntax;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Name;
use ipnet::IpNet;

use super::{
    Files, ForwardSettings, LogClasses, Prefetch, Problem, ServeStale, Settings, Template, ZoneSettings,
    values,
};
use crate::zone::{range_of_reverse, reverse_zones};
use crate::{DnsConfig, hosts};
use import::Importer;
pub(super) use rewrite::{matching, rewrite};
use syntax::{Directive, Place};

/// As many questions under way as the process may have sockets for.
const UNLIMITED: usize = usize::MAX;
/// The longest that CoreDNS remembers a failure.
const SERVFAIL_TTL_MAX: Duration = Duration::from_secs(300);

/// The file of addresses that CoreDNS reads where none is named.
const HOSTS_FILE: &str = "/etc/hosts";

/// Reads a Corefile over `config`.
pub(super) fn parse(text: &str, config: DnsConfig, read: &Files) -> Result<Settings, Vec<Problem>> {
    let mut importer = Importer::new(config.file.as_deref().unwrap_or(Path::new("Corefile")), read);
    let tokens = importer.read(text);
    let Importer { files, mut problems, .. } = importer;
    let servers = syntax::blocks(tokens, &mut problems);
    let mut reader =
        Reader { read, problems, config, names: Vec::new(), stubs: Vec::new(), kubernetes: false };
    let mut zones: Vec<ZoneSettings> = Vec::new();
    for server in &servers {
        for zone in reader.server(server) {
            if zones.iter().any(|other| other.name == zone.name) {
                reader.problem(server.line, format!("the zone {} is there twice", zone.name));
            }
            zones.push(zone);
        }
    }
    if servers.is_empty() && reader.problems.is_empty() {
        reader.problem(Place::START, "the file is empty".to_owned());
    }
    let Reader { problems, config, .. } = reader;
    if problems.is_empty() {
        return Ok(Settings { config, zones });
    }
    let named = problems.into_iter().map(|(place, what)| {
        let file = files.get(place.file).filter(|_| place.file > 0).cloned();
        Problem { file, line: place.line, what }
    });
    Err(named.collect())
}

struct Reader<'r> {
    /// The files that are read beside the Corefile.
    read: &'r Files,
    problems: Vec<(Place, String)>,
    config: DnsConfig,
    /// The zones of the block that is being read.
    names: Vec<Name>,
    /// Zones below them that the block has asked for elsewhere.
    stubs: Vec<(Name, ForwardSettings)>,
    /// A block has said what there is to say about the cluster.
    kubernetes: bool,
}

impl Reader<'_> {
    fn problem(&mut self, line: Place, what: String) {
        self.problems.push((line, what));
    }

    fn take<T>(&mut self, line: Place, parsed: Result<T, String>) -> Option<T> {
        parsed.map_err(|what| self.problem(line, what)).ok()
    }

    /// One argument.
    fn one<T>(&mut self, directive: &Directive, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let args = directive.args();
        let [arg] = args[..] else {
            self.problem(directive.line, format!("{:?} wants one argument", directive.name()));
            return None;
        };
        self.take(directive.line, parse(arg))
    }

    fn unknown(&mut self, directive: &Directive, of: &str) {
        self.problem(directive.line, format!("{of} {:?} is not supported", directive.name()));
    }

    /// A server block: the same settings for each of its zones.
    fn server(&mut self, server: &Directive) -> Vec<ZoneSettings> {
        if !server.opens {
            self.problem(server.line, format!("{:?} stands in no block", server.words.join(" ")));
            return Vec::new();
        }
        let mut names = Vec::new();
        for word in &server.words {
            let word = word.trim_end_matches(',');
            if word.contains("://") && !word.starts_with("dns://") {
                self.problem(server.line, format!("{word:?}: only plain DNS is served"));
            }
            names.extend(self.take(server.line, zones_of(word)).into_iter().flatten());
        }
        if server.words.is_empty() {
            self.problem(server.line, "a block without a zone".to_owned());
        }
        self.names.clone_from(&names);
        let mut zone = ZoneSettings::new(Name::root(), &self.config);
        zone.cache.bytes_max = 0;
        zone.cache.prefetch = None;
        zone.cache.serve_stale = None;
        let mut seen = HashSet::new();
        for directive in &server.body {
            let repeatable = matches!(directive.name(), "rewrite" | "template" | "forward");
            if !repeatable && !seen.insert(directive.name()) {
                self.problem(directive.line, format!("{:?} is there twice", directive.name()));
            }
            self.directive(directive, &mut zone);
        }
        let stubs = std::mem::take(&mut self.stubs);
        // They share what the block may remember.
        zone.cache.bytes_max /= (names.len() + stubs.len()).max(1);
        let own = names.into_iter().map(|name| ZoneSettings { name, ..zone.clone() });
        let stubs = stubs.into_iter().map(|(name, forward)| ZoneSettings {
            name,
            forward: Some(forward),
            ..zone.clone()
        });
        own.chain(stubs).collect()
    }

    fn directive(&mut self, directive: &Directive, zone: &mut ZoneSettings) {
        match directive.name() {
            "kubernetes" => self.kubernetes(directive),
            "forward" => self.forward(directive, zone),
            "cache" => self.cache(directive, zone),
            "hosts" => self.hosts(directive, zone),
            "rewrite" => self.rewrite(directive, zone),
            "template" => self.template(directive, zone),
            "autopath" => match directive.args()[..] {
                ["@kubernetes"] | [_, "@kubernetes"] => self.config.autopath = true,
                _ => self.problem(directive.line, "autopath wants @kubernetes".to_owned()),
            },
            "log" => zone.log = self.log(directive),
            "errors" | "ready" | "health" | "prometheus" | "loop" | "reload" | "loadbalance" | "any"
            | "bufsize" | "multisocket" => self.always(directive),
            _ => self.unknown(directive, "the plugin"),
        }
    }

    /// What is always so here, or the affair of the command line. It is read all the same, so that what would not be so is
    /// named.
    fn always(&mut self, directive: &Directive) {
        let (line, args) = (directive.line, directive.args());
        match (directive.name(), &args[..]) {
            ("errors" | "loop" | "any" | "multisocket", [])
            | ("ready" | "health" | "prometheus" | "multisocket", [] | [_])
            // What fits an IPv6 packet that no link has to fragment.
            | ("bufsize", [] | ["1232"])
            | ("loadbalance", [] | ["round_robin"])
            | ("reload", [] | ["off"]) => {}
            ("reload", durations @ ([_] | [_, _])) => {
                for text in durations {
                    self.take(line, values::duration(text));
                }
            }
            (name, _) => self.problem(line, format!("{name} {}: is not supported", args.join(" "))),
        }
        for option in &directive.body {
            match (directive.name(), option.name(), &option.args()[..]) {
                ("errors", "stacktrace", [])
                | ("errors", "consolidate", [_, _, ..])
                | ("ready", "monitor", ["until-ready" | "continuously"]) => {}
                ("health", "lameduck", [duration]) => {
                    self.take(option.line, values::duration(duration));
                }
                (name, _, _) => self.unknown(option, &format!("the option of {name}")),
            }
        }
    }

    fn log(&mut self, directive: &Directive) -> LogClasses {
        if !matches!(directive.args()[..], [] | ["."]) {
            let what = "log for some names only, or in a format of its own, is not supported";
            self.problem(directive.line, what.to_owned());
        }
        let mut classes = LogClasses::NONE;
        for option in &directive.body {
            match option.name() {
                "class" => {
                    for class in option.args() {
                        let class = self.take(option.line, values::log_class(class));
                        classes = classes.and(class.unwrap_or(LogClasses::NONE));
                    }
                }
                _ => self.unknown(option, "the option of log"),
            }
        }
        if classes == LogClasses::NONE { LogClasses::ALL } else { classes }
    }

    /// The zones that the cluster answers for: its own, and ranges of addresses.
    fn cluster_zones(&mut self, directive: &Directive) -> Vec<IpNet> {
        let mut texts: Vec<String> = directive.args().iter().map(|arg| arg.to_ascii_lowercase()).collect();
        if texts.is_empty() {
            // Those of the block.
            texts = self.names.iter().filter(|name| !name.is_root()).map(Name::to_ascii).collect();
        }
        let (mut reverse, mut zones): (Vec<IpNet>, Vec<String>) = (Vec::new(), Vec::new());
        for text in texts {
            if let Ok(range) = text.parse::<IpNet>() {
                reverse.push(range);
                continue;
            }
            let Some(name) = self.take(directive.line, values::name(&text)) else { continue };
            match text.trim_end_matches('.') {
                "in-addr.arpa" => reverse.extend("0.0.0.0/0".parse::<IpNet>()),
                "ip6.arpa" => reverse.extend("::/0".parse::<IpNet>()),
                zone => match range_of_reverse(&name) {
                    Some(range) => reverse.push(range),
                    None if zones.iter().any(|known| known == zone) => {}
                    None => zones.push(zone.to_owned()),
                },
            }
        }
        match &zones[..] {
            [] => {}
            [zone] => self.config.zone.clone_from(zone),
            _ => self.problem(directive.line, "several cluster zones are not supported".to_owned()),
        }
        reverse
    }

    fn kubernetes(&mut self, directive: &Directive) {
        if std::mem::replace(&mut self.kubernetes, true) {
            self.problem(directive.line, "\"kubernetes\" is there in another block".to_owned());
        }
        let mut reverse = self.cluster_zones(directive);
        for option in &directive.body {
            let args = option.args();
            match option.name() {
                "pods" => {
                    if let Some(pods) = self.one(option, values::pod_records) {
                        self.config.pod_records = pods;
                    }
                }
                "ttl" => {
                    let ttl = |text: &str| match text.parse() {
                        Ok(ttl) if ttl <= 3600 => Ok(ttl),
                        _ => Err(format!("{text:?}: want seconds from 0 to 3600")),
                    };
                    if let Some(ttl_s) = self.one(option, ttl) {
                        self.config.ttl_s = ttl_s;
                    }
                }
                "namespaces" if !args.is_empty() => {
                    self.config.namespaces = args.iter().map(ToString::to_string).collect();
                }
                "zonal" if args.is_empty() => self.config.zonal = true,
                "ignore" if args == ["empty_service"] => self.config.ignore_empty_services = true,
                "fallthrough" => {
                    for zone in args.iter().copied().chain(args.is_empty().then_some(".")) {
                        let name = self.take(option.line, values::name(zone));
                        self.config.fallthrough.extend(name.map(|name| name.to_ascii()));
                    }
                    // Reverse names that nobody here has go on to upstream.
                    let through = |family: &str| args.is_empty() || args.contains(&family);
                    reverse.retain(|range| match range {
                        IpNet::V4(_) => !through("in-addr.arpa"),
                        IpNet::V6(_) => !through("ip6.arpa"),
                    });
                }
                _ => self.unknown(option, "the option of kubernetes"),
            }
        }
        self.config.reverse = reverse;
    }

    fn forward(&mut self, directive: &Directive, zone: &mut ZoneSettings) {
        let mut forward = ForwardSettings::of(&self.config);
        forward.policy = super::Policy::Random;
        forward.max_concurrent = UNLIMITED;
        let args = directive.args();
        if args.len() < 2 {
            return self.problem(directive.line, "forward wants FROM and TO".to_owned());
        }
        let Some(from) = self.take(directive.line, values::name(args[0])) else { return };
        let is_whole = from.is_root() || self.names.iter().all(|name| *name == from);
        if !is_whole && !self.names.iter().all(|name| name.zone_of(&from)) {
            self.problem(directive.line, format!("forward from {:?}: the block is not about it", args[0]));
        }
        if is_whole && zone.forward.is_some() {
            self.problem(directive.line, "\"forward\" is there twice".to_owned());
        }
        for to in &args[1..] {
            forward
                .upstreams
                .extend(self.take(directive.line, values::upstreams(to, self.read)).into_iter().flatten());
        }
        for option in &directive.body {
            let count = |text: &str| text.parse::<usize>().map_err(|_| format!("{text:?} is no number"));
            match option.name() {
                "policy" => forward.policy = self.one(option, values::policy).unwrap_or_default(),
                "force_tcp" if option.args().is_empty() => forward.force_tcp = true,
                "prefer_udp" if option.args().is_empty() => {}
                "tls_servername" => forward.tls_server_name = self.one(option, values::server_name),
                "tls" if option.args().len() <= 1 => forward.tls_ca = option.args().first().map(Into::into),
                "max_fails" => {
                    let fails = self.one(option, count).unwrap_or_default();
                    forward.max_fails = u32::try_from(fails).unwrap_or(u32::MAX);
                }
                "max_concurrent" => {
                    let limit = self.one(option, count).filter(|limit| *limit > 0);
                    forward.max_concurrent = limit.unwrap_or(forward.max_concurrent);
                }
                "expire" => forward.expire = self.one(option, values::duration).unwrap_or_default(),
                "read_timeout" => {
                    let patience = self.one(option, values::some_time);
                    forward.attempt_timeout = patience.unwrap_or(forward.attempt_timeout);
                }
                "health_check" => {
                    let every = self.health_check(option);
                    forward.health_check = every.unwrap_or(forward.health_check);
                }
                // It always goes on at these.
                "failover" if option.args().iter().all(|code| matches!(*code, "SERVFAIL" | "REFUSED")) => {}
                "except" => {
                    for name in option.args() {
                        forward.except.extend(self.take(option.line, values::name(name)));
                    }
                }
                _ => self.unknown(option, "the option of forward"),
            }
        }
        if is_whole {
            zone.forward = Some(forward);
        } else {
            self.stubs.push((from, forward));
        }
    }

    /// How often: what stands behind it changes what is asked, not when, and any answer will do.
    fn health_check(&mut self, option: &Directive) -> Option<Duration> {
        let args = option.args();
        let [every, rest @ ..] = &args[..] else {
            self.problem(option.line, "health_check wants a duration".to_owned());
            return None;
        };
        match rest {
            [] | ["no_rec"] | ["domain", _] | ["no_rec", "domain", _] | ["domain", _, "no_rec"] => {}
            _ => self.problem(option.line, "health_check wants DURATION [no_rec] [domain FQDN]".to_owned()),
        }
        self.take(option.line, values::some_time(every))
    }

    fn cache(&mut self, directive: &Directive, zone: &mut ZoneSettings) {
        let cache = &mut zone.cache;
        cache.bytes_max = self.config.cache_bytes;
        cache.ttl_max = Duration::from_secs(3600);
        cache.ttl_min = Duration::from_secs(5);
        cache.negative_ttl_max = Duration::from_secs(1800);
        cache.negative_ttl_min = Duration::from_secs(5);
        cache.servfail_ttl = Duration::from_secs(5);
        if let Some(ttl) = directive.args().first()
            && let Some(ttl) = self.take(directive.line, values::duration(ttl))
        {
            (cache.ttl_max, cache.negative_ttl_max) = (ttl, ttl);
        }
        if directive.args().len() > 1 {
            self.problem(directive.line, "cache for some names only is not supported".to_owned());
        }
        for option in &directive.body {
            let args = option.args();
            match (option.name(), &args[..]) {
                ("success" | "denial", [_capacity, ttls @ ..]) if ttls.len() <= 2 => {
                    let (mut max, mut min) = (None, None);
                    for (place, text) in [&mut max, &mut min].into_iter().zip(ttls) {
                        *place = self.take(option.line, values::duration(text));
                    }
                    let (held_max, held_min) = if option.name() == "success" {
                        (&mut cache.ttl_max, &mut cache.ttl_min)
                    } else {
                        (&mut cache.negative_ttl_max, &mut cache.negative_ttl_min)
                    };
                    *held_max = max.unwrap_or(*held_max);
                    *held_min = min.unwrap_or(*held_min);
                }
                ("prefetch", [_, ..]) => cache.prefetch = Some(self.prefetch(option)),
                ("serve_stale", _) => cache.serve_stale = Some(self.serve_stale(option)),
                ("servfail", [text]) => {
                    let ttl = values::duration(text).and_then(|ttl| {
                        let good = ttl <= SERVFAIL_TTL_MAX;
                        good.then_some(ttl).ok_or_else(|| format!("{text:?}: want 5m at most"))
                    });
                    cache.servfail_ttl = self.take(option.line, ttl).unwrap_or(cache.servfail_ttl);
                }
                ("keepttl", []) => cache.keep_ttl = true,
                ("disable", [class @ ("success" | "denial"), zones @ ..]) => {
                    let place =
                        if *class == "success" { &mut cache.no_success } else { &mut cache.no_denial };
                    for zone in if zones.is_empty() { &["."] } else { zones } {
                        place.extend(self.take(option.line, values::name(zone)));
                    }
                }
                _ => self.unknown(option, "the option of cache"),
            }
        }
    }

    fn prefetch(&mut self, option: &Directive) -> Prefetch {
        let mut prefetch = Prefetch { amount: 1, within: Duration::from_secs(60), percentage: 10 };
        for (at, arg) in option.args().into_iter().enumerate() {
            let parsed = match (at, arg.strip_suffix('%')) {
                (0, None) => arg.parse().map(|amount| prefetch.amount = amount).map_err(|e| e.to_string()),
                (1.., Some(percentage)) => match percentage.parse() {
                    Ok(part @ 10..=90) => {
                        prefetch.percentage = part;
                        Ok(())
                    }
                    _ => Err(format!("{arg:?}: want 10% to 90%")),
                },
                (1.., None) => values::duration(arg).map(|within| prefetch.within = within),
                _ => Err(format!("{arg:?} is no number of questions")),
            };
            self.take(option.line, parsed);
        }
        prefetch
    }

    /// `[DURATION] [immediate [RESPONSE_TTL] | verify [VERIFY_TIMEOUT [RESPONSE_TTL]]]`
    fn serve_stale(&mut self, option: &Directive) -> ServeStale {
        let mut stale = ServeStale { immediate: true, ttl: Duration::ZERO, ..ServeStale::default() };
        let args = option.args();
        let mut rest = &args[..];
        let mut duration = |text: &str| self.take(option.line, values::duration(text)).unwrap_or_default();
        if let [keep, after @ ..] = rest
            && !matches!(*keep, "immediate" | "verify")
        {
            stale.keep = duration(keep);
            rest = after;
        }
        match rest {
            [] | ["immediate"] => {}
            ["immediate", ttl] => stale.ttl = duration(ttl),
            ["verify", more @ ..] if more.len() <= 2 => {
                stale.immediate = false;
                let patience = more.first().map(|text| duration(text));
                stale.verify_timeout = patience.filter(|patience| !patience.is_zero());
                stale.ttl = more.get(1).map_or(stale.ttl, |text| duration(text));
            }
            _ => self.problem(option.line, format!("serve_stale {}: is not supported", args.join(" "))),
        }
        stale
    }

    /// `hosts [FILE [ZONES…]]`, and lines of addresses. Where there is neither, it is the machine's own file.
    fn hosts(&mut self, directive: &Directive, zone: &mut ZoneSettings) {
        let table = &mut zone.hosts;
        table.fallthrough.clear();
        table.passes_other_types = false;
        for option in &directive.body {
            match option.name() {
                "fallthrough" => {
                    let args = option.args();
                    for zone in if args.is_empty() { vec!["."] } else { args } {
                        table.fallthrough.extend(self.take(option.line, values::name(zone)));
                    }
                }
                "fallthrough_unsupported" if option.args().is_empty() => table.passes_other_types = true,
                "no_reverse" if option.args().is_empty() => table.reverse = false,
                "ttl" => {
                    let ttl = |text: &str| match text.parse() {
                        Ok(ttl @ 1..=65_535) => Ok(ttl),
                        _ => Err(format!("{text:?}: want seconds from 1 to 65535")),
                    };
                    table.ttl_s = self.one(option, ttl).unwrap_or(table.ttl_s);
                }
                // It is looked at every second.
                "reload" => {
                    self.one(option, values::duration);
                }
                addr if addr.parse::<std::net::IpAddr>().is_ok() => {
                    table.entries.extend(hosts::parse(&option.words.join(" ")));
                }
                _ => self.unknown(option, "the option of hosts"),
            }
        }
        let args = directive.args();
        let file = args.first().copied().or(table.entries.is_empty().then_some(HOSTS_FILE));
        match file.map(|file| (file, self.read.read(file))) {
            Some((_, Ok(text))) => table.entries.extend(hosts::parse(&text)),
            Some((file, Err(error))) => self.problem(directive.line, format!("cannot read {file}: {error}")),
            None => {}
        }
        for text in args.iter().skip(1) {
            table.zones.extend(self.take(directive.line, zones_of(text)).into_iter().flatten());
        }
    }

    /// Names that get a code: what is done against the questions of search paths.
    fn template(&mut self, directive: &Directive, zone: &mut ZoneSettings) {
        let args = directive.args();
        let [class, kind, names @ ..] = &args[..] else {
            return self.problem(directive.line, "template wants CLASS and TYPE".to_owned());
        };
        if !matches!(*class, "IN" | "ANY") {
            self.problem(directive.line, format!("template of class {class} is not supported"));
        }
        let kind = self.take(directive.line, values::kind(kind)).flatten();
        let (zones, matching) = (Vec::new(), Vec::new());
        let mut template =
            Template { zones, kind, matching, fallthrough: Vec::new(), code: ResponseCode::NoError };
        for name in names {
            template.zones.extend(self.take(directive.line, values::name(name)));
        }
        if names.is_empty() {
            template.zones.push(Name::root());
        }
        for option in &directive.body {
            match option.name() {
                "rcode" => {
                    template.code = self.one(option, values::code).unwrap_or(ResponseCode::NoError);
                }
                "match" => {
                    for text in option.args() {
                        template.matching.extend(self.take(option.line, values::expression(text)));
                    }
                }
                "fallthrough" => {
                    let args = option.args();
                    for zone in if args.is_empty() { vec!["."] } else { args } {
                        template.fallthrough.extend(self.take(option.line, values::name(zone)));
                    }
                }
                _ => self.unknown(option, "the option of template"),
            }
        }
        zone.templates.push(template);
    }
}

/// The zones of a word: `example.org`, `example.org:53`, `10.0.0.0/17`. Where the server listens is not the file's affair.
fn zones_of(word: &str) -> Result<Vec<Name>, String> {
    let zone = word.strip_prefix("dns://").unwrap_or(word);
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let zone = zone.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(zone, |(zone, _)| zone);
    match zone.parse::<IpNet>() {
        Ok(range) => Ok(reverse_zones(range)),
        Err(_) => values::name(if zone.is_empty() { "." } else { zone }).map(|name| vec![name]),
    }
}
