//! What may change while the server runs: the cluster's part of the configuration, and one [`ZoneSettings`] per zone that is
//! not the cluster's. They come from the command line, or from a file.

mod corefile;
mod files;
mod read;
mod values;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};

use crate::DnsConfig;
pub(crate) use files::Files;
pub use read::Problem;
pub(crate) use read::{load, load_strictly};
pub(crate) use values::name as domain;

/// Everything that a settings file may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The cluster's part.
    pub(crate) config: DnsConfig,
    /// Other zones; the one with the longest name that a question is in decides.
    pub(crate) zones: Vec<ZoneSettings>,
}

impl Settings {
    /// The settings of a configuration without a file: one zone, which is everything.
    pub(crate) fn of(config: &DnsConfig) -> Self {
        let upstreams = config.upstreams.iter().map(|&address| UpstreamSettings::plain(address)).collect();
        let forward = ForwardSettings { upstreams, ..ForwardSettings::of(config) };
        let root = ZoneSettings { forward: Some(forward), ..ZoneSettings::new(Name::root(), config) };
        Self { config: config.clone(), zones: vec![root] }
    }

    /// A hash of all that they say.
    pub(crate) fn version(&self) -> String {
        let mut hasher = DefaultHasher::new();
        format!("{self:?}").hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// What is at work for which zone, in the words that CoreDNS has for it.
    pub(crate) fn plugins(&self) -> Vec<(Name, &'static str)> {
        let (cluster, config) = (Name::from_ascii(&self.config.zone).unwrap_or_default(), &self.config);
        let mut all = vec![(absolute(cluster.clone()), "kubernetes"), (Name::root(), "prometheus")];
        all.extend(config.autopath.then(|| (absolute(cluster), "autopath")));
        all.extend(config.file.is_some().then(|| (Name::root(), "reload")));
        for zone in &self.zones {
            let forwards = zone.forward.is_some();
            let at_work = [
                ("forward", forwards),
                // A question that comes back to us joins the one that it came from.
                ("loop", forwards),
                ("cache", forwards && zone.cache.bytes_max > 0),
                ("hosts", !zone.hosts.entries.is_empty()),
                ("rewrite", !zone.rewrites.is_empty()),
                ("template", !zone.templates.is_empty()),
                ("log", zone.log != LogClasses::NONE),
            ];
            let at_work = at_work.into_iter().filter(|(_, is)| *is);
            all.extend(at_work.map(|(name, _)| (zone.name.clone(), name)));
        }
        all
    }
}

fn absolute(mut name: Name) -> Name {
    name.set_fqdn(true);
    name
}

/// A zone outside of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ZoneSettings {
    /// Its name; the root stands for everything.
    pub(crate) name: Name,
    /// Whom to ask; `None`: refused.
    pub(crate) forward: Option<ForwardSettings>,
    /// What is remembered.
    pub(crate) cache: CacheSettings,
    /// Addresses by name.
    pub(crate) hosts: HostsSettings,
    /// Names that are asked for under another one.
    pub(crate) rewrites: Vec<Rewrite>,
    /// Names that are answered with a code and nothing else.
    pub(crate) templates: Vec<Template>,
    /// Which answers are logged.
    pub(crate) log: LogClasses,
}

impl ZoneSettings {
    pub(crate) fn new(name: Name, config: &DnsConfig) -> Self {
        Self {
            name,
            forward: None,
            cache: CacheSettings::of(config),
            hosts: HostsSettings::default(),
            rewrites: Vec::new(),
            templates: Vec::new(),
            log: LogClasses::NONE,
        }
    }
}

/// Kinds of answers, as CoreDNS tells them apart for its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogClasses {
    pub(crate) success: bool,
    /// There is no such name, or nothing of the type.
    pub(crate) denial: bool,
    pub(crate) error: bool,
}

impl LogClasses {
    pub(crate) const NONE: Self = Self { success: false, denial: false, error: false };
    pub(crate) const ALL: Self = Self { success: true, denial: true, error: true };

    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            success: self.success || other.success,
            denial: self.denial || other.denial,
            error: self.error || other.error,
        }
    }

    /// Whether an answer is of one of these kinds.
    pub(crate) fn hold(self, code: ResponseCode, answers: usize) -> bool {
        match code {
            ResponseCode::NoError if answers > 0 => self.success,
            ResponseCode::NoError | ResponseCode::NXDomain => self.denial,
            _ => self.error,
        }
    }
}

/// Which upstream is asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Policy {
    /// The first that is well.
    #[default]
    Sequential,
    /// Each in its turn.
    RoundRobin,
    /// Any.
    Random,
}

/// An upstream resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UpstreamSettings {
    pub(crate) address: SocketAddr,
    /// Ask over TLS (RFC 7858).
    pub(crate) tls: bool,
    /// The name that its certificate has to have; `None`: what holds for all.
    pub(crate) tls_name: Option<String>,
}

impl UpstreamSettings {
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self { address, tls: false, tls_name: None }
    }
}

/// How upstreams are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForwardSettings {
    pub(crate) upstreams: Vec<UpstreamSettings>,
    pub(crate) policy: Policy,
    /// Ask over TCP at once.
    pub(crate) force_tcp: bool,
    /// The name that upstreams' certificates have to have; `None`: their address.
    pub(crate) tls_server_name: Option<String>,
    /// Certificates to trust, PEM; `None`: the system's.
    pub(crate) tls_ca: Option<PathBuf>,
    /// Failures in a row after which an upstream is asked last; 0: never.
    pub(crate) max_fails: u32,
    /// How often an upstream that fails is looked after.
    pub(crate) health_check: Duration,
    /// How long an idle connection is kept.
    pub(crate) expire: Duration,
    /// Questions that may be under way at once.
    pub(crate) max_concurrent: usize,
    /// How long one upstream has before the next is asked.
    pub(crate) attempt_timeout: Duration,
    /// How long all have together.
    pub(crate) timeout: Duration,
    /// Names that are not asked for.
    pub(crate) except: Vec<Name>,
}

impl ForwardSettings {
    pub(crate) fn of(config: &DnsConfig) -> Self {
        Self {
            upstreams: Vec::new(),
            policy: Policy::default(),
            force_tcp: false,
            tls_server_name: None,
            tls_ca: None,
            max_fails: 2,
            health_check: Duration::from_millis(500),
            expire: Duration::from_secs(10),
            max_concurrent: config.forward_in_flight_max,
            attempt_timeout: config.forward_attempt_timeout,
            timeout: config.forward_timeout,
            except: Vec::new(),
        }
    }
}

/// When an answer that is much asked for is fetched anew before it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prefetch {
    /// Hits…
    pub(crate) amount: u32,
    /// …with no pause between them that is longer…
    pub(crate) within: Duration,
    /// …in the last part of its time.
    pub(crate) percentage: u32,
}

/// When an answer past its time is better than none (RFC 8767).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServeStale {
    /// For how long after its end.
    pub(crate) keep: Duration,
    /// At once, while somebody asks anew; otherwise only where no upstream answers.
    pub(crate) immediate: bool,
    /// How long upstreams have before the old answer is given, where that is not at once; `None`: all their time.
    pub(crate) verify_timeout: Option<Duration>,
    /// The time to live that such an answer says.
    pub(crate) ttl: Duration,
}

/// Bounds and habits of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CacheSettings {
    /// Bytes of memory, about; 0: nothing is remembered.
    pub(crate) bytes_max: usize,
    pub(crate) ttl_min: Duration,
    pub(crate) ttl_max: Duration,
    pub(crate) negative_ttl_min: Duration,
    pub(crate) negative_ttl_max: Duration,
    /// How long a failure is remembered (RFC 9520).
    pub(crate) servfail_ttl: Duration,
    pub(crate) prefetch: Option<Prefetch>,
    pub(crate) serve_stale: Option<ServeStale>,
    /// Give times to live as upstream said them.
    pub(crate) keep_ttl: bool,
    /// Zones whose answers are not remembered.
    pub(crate) no_success: Vec<Name>,
    /// Zones of which it is not remembered that there is no answer.
    pub(crate) no_denial: Vec<Name>,
}

impl CacheSettings {
    pub(crate) fn of(config: &DnsConfig) -> Self {
        Self {
            bytes_max: config.cache_bytes,
            ttl_max: config.cache_ttl_max,
            negative_ttl_max: config.cache_negative_ttl_max,
            ..Self::default()
        }
    }
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            bytes_max: 8 << 20,
            ttl_min: Duration::ZERO,
            ttl_max: Duration::from_secs(3600),
            negative_ttl_min: Duration::ZERO,
            negative_ttl_max: Duration::from_secs(1800),
            servfail_ttl: Duration::from_secs(1),
            prefetch: Some(Prefetch { amount: 3, within: Duration::from_secs(60), percentage: 10 }),
            serve_stale: Some(ServeStale::default()),
            keep_ttl: false,
            no_success: Vec::new(),
            no_denial: Vec::new(),
        }
    }
}

impl Default for ServeStale {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(3600),
            immediate: false,
            verify_timeout: None,
            ttl: Duration::from_secs(30),
        }
    }
}

/// Addresses by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostsSettings {
    pub(crate) entries: Vec<(IpAddr, Name)>,
    /// The zones that it is about; none: all.
    pub(crate) zones: Vec<Name>,
    pub(crate) ttl_s: u32,
    /// Whether addresses lead back to names.
    pub(crate) reverse: bool,
    /// Zones in which a name that is not there is asked for elsewhere.
    pub(crate) fallthrough: Vec<Name>,
    /// And one that is there as well, for what is no address.
    pub(crate) passes_other_types: bool,
}

impl Default for HostsSettings {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            zones: Vec::new(),
            ttl_s: 3600,
            reverse: true,
            fallthrough: vec![Name::root()],
            passes_other_types: true,
        }
    }
}

/// Which names a rewrite is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matching {
    Exact,
    Prefix,
    Suffix,
    Substring,
    /// An expression, whose groups the other name may take up: `{1}`.
    Regex,
}

/// A name that is asked for under another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rewrite {
    pub(crate) matching: Matching,
    /// Lower case, but for an expression.
    pub(crate) from: String,
    pub(crate) to: String,
    /// The rules behind it are about the other name as well.
    pub(crate) goes_on: bool,
    /// What becomes of names in the answer.
    pub(crate) answers: Vec<AnswerRewrite>,
}

/// Names in answers that are told as other ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AnswerRewrite {
    /// Names in what records say, not those of the records.
    pub(crate) of_values: bool,
    /// An expression, whose groups the other name may take up.
    pub(crate) from: String,
    pub(crate) to: String,
}

/// Names that are answered with a code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    pub(crate) zones: Vec<Name>,
    /// `None`: all types.
    pub(crate) kind: Option<RecordType>,
    /// Expressions of which one has to match the name, in lower case and with its last dot; none: every name will do.
    pub(crate) matching: Vec<String>,
    /// Zones in which a name that none of them matches is looked up; otherwise it is a failure.
    pub(crate) fallthrough: Vec<Name>,
    pub(crate) code: ResponseCode,
}
