//! Which chains the kernel holds for one family, and what has to be written for a plan. Pure: plan in, input of
//! `iptables-restore` out. Only chains whose content changes are written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use seaway_model::Family;

use super::chains::{self, Bucket, Choice};
use super::edit::Edit;
use super::rule::{Rule, Table, digest};
use super::save::Jump;
use crate::frontend::{Frontend, FrontendKey, FrontendKind, Scope};
use crate::plan::{Host, Plan};

/// The chains of one family.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) family: Family,
    pub(super) host: Host,
    /// The ports that source NAT may take.
    pub(super) snat_ports: RangeInclusive<u16>,
    pub(super) buckets: BTreeMap<Bucket, BTreeMap<FrontendKey, Arc<Frontend>>>,
    /// Choosing chains and how many frontends use each.
    pub(super) choices: HashMap<String, usize>,
    /// Translating chains and how many choosing chains use each.
    pub(super) backends: HashMap<String, usize>,
    /// All other chains of ours with a digest of what the kernel has in them.
    pub(super) held: BTreeMap<(Table, String), u64>,
    /// Rules of other chains that lead into ours.
    pub(super) jumps: Vec<Jump>,
    /// Chains that belong to nothing.
    pub(super) stale: BTreeSet<(Table, String)>,
    /// Buckets in which something else stands than what should.
    pub(super) dirty: BTreeSet<Bucket>,
}

impl Layout {
    /// Nothing of ours is there.
    pub(super) fn new(family: Family, snat_ports: RangeInclusive<u16>) -> Self {
        Self {
            family,
            host: Host::default(),
            snat_ports,
            buckets: BTreeMap::new(),
            choices: HashMap::new(),
            backends: HashMap::new(),
            held: BTreeMap::new(),
            jumps: Vec::new(),
            stale: BTreeSet::new(),
            dirty: BTreeSet::new(),
        }
    }

    /// All frontends.
    pub(super) fn frontends(&self) -> impl Iterator<Item = (&FrontendKey, &Arc<Frontend>)> {
        self.buckets.values().flatten()
    }

    /// A frontend at an IPv4 loopback address is translated.
    pub(super) fn needs_localnet(&self) -> bool {
        self.family == Family::V4
            && self.frontends().any(|(key, f)| key.addr.is_loopback() && !f.backends.is_empty())
    }

    /// How much there is to sweep.
    pub(super) fn disorder(&self) -> usize {
        let base = self.base();
        let wrong = base.iter().filter(|(place, rules)| self.held.get(*place) != Some(&digest(rules)));
        let unneeded = self.held.keys().filter(|place| !base.contains_key(*place) && is_base(&place.1));
        let (missing, extra) = self.jumps_to_change();
        self.stale.len() + self.dirty.len() + wrong.count() + unneeded.count() + missing.len() + extra.len()
    }

    /// The input that carries out `plan`, or nothing where nothing has to change.
    pub(super) fn compile(&mut self, plan: &Plan) -> Option<String> {
        let mut edit = Edit::default();
        let mut touched = BTreeSet::new();
        let mut unused = BTreeMap::new();
        if let Some(host) = &plan.host {
            self.host = host.clone();
        }
        let family = self.family;
        let own = |key: &FrontendKey| Family::of(key.addr) == family;
        for (key, frontend) in plan.upserts.iter().filter(|(key, _)| own(key)) {
            touched.extend(self.take(key, &mut unused));
            let bucket = self.put(*key, Arc::clone(frontend), &mut edit);
            touched.extend([bucket, bucket.inside()]);
        }
        for key in plan.removals.iter().filter(|key| own(key)) {
            touched.extend(self.take(key, &mut unused).into_iter().flat_map(|b| [b, b.inside()]));
        }
        if plan.sweep {
            touched.append(&mut self.dirty);
            edit.delete.append(&mut self.stale);
        }
        for (choice, backends) in unused {
            self.drop_unused(&choice, &backends, &mut edit);
        }
        for bucket in touched {
            self.dirty.remove(&bucket);
            let (nat, filter) = self.rules_of(&bucket);
            self.hold((Table::Nat, bucket.chain()), nat, &mut edit);
            self.hold((Table::Filter, bucket.chain()), filter, &mut edit);
        }
        edit.everything_goes = self.buckets.is_empty();
        self.write_base(&mut edit);
        for place in edit.write.keys() {
            edit.delete.remove(place);
            self.stale.remove(place);
        }
        edit.render()
    }

    /// Adds a frontend; chains that it is the first to need are written.
    pub(super) fn put(&mut self, key: FrontendKey, frontend: Arc<Frontend>, edit: &mut Edit) -> Bucket {
        if let Some(choice) = Choice::of(key.protocol, &frontend) {
            let users = self.choices.entry(choice.chain()).or_insert_with(|| {
                edit.write.insert((Table::Nat, choice.chain()), choice.rules());
                for (chain, rules) in choice.backends() {
                    let users = self.backends.entry(chain.clone()).or_insert_with(|| {
                        edit.write.insert((Table::Nat, chain), rules);
                        0
                    });
                    *users += 1;
                }
                0
            });
            *users += 1;
        }
        let bucket = Bucket::of(&key, frontend.kind);
        self.buckets.entry(bucket).or_default().insert(key, frontend);
        bucket
    }

    /// Takes a frontend out. A choosing chain that nobody needs then is named in `unused`.
    fn take(&mut self, key: &FrontendKey, unused: &mut BTreeMap<String, Vec<String>>) -> Option<Bucket> {
        let kinds = [FrontendKind::NodePort, FrontendKind::ClusterIP];
        let (bucket, frontend) = kinds.into_iter().find_map(|kind| {
            let bucket = Bucket::of(key, kind);
            let held = self.buckets.get_mut(&bucket)?;
            let frontend = held.remove(key)?;
            if held.is_empty() {
                self.buckets.remove(&bucket);
            }
            Some((bucket, frontend))
        })?;
        if let Some(choice) = Choice::of(key.protocol, &frontend)
            && let Some(users) = self.choices.get_mut(&choice.chain())
        {
            *users = users.saturating_sub(1);
            if *users == 0 {
                unused.insert(choice.chain(), choice.backend_chains().collect());
            }
        }
        Some(bucket)
    }

    /// Deletes a choosing chain, unless someone has come to need it again, and what only it led to.
    fn drop_unused(&mut self, choice: &str, backends: &[String], edit: &mut Edit) {
        if self.choices.get(choice) != Some(&0) {
            return;
        }
        self.choices.remove(choice);
        edit.forget((Table::Nat, choice.to_owned()));
        for chain in backends {
            if let Some(users) = self.backends.get_mut(chain) {
                *users = users.saturating_sub(1);
                if *users == 0 {
                    self.backends.remove(chain);
                    edit.forget((Table::Nat, chain.clone()));
                }
            }
        }
    }

    /// What stands in a bucket, in `nat` and in `filter`.
    pub(super) fn rules_of(&self, bucket: &Bucket) -> (Vec<Rule>, Vec<Rule>) {
        let (mut nat, mut filter) = (Vec::new(), Vec::new());
        let mut cluster_ips: BTreeSet<IpAddr> = BTreeSet::new();
        for (key, frontend) in self.buckets.get(bucket).into_iter().flatten() {
            nat.extend(chains::translated(key, frontend, self.has_local_policy(key, frontend)));
            filter.extend(chains::refused(key, frontend));
            if frontend.kind == FrontendKind::ClusterIP {
                cluster_ips.insert(key.addr);
            }
        }
        filter.extend(cluster_ips.into_iter().flat_map(chains::undefined));
        (nat, filter)
    }

    /// At this address clients outside keep theirs.
    fn has_local_policy(&self, key: &FrontendKey, frontend: &Frontend) -> bool {
        let outside = FrontendKey { scope: Scope::External, ..*key };
        let bucket = self.buckets.get(&Bucket::of(&outside, frontend.kind));
        bucket.and_then(|held| held.get(&outside)).is_some_and(|outside| outside.preserve_source)
    }

    /// Has the kernel hold `rules` in a chain. A chain without rules is not held.
    fn hold(&mut self, place: (Table, String), rules: Vec<Rule>, edit: &mut Edit) {
        if rules.is_empty() {
            if self.held.remove(&place).is_some() {
                edit.delete.insert(place);
            }
            return;
        }
        let digest = digest(&rules);
        if self.held.insert(place.clone(), digest) != Some(digest) {
            edit.write.insert(place, rules);
        }
    }

    fn write_base(&mut self, edit: &mut Edit) {
        let base = self.base();
        let unneeded = self.held.keys().filter(|place| !base.contains_key(*place) && is_base(&place.1));
        let unneeded: Vec<(Table, String)> = unneeded.cloned().collect();
        for place in unneeded {
            self.hold(place, Vec::new(), edit);
        }
        for (place, rules) in base {
            if rules.is_empty() {
                // It is jumped to: it has to exist.
                if self.held.insert(place.clone(), digest(&[])) != Some(digest(&[])) {
                    edit.write.insert(place, rules);
                }
            } else {
                self.hold(place, rules, edit);
            }
        }
        let (missing, extra) = self.jumps_to_change();
        self.jumps.retain(|jump| !extra.contains(jump));
        self.jumps.extend(missing.iter().cloned());
        edit.insert = missing;
        edit.remove = extra;
    }

    /// Something of ours is to be there.
    fn installed(&self) -> bool {
        self.host != Host::default() || !self.buckets.is_empty()
    }

    /// The chains that all packets pass.
    fn base(&self) -> BTreeMap<(Table, String), Vec<Rule>> {
        let mut base = BTreeMap::new();
        if !self.installed() {
            return base;
        }
        for table in Table::ALL {
            for scope in [Scope::Internal, Scope::External] {
                let held = |bucket: &&Bucket| self.held.contains_key(&(table, bucket.chain()));
                let buckets = self.buckets.keys().filter(|bucket| bucket.scope() == scope).filter(held);
                let chain = if scope == Scope::Internal { "INTERNAL" } else { "EXTERNAL" };
                let rules = leave_open_ones().into_iter().chain(buckets.map(Bucket::dispatch));
                base.insert((table, format!("SEAWAY-{chain}")), rules.collect());
            }
        }
        let own = [
            (Table::Nat, "SEAWAY-PREROUTING", self.by_scope()),
            (Table::Nat, "SEAWAY-MASQ", masquerade()),
            (Table::Nat, chains::LOCALHOST, vec![mark(Rule::new())]),
            (Table::Nat, "SEAWAY-POSTROUTING", self.postrouting()),
            (Table::Filter, "SEAWAY-SERVICES", self.by_scope()),
            (Table::Filter, "SEAWAY-INPUT", self.input()),
            (Table::Filter, chains::FORWARD, forward()),
        ];
        base.extend(own.into_iter().map(|(table, name, rules)| ((table, name.to_owned()), rules)));
        base
    }

    /// Who comes through an uplink asks from outside.
    fn by_scope(&self) -> Vec<Rule> {
        let uplink = |device: &crate::plan::Device| {
            let rule = Rule::new().with("-i", &device.name);
            rule.comment(&format!("sw1 uplink {}", device.index)).with("-g", "SEAWAY-EXTERNAL")
        };
        let mut rules: Vec<Rule> = self.host.uplinks.iter().map(uplink).collect();
        rules.push(Rule::new().with("-j", "SEAWAY-INTERNAL"));
        rules
    }

    fn postrouting(&self) -> Vec<Rule> {
        let node = match self.family {
            Family::V4 => self.host.node_v4.map(IpAddr::V4),
            Family::V6 => self.host.node_v6.map(IpAddr::V6),
        };
        let name = node.map_or_else(|| "none".to_owned(), |addr| addr.to_string());
        let ports = format!("{}-{}", self.snat_ports.start(), self.snat_ports.end());
        let unmarked = Rule::new().comment(&format!("sw1 node {name}")).with("-m", "mark");
        let mut rules = vec![
            unmarked.without("--mark", chains::MARK).with("-j", "RETURN"),
            Rule::new().with("-j", "MARK").with("--set-xmark", chains::UNMARK),
        ];
        rules.extend(["tcp", "udp", "sctp"].map(|protocol| {
            let rule = Rule::new().with("-p", protocol);
            match node {
                Some(IpAddr::V4(addr)) => {
                    rule.with("-j", "SNAT").with("--to-source", format_args!("{addr}:{ports}"))
                }
                Some(IpAddr::V6(addr)) => {
                    rule.with("-j", "SNAT").with("--to-source", format_args!("[{addr}]:{ports}"))
                }
                // As long as the node's own address is not known.
                None => rule.with("-j", "MASQUERADE").with("--to-ports", &ports),
            }
        }));
        rules
    }

    fn input(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.needs_localnet() {
            // The switch that lets packets from loopback addresses be translated opens those addresses to the
            // links (CVE-2020-8558): nobody out there may use them.
            let rule = Rule::new().without("-i", "lo").with("-d", "127.0.0.0/8").with("-m", "conntrack");
            rules.push(rule.without("--ctstate", "RELATED,ESTABLISHED,DNAT").with("-j", "DROP"));
        }
        rules.push(new_connections().with("-j", "SEAWAY-SERVICES"));
        rules
    }

    fn wanted_jumps(&self) -> Vec<Jump> {
        if !self.installed() {
            return Vec::new();
        }
        let plain = |target| Rule::new().comment("sw1 services").with("-j", target);
        let own = [
            (Table::Nat, "PREROUTING", plain("SEAWAY-PREROUTING")),
            (Table::Nat, "OUTPUT", plain("SEAWAY-INTERNAL")),
            (Table::Nat, "POSTROUTING", plain("SEAWAY-POSTROUTING")),
            (Table::Filter, "INPUT", plain("SEAWAY-INPUT")),
            (Table::Filter, "FORWARD", plain("SEAWAY-FORWARD")),
            (
                Table::Filter,
                "OUTPUT",
                new_connections().comment("sw1 services").with("-j", "SEAWAY-INTERNAL"),
            ),
        ];
        own.map(|(table, chain, rule)| Jump { table, chain: chain.to_owned(), text: rule.to_string(), rule })
            .into()
    }

    /// Rules in chains of others that are missing, and those that are too many.
    fn jumps_to_change(&self) -> (Vec<Jump>, Vec<Jump>) {
        let same = |a: &Jump, b: &Jump| {
            a.table == b.table && a.chain == b.chain && a.rule.canonical() == b.rule.canonical()
        };
        let wanted = self.wanted_jumps();
        let missing = wanted.iter().filter(|w| !self.jumps.iter().any(|held| same(held, w)));
        let extra = self.jumps.iter().enumerate().filter(|(at, held)| {
            !wanted.iter().any(|w| same(held, w)) || self.jumps[..*at].iter().any(|former| same(former, held))
        });
        (missing.cloned().collect(), extra.map(|(_, held)| held.clone()).collect())
    }
}

/// What this node itself sends.
fn masquerade() -> Vec<Rule> {
    vec![mark(Rule::new().with("-m", "addrtype").with("--src-type", "LOCAL"))]
}

fn mark(rule: Rule) -> Rule {
    rule.with("-j", "MARK").with("--set-xmark", chains::MARK)
}

/// A connection that is not known and does not begin now, towards this node: one of its processes has it, such as a
/// worker of the userspace mode, since before there were these chains. Translated it would be reset.
fn leave_open_ones() -> [Rule; 1] {
    let tcp = Rule::new().with("-p", "tcp").with("-m", "tcp").with("--tcp-flags", "SYN NONE");
    [tcp.with("-m", "addrtype").with("--dst-type", "LOCAL").with("-j", "RETURN")]
}

fn forward() -> Vec<Rule> {
    // Packets that conntrack cannot place pass untranslated, and the client's answer to them would end its
    // connection (kubernetes#74839).
    let invalid = Rule::new().with("-m", "conntrack").with("--ctstate", "INVALID").with("-j", "DROP");
    vec![invalid, new_connections().with("-j", "SEAWAY-SERVICES")]
}

fn new_connections() -> Rule {
    Rule::new().with("-m", "conntrack").with("--ctstate", "NEW")
}

/// It is one of those that all packets pass, not a bucket.
pub(super) fn is_base(chain: &str) -> bool {
    let names = [
        "INTERNAL",
        "EXTERNAL",
        "PREROUTING",
        "MASQ",
        "LOCALHOST",
        "POSTROUTING",
        "SERVICES",
        "INPUT",
        "FORWARD",
    ];
    chain.strip_prefix(super::save::PREFIX).is_some_and(|name| names.contains(&name))
}
