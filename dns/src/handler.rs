//! Between the wire and those who know: the zone answers at once, so does the cache; what has to be asked upstream is put
//! aside, so that the socket's task goes on.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use tokio::sync::OwnedSemaphorePermit;

use crate::cache::{Found, Key};
use crate::forward::{Forwarder, NoAnswer};
use crate::metrics::{Scope, Source};
use crate::wire::{Request, Response};
use crate::zone::{Answer, Question, Reply, Window, Zone};

/// An address record whose name is compressed; there is none shorter.
const RECORD_BYTES_MIN: u16 = 16;

/// Answers questions.
#[derive(Debug)]
pub(crate) struct Handler {
    pub(crate) forwarder: Forwarder,
}

/// An answer, and what there is to count about it.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) response: Response,
    pub(crate) scope: Scope,
    pub(crate) source: Source,
}

/// What becomes of a question.
pub(crate) enum Step {
    /// It is answered.
    Done(Answered),
    /// It has to be asked upstream.
    Later(Box<Pending>),
}

/// A question for upstream.
pub(crate) struct Pending {
    key: Key,
    aliases: Vec<Record>,
    /// Addresses that lead back to us.
    avoid: Vec<IpAddr>,
    pub(crate) scope: Scope,
    _place: OwnedSemaphorePermit,
}

impl Handler {
    /// Answers what can be answered at once, with as many records as may fit into `limit` octets, and one more, so that it
    /// shows that there are more.
    pub(crate) fn begin(&self, zone: &Zone, request: &Request, limit: u16) -> Step {
        if let Some(code) = refusal(request) {
            return self.done(Response::empty(code), Scope::Other, Source::None);
        }
        let question = Question { name: request.query.name().clone(), kind: request.query.query_type() };
        // A random number of the client's: the turn needs no memory.
        let window =
            Window { turn: request.id.into(), records_max: usize::from(limit / RECORD_BYTES_MIN) + 1 };
        match zone.answer_within(&question, window) {
            Reply::Authoritative(answer) => {
                let scope =
                    if zone.origin().zone_of(&question.name) { Scope::Cluster } else { Scope::Reverse };
                self.done(authoritative(answer), scope, Source::Kubernetes)
            }
            Reply::Elsewhere { aliases, next } => self.forward(zone, request, next, aliases),
            Reply::NotOurs => self.forward(zone, request, question.name, Vec::new()),
        }
    }

    /// Goes on where `name` has to be asked upstream.
    fn forward(&self, zone: &Zone, request: &Request, name: Name, aliases: Vec<Record>) -> Step {
        let scope = if aliases.is_empty() { Scope::Other } else { Scope::Cluster };
        if !self.forwarder.has_upstreams() {
            let response = if aliases.is_empty() {
                Response::empty(ResponseCode::Refused)
            } else {
                // The alias is all that we know, and it is true.
                Response { answers: aliases, authoritative: true, ..Response::empty(ResponseCode::NoError) }
            };
            return self.done(response, scope, Source::Kubernetes);
        }
        let key = Key {
            name: name.to_lowercase(),
            kind: request.query.query_type(),
            dnssec_ok: request.dnssec_ok(),
            checking_disabled: request.checking_disabled,
        };
        if let Some(found) = self.forwarder.remembered(&key) {
            return self.done(forwarded(found, &request.query, aliases), scope, Source::Cache);
        }
        match self.forwarder.place() {
            Some(place) => {
                let avoid = zone.service_addresses().to_vec();
                Step::Later(Box::new(Pending { key, aliases, avoid, scope, _place: place }))
            }
            None => self.done(Response::empty(ResponseCode::Refused), scope, Source::Forward),
        }
    }

    /// Asks upstream.
    pub(crate) async fn finish(&self, query: &Query, pending: Pending) -> Answered {
        let response = match self.forwarder.ask(&pending.key, &pending.avoid).await {
            Ok(found) => forwarded(Arc::unwrap_or_clone(found), query, pending.aliases),
            Err(NoAnswer) => Response::empty(ResponseCode::ServFail),
        };
        let response = Response { recursion_available: true, ..response };
        Answered { response, scope: pending.scope, source: Source::Forward }
    }

    fn done(&self, response: Response, scope: Scope, source: Source) -> Step {
        let recursion_available = self.forwarder.has_upstreams();
        Step::Done(Answered { response: Response { recursion_available, ..response }, scope, source })
    }
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
    let Answer { code, answers, authorities, additionals } = answer;
    // A failure is nobody's authority.
    let authoritative = code != ResponseCode::ServFail;
    Response {
        code,
        authoritative,
        recursion_available: false,
        authentic_data: false,
        answers,
        authorities,
        additionals,
    }
}

fn forwarded(found: Found, query: &Query, aliases: Vec<Record>) -> Response {
    let Found { code, authentic_data, mut answers, authorities, additionals } = found;
    // Upstream was asked in lower case: give the client its own spelling back.
    for record in answers.iter_mut().filter(|record| record.name == *query.name()) {
        record.name.clone_from(query.name());
    }
    let (authoritative, authentic_data) = (!aliases.is_empty(), authentic_data && aliases.is_empty());
    answers.splice(0..0, aliases);
    Response {
        code,
        authoritative,
        recursion_available: true,
        authentic_data,
        answers,
        authorities,
        additionals,
    }
}
