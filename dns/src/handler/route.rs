//! Which zone's settings a name falls under, ready for use.

use std::net::SocketAddr;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use regex::RegexSet;

use crate::forward::Forwarder;
use crate::hosts::Hosts;
use crate::rewrite::Rule;
use crate::settings::{LogClasses, Settings, Template, ZoneSettings};
use crate::{DnsError, Metrics};

/// Answers questions, after one set of settings. Newer settings make another one.
#[derive(Debug)]
pub(crate) struct Handler {
    /// The longest name first.
    routes: Vec<Arc<Route>>,
    /// Search domains beyond the cluster's own; `None`: the search path is the client's affair.
    pub(super) autopath: Option<Vec<Name>>,
    /// Where a name that the cluster does not have may be somebody else's.
    pub(super) fallthrough: Vec<Name>,
    pub(super) ttl_s: u32,
    pub(super) recursion_available: bool,
    pub(super) metrics: Metrics,
}

/// A zone outside of the cluster.
#[derive(Debug)]
pub(super) struct Route {
    name: Name,
    forwarder: Option<Arc<Forwarder>>,
    pub(super) hosts: Hosts,
    pub(super) rewrites: Vec<Arc<Rule>>,
    templates: Vec<(Template, RegexSet)>,
    pub(super) log: LogClasses,
}

impl Handler {
    /// Makes a handler of `settings`. Forwarders of `former` that are the same go on, with what they remember.
    ///
    /// # Errors
    /// When certificates to trust cannot be read.
    pub(crate) fn new(
        settings: &Settings,
        former: Option<&Self>,
        listening: &[SocketAddr],
        metrics: &Metrics,
    ) -> Result<Self, DnsError> {
        let mut routes = Vec::new();
        for zone in &settings.zones {
            routes.push(Arc::new(Route::new(zone, former, listening, metrics)?));
        }
        routes.sort_by_key(|route| std::cmp::Reverse(route.name.iter().len()));
        let config = &settings.config;
        let (search, fallthrough) = (names(&config.search), names(&config.fallthrough));
        Ok(Self {
            recursion_available: routes.iter().any(|route| route.has_upstreams()),
            routes,
            autopath: config.autopath.then_some(search),
            fallthrough,
            ttl_s: config.ttl_s,
            metrics: metrics.clone(),
        })
    }

    /// The settings that `name` falls under.
    pub(super) fn route(&self, name: &Name) -> Option<&Arc<Route>> {
        match &*self.routes {
            // Nothing to compare with.
            [only] if only.name.is_root() => Some(only),
            routes => routes.iter().find(|route| route.name.zone_of(name)),
        }
    }

    /// Brings the gauges up to date.
    pub(crate) fn report(&self) {
        for route in &self.routes {
            if let Some(forwarder) = &route.forwarder {
                self.metrics.cache_entries(&route.name.to_ascii(), forwarder.cached());
            }
        }
    }
}

impl Route {
    fn new(
        settings: &ZoneSettings,
        former: Option<&Handler>,
        listening: &[SocketAddr],
        metrics: &Metrics,
    ) -> Result<Self, DnsError> {
        let forwarder = match &settings.forward {
            None => None,
            Some(forward) => {
                let same = |route: &Arc<Self>| {
                    let forwarder = route.forwarder.as_ref().filter(|_| route.name == settings.name)?;
                    forwarder.is_of(forward, &settings.cache).then(|| Arc::clone(forwarder))
                };
                match former.and_then(|former| former.routes.iter().find_map(same)) {
                    Some(forwarder) => Some(forwarder),
                    None => Some(Arc::new(Forwarder::new(
                        &settings.name,
                        forward,
                        &settings.cache,
                        listening,
                        metrics,
                    )?)),
                }
            }
        };
        Ok(Self {
            name: settings.name.clone(),
            forwarder,
            hosts: Hosts::new(&settings.hosts),
            rewrites: settings.rewrites.iter().map(|rewrite| Arc::new(Rule::new(rewrite))).collect(),
            templates: settings.templates.iter().map(ready).collect(),
            log: settings.log,
        })
    }

    fn has_upstreams(&self) -> bool {
        self.forwarder.as_ref().is_some_and(|forwarder| forwarder.has_upstreams())
    }

    /// Who is to be asked for `name`.
    pub(super) fn forwarder(&self, name: &Name) -> Option<&Arc<Forwarder>> {
        self.forwarder.as_ref().filter(|forwarder| forwarder.has_upstreams() && !forwarder.excludes(name))
    }

    /// The code that a template has for a question.
    pub(super) fn template(&self, name: &Name, kind: RecordType) -> Option<ResponseCode> {
        if self.templates.is_empty() {
            return None;
        }
        let text = name.to_lowercase().to_ascii();
        for (template, matching) in &self.templates {
            let applies = template.kind.is_none_or(|wanted| wanted == kind)
                && template.zones.iter().any(|zone| zone.zone_of(name));
            if applies && (matching.is_empty() || matching.is_match(&text)) {
                return Some(template.code);
            }
            if applies && !template.fallthrough.iter().any(|zone| zone.zone_of(name)) {
                return Some(ResponseCode::ServFail);
            }
        }
        None
    }
}

/// Names that have been found good when they were read.
fn names(texts: &[String]) -> Vec<Name> {
    let absolute = texts.iter().filter_map(|text| {
        let mut name = Name::from_ascii(text).ok()?;
        name.set_fqdn(true);
        Some(name)
    });
    absolute.collect()
}

/// The expressions of a template, which have been found good when they were read.
fn ready(template: &Template) -> (Template, RegexSet) {
    (template.clone(), RegexSet::new(&template.matching).unwrap_or_else(|_| RegexSet::empty()))
}
