//! What the watch room counts.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

/// The watch room's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    events: IntCounterVec,
    errors: IntCounterVec,
    invalid: IntCounterVec,
    version: IntGauge,
}

impl Metrics {
    /// Metrics registered with `registry`. Names that are taken already are counted apart, unseen.
    pub fn new(registry: &Registry) -> Self {
        let metrics = Self {
            events: counters("seaway_watch_events_total", "Watch events by kind"),
            errors: counters("seaway_watch_errors_total", "Failed lists and watches by kind"),
            invalid: counters("seaway_watch_invalid_objects_total", "Objects that were left out, by kind"),
            version: IntGauge::new(
                "seaway_watch_snapshot_version",
                "The version of the snapshot last published",
            )
            .expect("the name is a valid metric name"),
        };
        let all: [Box<dyn prometheus::core::Collector>; 4] = [
            Box::new(metrics.events.clone()),
            Box::new(metrics.errors.clone()),
            Box::new(metrics.invalid.clone()),
            Box::new(metrics.version.clone()),
        ];
        for collector in all {
            if let Err(error) = registry.register(collector) {
                tracing::warn!(%error, "a metric is not shown");
            }
        }
        metrics
    }

    pub(crate) fn events(&self, kind: &'static str, count: usize) {
        self.events.with_label_values(&[kind]).inc_by(count as u64);
    }

    pub(crate) fn error(&self, kind: &'static str) {
        self.errors.with_label_values(&[kind]).inc();
    }

    pub(crate) fn invalid(&self, kind: &'static str) {
        self.invalid.with_label_values(&[kind]).inc();
    }

    pub(crate) fn published(&self, version: u64) {
        self.version.set(i64::try_from(version).unwrap_or(i64::MAX));
    }
}

fn counters(name: &str, help: &str) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), &["kind"]).expect("name and label are valid")
}
