//! The cluster's zone: which records there are, after the Kubernetes DNS specification 1.1. Pure: the state of the cluster
//! and a question in, an answer out.
//!
//! A [`Zone`] is an index over a [`Snapshot`]. [`Zone::update`] brings it to a newer snapshot at the cost of what has
//! changed; a clone shares its structure, so that readers keep the zone they have while the next one is made. Looking a
//! name up takes one look-up for its Service, whether that exists or not.

mod arpa;
mod hostnames;
mod index;
mod lookup;
mod service;
mod srv;
mod window;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use imbl::OrdSet;
use ipnet::IpNet;
use seaway_model::{ServiceKey, Snapshot};
use smallvec::SmallVec;

use crate::{DnsConfig, DnsError, PodRecords};
use arpa::Reverse;
use index::Index;
use lookup::{Node, Part};
use service::ServiceRecords;
pub use window::Window;

/// CNAMEs that are followed within the zone before a chain is taken for a loop.
const CHAIN_MAX: usize = 8;
/// Questions that are prepared for at once, at most.
const BATCH_MAX: usize = 32;
/// SOA timers, as CoreDNS has them.
const SOA_REFRESH_S: i32 = 7200;
const SOA_RETRY_S: i32 = 1800;
const SOA_EXPIRE_S: i32 = 86_400;
/// The time to live of what never changes.
const FIXED_TTL_S: u32 = 28_800;
/// The version of the specification that the zone follows.
const SCHEMA_VERSION: &str = "1.1.0";

/// What is to be known about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The name, in the case in which it was asked.
    pub name: Name,
    /// The record type.
    pub kind: RecordType,
}

/// An answer of the zone, section by section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The response code.
    pub code: ResponseCode,
    /// The answer section.
    pub answers: Vec<Record>,
    /// The authority section: the SOA where there is nothing to answer, shared by all such answers.
    pub authority: Option<Arc<Record>>,
    /// The additional section: addresses of the names in the answers.
    pub additionals: Vec<Record>,
}

impl Answer {
    pub(crate) fn new(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), authority: None, additionals: Vec::new() }
    }
}

/// What the zone has to say to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The zone answers with authority, be it that there is no such name.
    Authoritative(Answer),
    /// An alias leads out of the zone: the CNAMEs so far, and the name to ask upstream.
    Elsewhere {
        /// CNAME records from the name asked to `next`.
        aliases: Vec<Record>,
        /// The name that the last of them points to.
        next: Name,
    },
    /// The name is not the zone's affair.
    NotOurs,
}

/// What an update was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Updated {
    /// Services with a ClusterIP.
    pub cluster_ip: bool,
    /// Headless Services.
    pub headless: bool,
}

/// An address's owner, for reverse look-ups.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    service: ServiceKey,
    /// The host name of an endpoint. One without is named by the address, which need not be kept.
    hostname: Option<Arc<str>>,
}

/// The zone as of one snapshot.
#[derive(Debug, Clone)]
pub struct Zone {
    settings: Arc<Settings>,
    snapshot: Arc<Snapshot>,
    services: Index,
    /// Ordered: a tree takes a third of the memory that a hash map does, and few ask for it. An address may have thousands.
    /// Those of a Service that are named by their addresses share an owner.
    owners: OrdSet<(IpAddr, Arc<Owner>)>,
    /// Ranges whose reverse names are ours to deny.
    ranges: Arc<[IpNet]>,
    soa: Arc<Record>,
}

/// What does not change while the server runs.
#[derive(Debug)]
struct Settings {
    origin: Name,
    name_server: Name,
    mailbox: Name,
    service: ServiceKey,
    /// Where the server listens, to be told where nobody knows that Service.
    own: Vec<IpAddr>,
    ttl_s: u32,
    pod_records: PodRecords,
    reverse: Vec<IpNet>,
    namespaces: Vec<String>,
    ignore_empty_services: bool,
    zonal: bool,
}

impl Zone {
    /// An empty zone before the first snapshot: everything in it is SERVFAIL.
    ///
    /// # Errors
    /// When the configured zone is no domain name.
    pub fn new(config: &DnsConfig) -> Result<Self, DnsError> {
        let wrong = |why: String| DnsError::Domain { domain: config.zone.clone(), why };
        let mut origin = Name::from_ascii(config.zone.trim_matches('.')).map_err(|e| wrong(e.to_string()))?;
        if origin.num_labels() == 0 {
            return Err(wrong("is empty".to_owned()));
        }
        origin.set_fqdn(true);
        let origin = origin.to_lowercase();
        let below = |labels: &[&[u8]]| below(&origin, labels).ok_or_else(|| wrong("is too long".to_owned()));
        let settings = Settings {
            name_server: below(&[b"ns", b"dns"])?,
            mailbox: below(&[b"hostmaster"])?,
            service: ServiceKey::new(&config.service.0, &config.service.1),
            own: config.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect(),
            ttl_s: config.ttl_s,
            pod_records: config.pod_records,
            reverse: config.reverse.clone(),
            namespaces: config.namespaces.clone(),
            ignore_empty_services: config.ignore_empty_services,
            zonal: config.zonal,
            origin: origin.clone(),
        };
        let soa = soa(&settings, origin, 0).into();
        Ok(Self {
            ranges: settings.reverse.clone().into(),
            settings: Arc::new(settings),
            snapshot: Arc::default(),
            services: Index::default(),
            owners: OrdSet::new(),
            soa,
        })
    }

    /// Brings the zone to `snapshot`. Which kinds of Services have changed.
    pub fn update(&mut self, snapshot: &Arc<Snapshot>) -> Updated {
        let mut updated = Updated::default();
        let changes = snapshot.changes_since(&self.snapshot);
        for key in &changes.services {
            match snapshot.services.get(key) {
                Some(service) if service.headless => updated.headless = true,
                Some(_) => updated.cluster_ip = true,
                None => {}
            }
            let records = snapshot.services.get(key).filter(|_| self.shows(&key.namespace)).map(|service| {
                let endpoints = snapshot.endpoints.get(key).cloned().unwrap_or_default();
                ServiceRecords::new(service, endpoints, self.settings.ignore_empty_services)
            });
            self.replace(key, records);
        }
        if !changes.nodes.is_empty() {
            let pods = snapshot.nodes.values().flat_map(|node| node.pod_cidrs.iter().copied());
            self.ranges = pods.chain(self.settings.reverse.iter().copied()).collect();
        }
        self.soa = soa(&self.settings, self.settings.origin.clone(), snapshot.version).into();
        self.snapshot = Arc::clone(snapshot);
        updated
    }

    /// The same with an SOA record of its own: each denial counts who holds it, and tasks that count in one place wait for
    /// each other.
    pub(crate) fn own(&self) -> Self {
        Self { soa: Arc::new((*self.soa).clone()), ..self.clone() }
    }

    pub(crate) fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Whether the first list of everything has arrived: before it the zone knows nothing and says so.
    pub fn synced(&self) -> bool {
        self.snapshot.synced
    }

    /// The namespace of the pod that has `addr`, where that is known. Addresses of nodes are nobody's.
    pub fn namespace_of(&self, addr: IpAddr) -> Option<&str> {
        self.snapshot.pods.get(&addr.to_canonical()).map(|pod| &*pod.namespace)
    }

    /// Whether names of a namespace are to be told at all.
    fn shows(&self, namespace: &str) -> bool {
        let only = &self.settings.namespaces;
        only.is_empty() || only.iter().any(|shown| shown == namespace)
    }

    /// Whether there is such a namespace, as far as is known: also one without Services, where namespaces are watched.
    fn has_namespace(&self, namespace: &str) -> bool {
        self.services.has_namespace(namespace)
            || self.snapshot.namespaces.contains(namespace) && self.shows(namespace)
    }

    /// The zone's name.
    pub fn origin(&self) -> &Name {
        &self.settings.origin
    }

    /// The addresses of the Service by which pods reach the server.
    pub fn service_addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let key = &self.settings.service;
        let records = self.find(&key.namespace, &key.name);
        records.map(ServiceRecords::cluster_ips).into_iter().flatten()
    }

    /// Answers a question of class IN.
    pub fn answer(&self, question: &Question) -> Reply {
        self.answer_within(question, Window::ALL)
    }

    /// Answers a question of class IN with the part of the records that `window` says.
    pub fn answer_within(&self, question: &Question, window: Window) -> Reply {
        self.answer_to(&question.name, question.kind, window)
    }

    /// The same for a name and a type.
    pub(crate) fn answer_to(&self, name: &Name, kind: RecordType, window: Window) -> Reply {
        if let Some(labels) = lookup::relative(&self.settings.origin, name) {
            if !self.synced() {
                return Reply::Authoritative(Answer::new(ResponseCode::ServFail));
            }
            return self.in_zone(name, kind, self.node(&labels), window);
        }
        match arpa::parse(name) {
            Some(Reverse::Range(range)) => self.reverse(name, kind, range, window),
            Some(Reverse::Below(range)) => self.below_reverse(range),
            None => Reply::NotOurs,
        }
    }

    /// Prepares for questions about `names`, of which each is told by its labels: the memory that their answers lie in is
    /// fetched for all of them at once, where each would wait for its own. Nothing else comes of it: names are not to be
    /// believed yet.
    pub(crate) fn fetch<'a, L>(&self, names: impl Iterator<Item = L>)
    where
        L: Iterator<Item = &'a [u8]>,
    {
        let mut hashes = SmallVec::<[u64; BATCH_MAX]>::new();
        for labels in names.take(BATCH_MAX) {
            // Those of a named port's, and some more for a long origin.
            let labels: SmallVec<[&[u8]; 16]> = labels.collect();
            let likely = lookup::likely(&self.settings.origin, &labels);
            // In capitals it would be another hash, and it costs more to tell than is won.
            hashes.extend(likely.map(|(namespace, name)| self.services.hash(namespace, name)));
        }
        self.services.fetch(&hashes);
    }

    fn find(&self, namespace: &str, name: &str) -> Option<&ServiceRecords> {
        self.services.get(namespace, name)
    }

    /// Puts what is told of a Service in the place of what was. Of its addresses only those are touched that have changed.
    fn replace(&mut self, key: &ServiceKey, records: Option<ServiceRecords>) {
        let former = self.services.remove(key);
        let owner = |hostname: Option<Arc<str>>| Arc::new(Owner { service: key.clone(), hostname });
        let nameless = owner(None);
        let place = |addr, hostname: &Option<Arc<str>>| {
            (addr, hostname.clone().map_or_else(|| Arc::clone(&nameless), |hostname| owner(Some(hostname))))
        };
        let aliases = |records: Option<&ServiceRecords>, addr| {
            records.map(|records| records.aliases(addr)).unwrap_or_default()
        };
        for addr in ServiceRecords::touched(former.as_ref(), records.as_ref()) {
            let (old, new) = (aliases(former.as_ref(), addr), aliases(records.as_ref(), addr));
            for gone in old.iter().filter(|alias| !new.contains(alias)) {
                self.owners.remove(&place(addr, gone));
            }
            for new in new.iter().filter(|alias| !old.contains(alias)) {
                self.owners.insert(place(addr, new));
            }
        }
        if let Some(records) = records {
            self.services.insert(records);
        }
    }

    /// Whose an address is.
    fn owners_of(&self, addr: IpAddr) -> impl Iterator<Item = &Owner> {
        let first = Owner { service: ServiceKey::new("", ""), hostname: None };
        let from = self.owners.range((addr, Arc::new(first))..);
        from.take_while(move |(owned, _)| *owned == addr).map(|(_, owner)| &**owner)
    }

    /// Answers for a node of the zone's tree, following aliases as long as they stay in the zone.
    fn in_zone(&self, asked: &Name, kind: RecordType, node: Node<'_>, window: Window) -> Reply {
        let mut aliases = Vec::new();
        let mut name = asked;
        let mut node = node;
        while let Node::Service(records) = node
            && let Some(target) = records.external()
        {
            if aliases.len() == CHAIN_MAX {
                return Reply::Authoritative(Answer::new(ResponseCode::ServFail));
            }
            aliases.push(self.record(name, RData::CNAME(hickory_proto::rr::rdata::CNAME(target.clone()))));
            if matches!(kind, RecordType::CNAME | RecordType::ANY) {
                return Reply::Authoritative(Answer {
                    answers: aliases,
                    ..Answer::new(ResponseCode::NoError)
                });
            }
            name = target;
            match lookup::relative(&self.settings.origin, name) {
                Some(labels) => node = self.node(&labels),
                None => return Reply::Elsewhere { aliases, next: name.clone() },
            }
        }
        let mut answer = self.records(name, kind, &node, window);
        if answer.answers.is_empty() {
            answer.authority = Some(Arc::clone(&self.soa));
        }
        if !aliases.is_empty() {
            answer.answers.splice(0..0, aliases);
        }
        Reply::Authoritative(answer)
    }

    /// The records of `kind` at a node that is no alias; `owner` is its name.
    fn records(&self, owner: &Name, kind: RecordType, node: &Node<'_>, window: Window) -> Answer {
        let mut answer = Answer::new(ResponseCode::NoError);
        let answers = &mut answer.answers;
        match (node, kind) {
            (Node::Missing, _) => answer.code = ResponseCode::NXDomain,
            (Node::Empty, _) => {}
            // RFC 8482: whoever asks for everything gets something.
            (_, RecordType::ANY) => answers.push(self.record(owner, minimal_any())),
            (Node::Apex, RecordType::SOA) => answers.push((*self.soa).clone()),
            (Node::Apex, RecordType::NS) => {
                let name_server = self.settings.name_server.clone();
                answers.push(self.record(owner, RData::NS(hickory_proto::rr::rdata::NS(name_server))));
                answer.additionals = self.glue(RecordType::ANY);
            }
            (Node::NameServer, RecordType::A | RecordType::AAAA) => {
                *answers = self.glue(kind);
                for record in answers {
                    record.name.clone_from(owner);
                }
            }
            (Node::Version, RecordType::TXT) => {
                let text = hickory_proto::rr::rdata::TXT::new(vec![SCHEMA_VERSION.to_owned()]);
                answers.push(Record::from_rdata(owner.clone(), FIXED_TTL_S, RData::TXT(text)));
            }
            (Node::Service(records), RecordType::A | RecordType::AAAA) if records.is_headless() => {
                extend(answers, self.endpoint_addresses(owner, kind, (records, None), window));
            }
            (Node::Service(records), RecordType::A | RecordType::AAAA) => {
                extend(answers, self.addresses(owner, kind, records.cluster_ips(), window));
            }
            (Node::Part(records, part), RecordType::A | RecordType::AAAA) => {
                let within = records.meant(part);
                extend(answers, self.endpoint_addresses(owner, kind, (records, within), window));
            }
            (Node::Service(records), RecordType::SRV) => {
                self.push_srv(&mut answer, owner, records, (None, None), window);
            }
            (Node::Part(records, part), RecordType::SRV) => {
                self.push_srv(&mut answer, owner, records, (None, Some(part)), window);
            }
            (Node::Port(records, port), RecordType::SRV) => {
                self.push_srv(&mut answer, owner, records, (Some(port), None), window);
            }
            (Node::Endpoint(_, addrs), RecordType::A | RecordType::AAAA) => {
                extend(answers, self.addresses(owner, kind, addrs.iter().copied(), window));
            }
            (Node::Endpoint(records, _), RecordType::SRV) => {
                self.push_endpoint_srv(&mut answer, owner, records, window);
            }
            (Node::Pod(addr), RecordType::A | RecordType::AAAA) => {
                extend(answers, self.addresses(owner, kind, [*addr], window));
            }
            _ => {}
        }
        answer
    }

    fn addresses(
        &self,
        owner: &Name,
        kind: RecordType,
        addrs: impl IntoIterator<Item = IpAddr>,
        window: Window,
    ) -> impl Iterator<Item = Record> {
        let wanted = addrs.into_iter().filter(|addr| addr.is_ipv4() == (kind == RecordType::A));
        window
            .of(wanted.collect::<SmallVec<[IpAddr; 2]>>())
            .map(move |addr| self.record(owner, address(addr)))
    }

    /// Those of a headless Service's endpoints.
    fn endpoint_addresses(
        &self,
        owner: &Name,
        kind: RecordType,
        (records, within): (&ServiceRecords, Option<&Part>),
        window: Window,
    ) -> impl Iterator<Item = Record> {
        let wanted = records.endpoint_addresses(kind == RecordType::A, within);
        window.of_many(wanted).into_iter().map(move |addr| self.record(owner, address(addr)))
    }

    fn glue(&self, kind: RecordType) -> Vec<Record> {
        let name_server = &self.settings.name_server;
        let wanted = |addr: &IpAddr| match kind {
            RecordType::A => addr.is_ipv4(),
            RecordType::AAAA => addr.is_ipv6(),
            _ => true,
        };
        let mut addrs: SmallVec<[IpAddr; 2]> = self.service_addresses().collect();
        if addrs.is_empty() {
            addrs.extend(self.settings.own.iter().copied());
        }
        addrs.into_iter().filter(wanted).map(|addr| self.record(name_server, address(addr))).collect()
    }

    fn reverse(&self, name: &Name, kind: RecordType, range: IpNet, window: Window) -> Reply {
        if !self.synced() {
            return Reply::Authoritative(Answer::new(ResponseCode::ServFail));
        }
        let whole = range.prefix_len() == range.max_prefix_len();
        let owned = whole && self.owners_of(range.addr()).next().is_some();
        let ours = self.ranges.iter().find(|ours| ours.contains(&range));
        let mut answer = Answer::new(ResponseCode::NoError);
        match (owned, ours) {
            (true, _) if matches!(kind, RecordType::PTR | RecordType::ANY) => {
                let owners = self.owners_of(range.addr()).take(window.records_max);
                let names = owners.filter_map(|owner| self.name_of_owner(owner, range.addr()));
                let pointer = |name| RData::PTR(hickory_proto::rr::rdata::PTR(name));
                answer.answers = names.map(|target| self.record(name, pointer(target))).collect();
                return Reply::Authoritative(answer);
            }
            (false, Some(_)) if whole => answer.code = ResponseCode::NXDomain,
            (true, _) | (false, Some(_)) => {}
            (false, None) => return Reply::NotOurs,
        }
        let apex = ours.and_then(|ours| arpa::apex(*ours)).unwrap_or_else(|| name.clone());
        answer.authority = Some(soa(&self.settings, apex, self.snapshot.version).into());
        Reply::Authoritative(answer)
    }

    /// Answers for a name that is none of an address and stands below the name of `range`.
    fn below_reverse(&self, range: IpNet) -> Reply {
        let Some(ours) = self.ranges.iter().find(|ours| ours.contains(&range)) else { return Reply::NotOurs };
        if !self.synced() {
            return Reply::Authoritative(Answer::new(ResponseCode::ServFail));
        }
        let mut answer = Answer::new(ResponseCode::NXDomain);
        let apex = arpa::apex(*ours).unwrap_or_default();
        answer.authority = Some(soa(&self.settings, apex, self.snapshot.version).into());
        Reply::Authoritative(answer)
    }

    fn name_of_owner(&self, owner: &Owner, addr: IpAddr) -> Option<Name> {
        let ServiceKey { namespace, name } = &owner.service;
        let records = self.find(namespace, name)?;
        let service = self.name_of(namespace, name.as_bytes())?;
        match &owner.hostname {
            Some(hostname) => service.prepend_label(hostname.as_bytes()).ok(),
            None if records.cluster_ips().any(|ip| ip == addr) => Some(service),
            None => service.prepend_label(service::dashed(addr).as_bytes()).ok(),
        }
    }

    /// The name of a Service; `None` where it would be too long or a label is none.
    fn name_of(&self, namespace: &str, name: &[u8]) -> Option<Name> {
        below(&self.settings.origin, &[name, namespace.as_bytes(), b"svc"])
    }

    fn record(&self, owner: &Name, data: RData) -> Record {
        Record::from_rdata(owner.clone(), self.settings.ttl_s, data)
    }
}

/// Adds to a section. A vector that grows by itself takes room for four records at least, which is more than the allocator
/// has at hand.
fn extend(section: &mut Vec<Record>, records: impl Iterator<Item = Record>) {
    section.reserve_exact(records.size_hint().0);
    section.extend(records);
}

fn soa(settings: &Settings, owner: Name, version: u64) -> Record {
    #[expect(clippy::cast_possible_truncation, reason = "serial numbers wrap around")]
    let serial = version as u32;
    let data = SOA::new(
        settings.name_server.clone(),
        settings.mailbox.clone(),
        serial,
        SOA_REFRESH_S,
        SOA_RETRY_S,
        SOA_EXPIRE_S,
        settings.ttl_s,
    );
    Record::from_rdata(owner, settings.ttl_s, RData::SOA(data))
}

fn minimal_any() -> RData {
    RData::HINFO(hickory_proto::rr::rdata::HINFO::new("RFC8482".to_owned(), String::new()))
}

fn address(addr: IpAddr) -> RData {
    match addr {
        IpAddr::V4(addr) => RData::A(addr.into()),
        IpAddr::V6(addr) => RData::AAAA(addr.into()),
    }
}

/// The address that a reverse name stands for, where it is a whole one.
pub(crate) fn address_of_reverse(name: &Name) -> Option<IpAddr> {
    let range = range_of_reverse(name)?;
    (range.prefix_len() == range.max_prefix_len()).then(|| range.addr())
}

/// The name made of `labels` and `origin`; `None` where it would be too long or a label is none.
fn below(origin: &Name, labels: &[&[u8]]) -> Option<Name> {
    let mut name = Name::new();
    for label in labels {
        name = name.append_label(*label).ok()?;
    }
    name.append_domain(origin).ok()
}

/// The reverse zones that are a range together: several where it does not end with a label.
pub(crate) fn reverse_zones(range: IpNet) -> Vec<Name> {
    arpa::zones(range)
}

/// The addresses that a reverse name stands for.
pub(crate) fn range_of_reverse(name: &Name) -> Option<IpNet> {
    match arpa::parse(name)? {
        Reverse::Range(range) => Some(range),
        Reverse::Below(_) => None,
    }
}
