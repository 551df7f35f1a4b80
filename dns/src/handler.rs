//! Between the wire and those who know: rewrites, hosts and the zone answer at once, so does the cache; what has to be asked
//! upstream is put aside, so that the socket's task goes on.

mod route;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

use crate::autopath;
use crate::cache::{Found, Key};
use crate::forward::{Forwarder, NoAnswer, Place};
use crate::metrics::{Scope, Source};
use crate::rewrite::{Instead, restore, rewritten};
use crate::settings::LogClasses;
use crate::wire::{Request, Response};
use crate::zone::{Answer, Reply, Window, Zone};
pub(crate) use route::Handler;
use route::Route;

/// Aliases that are followed before they are taken for a loop.
const ALIASES_MAX: usize = 16;
/// An address record whose name is compressed; there is none shorter.
const RECORD_BYTES_MIN: u16 = 16;

/// An answer, and what there is to count about it.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) response: Response,
    pub(crate) scope: Scope,
    pub(crate) source: Source,
    /// Whether it is to be logged.
    pub(crate) log: bool,
}

impl Answered {
    fn new(response: Response, scope: Scope, source: Source, log: LogClasses) -> Self {
        let log = log.hold(response.code, response.answers.len());
        Self { response, scope, source, log }
    }
}

/// What becomes of a question.
pub(crate) enum Step {
    /// It is answered.
    Done(Answered),
    /// It has to be asked upstream.
    Later(Box<Pending>),
}

/// What is known about one name right now.
enum Now {
    Done(Response, Scope, Source),
    Ask(Ask),
}

/// A question for upstream.
struct Ask {
    forwarder: Arc<Forwarder>,
    key: Key,
    /// The name as the client, or an alias, spells it.
    name: Name,
    aliases: Vec<Record>,
    scope: Scope,
}

/// A question that waits for upstream.
pub(crate) struct Pending {
    handler: Arc<Handler>,
    zone: Arc<Zone>,
    ask: Ask,
    /// The walk through the search path that it is part of.
    walk: Option<Walk>,
    asked: Asked<'static>,
    /// Addresses that lead back to us.
    avoid: Vec<IpAddr>,
    pub(crate) scope: Scope,
    log: LogClasses,
    place: Place,
}

/// What the client asked for, and under which name that is looked up.
struct Asked<'a> {
    name: Cow<'a, Name>,
    /// After rewriting.
    instead: Option<Instead>,
    kind: RecordType,
    dnssec_ok: bool,
    checking_disabled: bool,
    window: Window,
}

impl Asked<'_> {
    fn lookup(&self) -> &Name {
        self.instead.as_ref().map_or(&self.name, |instead| &instead.name)
    }

    /// The answer with the name that the client knows.
    fn restored(&self, response: Response) -> Response {
        restored(response, &self.name, self.instead.as_ref())
    }

    /// The same for as long as it takes.
    fn kept(self) -> Asked<'static> {
        let Self { name, instead, kind, dnssec_ok, checking_disabled, window } = self;
        Asked { name: Cow::Owned(name.into_owned()), instead, kind, dnssec_ok, checking_disabled, window }
    }
}

/// A walk through the search path.
struct Walk {
    left: std::vec::IntoIter<Name>,
    /// The name of it that is looked up at the moment.
    at: Name,
    /// Under which one, after rewriting.
    instead: Option<Instead>,
    /// The answer if none of the names exists: what was said of the first one. `None` while that is being asked for.
    denied: Option<(Response, Source)>,
}

impl Walk {
    fn denied(&mut self) -> (Response, Source) {
        self.denied.take().unwrap_or_else(|| (Response::empty(ResponseCode::NXDomain), Source::Kubernetes))
    }
}

/// Whether a name of the search path exists.
enum Existence {
    Known,
    Denied,
    /// Nobody can say. The name that was asked for does not exist all the same, and that is the answer: the client walks
    /// on by itself, and is told of the trouble where it is.
    Unknown,
}

impl Existence {
    fn of(code: ResponseCode) -> Self {
        match code {
            ResponseCode::NoError => Self::Known,
            ResponseCode::NXDomain | ResponseCode::Refused => Self::Denied,
            _ => Self::Unknown,
        }
    }
}

impl Handler {
    /// Answers what can be answered at once, with as many records as may fit into `limit` octets, and one more, so that it
    /// shows that there are more.
    pub(crate) fn begin(
        self: &Arc<Self>,
        zone: &Arc<Zone>,
        request: &Request,
        client: IpAddr,
        limit: u16,
    ) -> Step {
        if let Some(code) = refusal(request) {
            return self.done((Response::empty(code), Scope::Other, Source::None), LogClasses::NONE);
        }
        let name = request.query.name();
        let route = self.route(name);
        let (log, rules) = route.map_or((LogClasses::NONE, &[][..]), |route| (route.log, &*route.rewrites));
        let asked = Asked {
            name: Cow::Borrowed(name),
            instead: rewritten(rules, name),
            kind: request.query.query_type(),
            dnssec_ok: request.dnssec_ok(),
            checking_disabled: request.checking_disabled,
            // A random number of the client's: the turn needs no memory.
            window: Window {
                turn: request.id.into(),
                records_max: usize::from(limit / RECORD_BYTES_MIN) + 1,
            },
        };
        let (ask, walk) = match self.look_up(zone, &asked, asked.lookup()) {
            // A name of the cluster's that falls through may not exist there either.
            Now::Ask(ask) => (ask, self.walk(zone, &asked, client)),
            Now::Done(response, scope, source) => {
                match self.walk_on(zone, &asked, client, response, (scope, source)) {
                    (Now::Done(response, scope, source), _) => {
                        return self.done((asked.restored(response), scope, source), log);
                    }
                    (Now::Ask(ask), walk) => (ask, walk),
                }
            }
        };
        match ask.forwarder.place(Some(client)) {
            Some(place) => Step::Later(Box::new(Pending {
                handler: Arc::clone(self),
                zone: Arc::clone(zone),
                avoid: zone.service_addresses().collect(),
                scope: ask.scope,
                ask,
                walk,
                asked: asked.kept(),
                log,
                place,
            })),
            None => self.done((Response::empty(ResponseCode::Refused), ask.scope, Source::Forward), log),
        }
    }

    /// The name to look up instead of `name`.
    fn rewrite(&self, name: &Name) -> Option<Instead> {
        rewritten(&self.route(name)?.rewrites, name)
    }

    /// What is known about `name` without asking anybody.
    fn look_up(&self, zone: &Zone, asked: &Asked<'_>, name: &Name) -> Now {
        self.look_up_behind(zone, asked, name, Vec::new())
    }

    /// The same for a name that aliases have led to.
    fn look_up_behind(&self, zone: &Zone, asked: &Asked<'_>, name: &Name, aliases: Vec<Record>) -> Now {
        let route = self.route(name);
        let other = if aliases.is_empty() { Scope::Other } else { Scope::Cluster };
        if let Some(code) = route.and_then(|route| route.template(name, asked.kind)) {
            let authoritative = code != ResponseCode::ServFail;
            let response = Response { authoritative, ..Response::empty(code) };
            return Now::Done(behind(aliases, response), other, Source::Template);
        }
        if let Some(answer) = route.and_then(|route| route.hosts.answer(name, asked.kind)) {
            return Now::Done(behind(aliases, authoritative(answer)), other, Source::Hosts);
        }
        match zone.answer_to(name, asked.kind, asked.window) {
            Reply::Authoritative(answer)
                if self.falls_through(&answer, name)
                    && route.is_some_and(|route| route.forwarder(name).is_some()) =>
            {
                elsewhere(route, asked, name.clone(), aliases)
            }
            Reply::Authoritative(answer) => {
                let scope = if zone.origin().zone_of(name) { Scope::Cluster } else { Scope::Reverse };
                Now::Done(behind(aliases, authoritative(answer)), scope, Source::Kubernetes)
            }
            Reply::Elsewhere { aliases: more, next } => {
                self.follow(zone, asked, next, [aliases, more].concat())
            }
            Reply::NotOurs => elsewhere(route, asked, name.clone(), aliases),
        }
    }

    /// Goes on with the name that aliases lead to, out of the zone: rules hold for it as if the client asked for it.
    fn follow(&self, zone: &Zone, asked: &Asked<'_>, next: Name, aliases: Vec<Record>) -> Now {
        if aliases.len() > ALIASES_MAX {
            return Now::Done(Response::empty(ResponseCode::ServFail), Scope::Cluster, Source::Kubernetes);
        }
        let Some(instead) = self.rewrite(&next) else {
            return self.look_up_behind(zone, asked, &next, aliases);
        };
        match self.look_up_behind(zone, asked, &instead.name, aliases) {
            Now::Done(response, scope, source) => {
                Now::Done(restored(response, &next, Some(&instead)), scope, source)
            }
            Now::Ask(ask) => Now::Ask(Ask { name: next, ..ask }),
        }
    }

    /// Whether a name that the cluster does not have may be somebody else's.
    fn falls_through(&self, answer: &Answer, name: &Name) -> bool {
        answer.code == ResponseCode::NXDomain
            && answer.answers.is_empty()
            && self.fallthrough.iter().any(|zone| zone.zone_of(name))
    }

    /// The walk through the search path of which the question is the first step, if it is one.
    fn walk(&self, zone: &Zone, asked: &Asked<'_>, client: IpAddr) -> Option<Walk> {
        let search = self.autopath.as_ref().filter(|_| asked.instead.is_none())?;
        if !zone.origin().zone_of(&asked.name) {
            return None;
        }
        let names = autopath::walk(&asked.name, zone.origin(), zone.namespace_of(client)?, search);
        let at = asked.name.as_ref().clone();
        (!names.is_empty()).then(|| Walk { left: names.into_iter(), at, instead: None, denied: None })
    }

    /// Goes on along the search path where the first name of it does not exist, as far as nobody has to be asked.
    fn walk_on(
        &self,
        zone: &Zone,
        asked: &Asked<'_>,
        client: IpAddr,
        first: Response,
        (scope, source): (Scope, Source),
    ) -> (Now, Option<Walk>) {
        if first.code != ResponseCode::NXDomain {
            return (Now::Done(first, scope, source), None);
        }
        let Some(mut walk) = self.walk(zone, asked, client) else {
            return (Now::Done(first, scope, source), None);
        };
        walk.denied = Some((first, source));
        match self.step(zone, asked, &mut walk) {
            Some(now) => (now, Some(walk)),
            None => (Now::Done(walk.denied().0, scope, source), None),
        }
    }

    /// The next name of the walk that exists, or that has to be asked for.
    fn step(&self, zone: &Zone, asked: &Asked<'_>, walk: &mut Walk) -> Option<Now> {
        for name in walk.left.by_ref() {
            // Rules hold for each of the names, as they would if the client asked for it.
            let instead = self.rewrite(&name);
            match self.look_up(zone, asked, instead.as_ref().map_or(&name, |instead| &instead.name)) {
                Now::Done(response, scope, source) => match Existence::of(response.code) {
                    Existence::Known => {
                        self.metrics.autopath_success();
                        let response = restored(response, &name, instead.as_ref());
                        return Some(Now::Done(self.aliased(asked, &name, response), scope, source));
                    }
                    Existence::Denied => {}
                    Existence::Unknown => return None,
                },
                ask @ Now::Ask(_) => {
                    (walk.at, walk.instead) = (name, instead);
                    return Some(ask);
                }
            }
        }
        None
    }

    /// The answer for a name of the search path, as one for the name that was asked for.
    fn aliased(&self, asked: &Asked<'_>, found: &Name, mut response: Response) -> Response {
        response.answers.insert(0, autopath::alias(&asked.name, found, self.ttl_s));
        response.authentic_data = false;
        response
    }

    fn done(&self, (response, scope, source): (Response, Scope, Source), log: LogClasses) -> Step {
        let response = Response { recursion_available: self.recursion_available, ..response };
        Step::Done(Answered::new(response, scope, source, log))
    }
}

/// Goes on where `name` has to be asked upstream.
fn elsewhere(route: Option<&Arc<Route>>, asked: &Asked<'_>, name: Name, aliases: Vec<Record>) -> Now {
    let scope = if aliases.is_empty() { Scope::Other } else { Scope::Cluster };
    let forwarder = route.and_then(|route| route.forwarder(&name));
    let Some(forwarder) = forwarder else {
        let response = if aliases.is_empty() {
            Response::empty(ResponseCode::Refused)
        } else {
            // The alias is all that we know, and it is true.
            Response { answers: aliases, authoritative: true, ..Response::empty(ResponseCode::NoError) }
        };
        return Now::Done(response, scope, Source::Kubernetes);
    };
    let key = Key {
        name: name.to_lowercase(),
        kind: asked.kind,
        dnssec_ok: asked.dnssec_ok,
        checking_disabled: asked.checking_disabled,
    };
    match forwarder.remembered(&key) {
        Some(found) => Now::Done(forwarded(found, (&name, &key.name), aliases), scope, Source::Cache),
        None => Now::Ask(Ask { forwarder: Arc::clone(forwarder), key, name, aliases, scope }),
    }
}

impl Pending {
    /// Asks upstream.
    pub(crate) async fn finish(self) -> Answered {
        let Self { handler, zone, mut ask, mut walk, asked, avoid, scope, log, place } = self;
        let mut source = Source::Forward;
        let response = loop {
            let mut response = match ask.forwarder.ask(&ask.key, &avoid, &place).await {
                Ok(found) => forwarded(Arc::unwrap_or_clone(found), (&ask.name, &ask.key.name), ask.aliases),
                Err(NoAnswer) => Response::empty(ResponseCode::ServFail),
            };
            let Some(walking) = &mut walk else { break response };
            // The first name's own answer, unless it is that there is none.
            if walking.denied.is_none() {
                if response.code != ResponseCode::NXDomain {
                    break response;
                }
                walking.denied = Some((response, Source::Forward));
            } else {
                match Existence::of(response.code) {
                    Existence::Known => {
                        handler.metrics.autopath_success();
                        let response = restored(response, &walking.at, walking.instead.as_ref());
                        break handler.aliased(&asked, &walking.at, response);
                    }
                    Existence::Denied => {}
                    Existence::Unknown => {
                        (response, source) = walking.denied();
                        break response;
                    }
                }
            }
            match handler.step(&zone, &asked, walking) {
                Some(Now::Ask(next)) => ask = next,
                Some(Now::Done(response, _, from)) => {
                    source = from;
                    break response;
                }
                None => {
                    (response, source) = walking.denied();
                    break response;
                }
            }
        };
        let response = Response { recursion_available: true, ..asked.restored(response) };
        Answered::new(response, scope, source, log)
    }
}

/// The answer with `name`, for which `instead` was looked up.
fn restored(mut response: Response, name: &Name, instead: Option<&Instead>) -> Response {
    if let Some(instead) = instead {
        instead.restore(&mut response, name);
    }
    response
}

/// What is refused whatever the name is.
fn refusal(request: &Request) -> Option<ResponseCode> {
    if request.edns.is_some_and(|edns| edns.version > 0) {
        return Some(ResponseCode::BADVERS);
    }
    if request.query.query_class() != DNSClass::IN {
        return Some(ResponseCode::Refused);
    }
    match request.query.query_type() {
        RecordType::AXFR | RecordType::IXFR => Some(ResponseCode::Refused),
        // Not types that a record of a zone can have.
        RecordType::OPT | RecordType::TSIG | RecordType::ZERO => Some(ResponseCode::FormErr),
        _ => None,
    }
}

fn authoritative(answer: Answer) -> Response {
    let Answer { code, answers, authority, additionals } = answer;
    // A failure is nobody's authority.
    let authoritative = code != ResponseCode::ServFail;
    Response {
        code,
        authoritative,
        recursion_available: false,
        authentic_data: false,
        answers,
        authorities: Vec::new(),
        denial: authority,
        additionals,
    }
}

/// An answer with the aliases that have led to it.
fn behind(aliases: Vec<Record>, mut response: Response) -> Response {
    if !aliases.is_empty() {
        // The first of them is ours, and so is the answer.
        response.authoritative = response.code != ResponseCode::ServFail;
        response.answers.splice(0..0, aliases);
    }
    response
}

/// What upstream said, of which `looked_up` was asked for `name`.
fn forwarded(found: Found, (name, looked_up): (&Name, &Name), aliases: Vec<Record>) -> Response {
    let Found { code, authentic_data, mut answers, authorities, additionals } = found;
    // Upstream was asked in lower case: give the client its own spelling back.
    restore(&mut answers, name, looked_up);
    let (authoritative, authentic_data) = (!aliases.is_empty(), authentic_data && aliases.is_empty());
    answers.splice(0..0, aliases);
    Response {
        code,
        authoritative,
        recursion_available: true,
        authentic_data,
        answers,
        authorities,
        denial: None,
        additionals,
    }
}
