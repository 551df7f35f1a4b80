//! Steady load: requests at a fixed rate, whatever becomes of them, and a summary line now and then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::probe::{self, Kind, ProbeRequest, ProbeResult};
use crate::process::say;

/// Requests that may be under way at once; beyond it a request counts as failed without being sent.
const IN_FLIGHT_MAX: usize = 512;

/// How much load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) rate_per_s: f64,
    pub(super) report: Duration,
    pub(super) keep_alive: bool,
}

#[derive(Default)]
struct Window {
    good: u64,
    failed: u64,
    latencies_us: Vec<u64>,
    answered_by: BTreeMap<String, u64>,
    first_error: Option<String>,
}

impl Window {
    fn add(&mut self, result: ProbeResult) {
        self.good += u64::from(result.good);
        self.failed += u64::from(result.failed);
        self.latencies_us.extend(result.attempts.iter().filter(|a| a.ok).map(|a| a.latency_us));
        for (pod, count) in result.answered_by {
            *self.answered_by.entry(pod).or_default() += u64::from(count);
        }
        if self.first_error.is_none() {
            self.first_error = result.message;
        }
    }

    fn line(&mut self, target: &str) -> String {
        self.latencies_us.sort_unstable();
        let at = |percent: usize| match self.latencies_us.len() {
            0 => 0,
            count => self.latencies_us[(count - 1) * percent / 100],
        };
        let mut line = format!(
            "load {target}: good={} failed={} pods={} p50_us={} p99_us={}",
            self.good,
            self.failed,
            self.answered_by.len(),
            at(50),
            at(99)
        );
        if let Some(error) = &self.first_error {
            line = format!("{line} first_error={error:?}");
        }
        line
    }
}

/// Sends requests to `target` until `stop`. One request opens one connection, unless `keep_alive`: then requests go one
/// after the other over one connection per reporting window.
pub(super) async fn run(plan: Plan, target: String, stop: CancellationToken) {
    let window = Arc::new(Mutex::new(Window::default()));
    let under_way = TaskTracker::new();
    let mut report = interval_at(Instant::now() + plan.report, plan.report);
    let per_tick = if plan.keep_alive { plan.report.as_secs_f64() } else { 1.0 / plan.rate_per_s };
    let mut tick = interval(Duration::from_secs_f64(per_tick));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = report.tick() => {
                let mut ended = std::mem::take(&mut *lock(&window));
                say(&ended.line(&target));
            }
            _ = tick.tick() => {
                if under_way.len() >= IN_FLIGHT_MAX {
                    let mut window = lock(&window);
                    window.failed += 1;
                    window.first_error.get_or_insert_with(|| format!("{IN_FLIGHT_MAX} requests are under way"));
                    continue;
                }
                let (request, window) = (request(plan, &target), Arc::clone(&window));
                under_way.spawn(async move {
                    let result = probe::execute(request).await;
                    lock(&window).add(result);
                });
            }
        }
    }
    let mut last = std::mem::take(&mut *lock(&window));
    say(&last.line(&target));
}

fn request(plan: Plan, target: &str) -> ProbeRequest {
    let mut request = ProbeRequest::new(Kind::Http, target);
    if plan.keep_alive {
        let count = (plan.rate_per_s * plan.report.as_secs_f64()).max(1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounded by the checked rate"
        )]
        {
            request.count = count as u32;
            request.interval_ms = (1000.0 / plan.rate_per_s) as u64;
        }
        request.keep_alive = true;
    }
    request
}

fn lock(window: &Mutex<Window>) -> std::sync::MutexGuard<'_, Window> {
    window.lock().unwrap_or_else(PoisonError::into_inner)
}
