//! What passed through each Service and backend, as metrics. The kernel counts (per CPU); this names what it counted.
//!
//! **Invariant:** there are never more than [`SERIES_MAX`] backends on the page, however many there are: the first by
//! name are shown, and how many are not is shown, too.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGauge, Opts};
use tokio::sync::watch;

use crate::dataplane::DataplaneError;
use crate::frontend::{Group, Owner};
use crate::sockets::View;

/// The most backends that are shown.
pub const SERIES_MAX: usize = 2048;
const LABELS: [&str; 4] = ["namespace", "service", "port", "backend"];

/// What a data plane counted for one backend of one Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// The Service port.
    pub group: Group,
    /// The backend.
    pub backend: (IpAddr, u16),
    /// Connections that were given it.
    pub connections: u64,
    /// Packets towards it.
    pub packets_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Packets that it sent.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
}

/// Where a data plane keeps what it counts. It may be asked at any time, from any thread.
pub trait TrafficTable: Send + Sync {
    /// Everything that it counted.
    fn traffic(&self) -> Result<Vec<Traffic>, DataplaneError>;
}

struct Source {
    table: Box<dyn TrafficTable>,
    views: watch::Receiver<View>,
}

/// Collects at the moment when somebody asks.
#[derive(Clone)]
pub(crate) struct TrafficCollector {
    source: Arc<Mutex<Option<Source>>>,
    descriptions: Arc<Vec<Desc>>,
}

impl std::fmt::Debug for TrafficCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TrafficCollector")
    }
}

impl TrafficCollector {
    pub(crate) fn new() -> Self {
        let page = Page::new();
        let descriptions = page.collectors().iter().flat_map(|c| c.desc()).cloned().collect();
        Self { source: Arc::default(), descriptions: Arc::new(descriptions) }
    }

    /// From now on `table` is shown, with the names that `views` know.
    pub(crate) fn show(&self, table: Box<dyn TrafficTable>, views: watch::Receiver<View>) {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        *source = Some(Source { table, views });
    }
}

impl Collector for TrafficCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(source) = source.as_ref() else { return Vec::new() };
        let traffic = match source.table.traffic() {
            Ok(traffic) => traffic,
            Err(error) => {
                tracing::warn!(%error, "cannot read what was counted per backend");
                return Vec::new();
            }
        };
        let view = source.views.borrow();
        let owners: HashMap<Group, &Owner> =
            view.desired.frontends.values().map(|entry| (entry.frontend.group, &entry.owner)).collect();
        let page = Page::new();
        page.fill(&traffic, &owners, SERIES_MAX);
        page.collectors().iter().flat_map(|collector| collector.collect()).collect()
    }
}

/// The metrics, filled anew for every page.
struct Page {
    connections: IntCounterVec,
    packets: [IntCounterVec; 2],
    bytes: [IntCounterVec; 2],
    hidden: IntGauge,
}

impl Page {
    fn new() -> Self {
        let counters = |name: &str, help: &str| {
            IntCounterVec::new(Opts::new(name, help), &LABELS).expect("name and labels are valid")
        };
        Self {
            connections: counters(
                "seaway_proxy_backend_connections_total",
                "Connections that were given a backend",
            ),
            packets: [
                counters("seaway_proxy_backend_received_packets_total", "Packets from outside to a backend"),
                counters(
                    "seaway_proxy_backend_sent_packets_total",
                    "Packets of a backend to clients outside",
                ),
            ],
            bytes: [
                counters("seaway_proxy_backend_received_bytes_total", "Bytes from outside to a backend"),
                counters("seaway_proxy_backend_sent_bytes_total", "Bytes of a backend to clients outside"),
            ],
            hidden: IntGauge::new(
                "seaway_proxy_backend_series_hidden",
                "Backends that are counted and not shown",
            )
            .expect("the name is valid"),
        }
    }

    fn collectors(&self) -> [&dyn Collector; 6] {
        let ([packets_in, packets_out], [bytes_in, bytes_out]) = (&self.packets, &self.bytes);
        [&self.connections, packets_in, packets_out, bytes_in, bytes_out, &self.hidden]
    }

    /// Shows the first `most` by name.
    fn fill(&self, traffic: &[Traffic], owners: &HashMap<Group, &Owner>, most: usize) {
        let named = traffic.iter().filter_map(|counted| Some((*owners.get(&counted.group)?, counted)));
        let sorted: BTreeMap<_, &Traffic> = named
            .map(|(owner, counted)| ((&owner.service, &owner.port_name, counted.backend), counted))
            .collect();
        self.hidden.set(i64::try_from(sorted.len().saturating_sub(most)).unwrap_or(i64::MAX));
        for ((service, port, backend), counted) in sorted.into_iter().take(most) {
            let backend = SocketAddr::new(backend.0, backend.1).to_string();
            let labels: [&str; 4] = [&service.namespace, &service.name, port, &backend];
            self.connections.with_label_values(&labels).inc_by(counted.connections);
            let pairs = [
                (&self.packets, [counted.packets_in, counted.packets_out]),
                (&self.bytes, [counted.bytes_in, counted.bytes_out]),
            ];
            for (counters, values) in pairs {
                for (counter, value) in counters.iter().zip(values) {
                    counter.with_label_values(&labels).inc_by(value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder as _, Registry, TextEncoder};
    use seaway_model::ServiceKey;

    use super::*;

    fn counted(group: u64, last: u8) -> Traffic {
        Traffic {
            group: Group::from_bits(group),
            backend: ([10, 0, 0, last].into(), 8080),
            connections: 1,
            packets_in: 2,
            bytes_in: 300,
            packets_out: 4,
            bytes_out: 500,
        }
    }

    fn page(traffic: &[Traffic], most: usize) -> Vec<String> {
        let owner = |name: &str| Owner { service: ServiceKey::new("shop", name), port_name: "http".into() };
        let (web, api) = (owner("web"), owner("api"));
        let owners = HashMap::from([(Group::from_bits(1), &web), (Group::from_bits(2), &api)]);
        let page = Page::new();
        page.fill(traffic, &owners, most);
        let families: Vec<_> = page.collectors().iter().flat_map(|collector| collector.collect()).collect();
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn what_was_counted_has_names() {
        let lines = page(&[counted(1, 1), counted(9, 1)], 8);
        let labels = r#"{backend="10.0.0.1:8080",namespace="shop",port="http",service="web"}"#;
        let wanted = [
            ("connections", 1),
            ("received_packets", 2),
            ("sent_packets", 4),
            ("received_bytes", 300),
            ("sent_bytes", 500),
        ];
        let wanted = wanted.map(|(what, value)| format!("seaway_proxy_backend_{what}_total{labels} {value}"));
        assert_eq!(lines[..5], wanted);
        assert_eq!(lines[5..], ["seaway_proxy_backend_series_hidden 0"], "what has no owner is not shown");
    }

    #[test]
    fn the_page_is_bounded_and_always_shows_the_same() {
        let all: Vec<Traffic> = (0..100).map(|last| counted(1 + u64::from(last % 2), last)).collect();
        let mut backwards = all.clone();
        backwards.reverse();
        let (first, second) = (page(&all, 10), page(&backwards, 10));
        assert_eq!(first, second);
        assert_eq!(first.len(), 5 * 10 + 1);
        assert_eq!(first[50], "seaway_proxy_backend_series_hidden 90");
    }

    #[test]
    fn a_collector_without_a_source_shows_nothing() {
        let registry = Registry::new();
        registry.register(Box::new(TrafficCollector::new())).unwrap();
        assert!(registry.gather().is_empty());
    }
}
