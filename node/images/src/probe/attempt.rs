//! Runs the attempts of a probe and adds up what came of them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::result::ATTEMPTS_KEPT;
use super::{Attempt, ErrorKind, Kind, LatencyUs, ProbeRequest, ProbeResult, dns, hold, http, tcp, udp};

/// Why one attempt failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    pub(super) message: String,
    /// What of the attempt is worth telling nevertheless.
    pub(super) attempt: Option<Box<Attempt>>,
}

impl Failure {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), attempt: None }
    }

    /// `doing` failed with an I/O error.
    pub(super) fn io(doing: impl fmt::Display, error: &io::Error) -> Self {
        Self::new(ErrorKind::of(error), format!("{doing}: {error}"))
    }
}

/// What a parallel line keeps from one attempt to the next.
#[derive(Default)]
struct Session {
    tcp: Option<tcp::Connection>,
    udp: Option<udp::Socket>,
    http: Option<http::Connection>,
    opened: u32,
}

impl Session {
    async fn attempt(&mut self, request: &ProbeRequest) -> Result<Attempt, Failure> {
        match request.kind {
            Kind::Tcp => tcp::attempt(request, &mut self.tcp).await,
            Kind::Udp => udp::attempt(request, &mut self.udp).await,
            Kind::Http => http::attempt(request, &mut self.http).await,
            Kind::Dns => dns::attempt(request).await,
            Kind::Hold => hold::attempt(request, &mut self.tcp, &mut self.opened).await,
        }
    }
}

/// Sums over the attempts.
#[derive(Default)]
struct Tally {
    result: ProbeResult,
    latencies_us: Vec<u64>,
    last_good_us: Option<u64>,
}

impl Tally {
    fn add(&mut self, attempt: Attempt) {
        let result = &mut self.result;
        if attempt.ok {
            result.good += 1;
            self.latencies_us.push(attempt.latency_us);
            let ended_us = attempt.at_us + attempt.latency_us;
            if let Some(last) = self.last_good_us {
                result.longest_gap_us = result.longest_gap_us.max(ended_us.saturating_sub(last));
            }
            self.last_good_us = Some(ended_us);
        } else {
            result.failed += 1;
            *result.errors.entry(attempt.error.unwrap_or(ErrorKind::Other)).or_default() += 1;
            if result.message.is_none() {
                result.message.clone_from(&attempt.message);
            }
        }
        if let Some(pod) = attempt.reply.as_deref().and_then(answering_pod) {
            *result.answered_by.entry(pod).or_default() += 1;
        }
        if result.attempts.len() < ATTEMPTS_KEPT {
            result.attempts.push(attempt);
        }
    }

    fn finish(mut self, duration: Duration) -> ProbeResult {
        self.latencies_us.sort_unstable();
        let at = |percent: usize| self.latencies_us[(self.latencies_us.len() - 1) * percent / 100];
        let latency_us = (!self.latencies_us.is_empty()).then(|| LatencyUs {
            min: at(0),
            p50: at(50),
            p99: at(99),
            max: at(100),
        });
        ProbeResult {
            ok: self.result.failed == 0 && self.result.good > 0,
            duration_us: micros(duration),
            latency_us,
            ..self.result
        }
    }
}

/// The name of the pod in an answer of `seaway/echo`: its first line is a JSON object.
fn answering_pod(reply: &str) -> Option<String> {
    let line = reply.lines().next().filter(|line| line.starts_with('{'))?;
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    value.get("pod")?.as_str().map(str::to_owned)
}

pub(super) async fn execute(request: ProbeRequest) -> ProbeResult {
    if let Some(mistake) = request.mistake() {
        return ProbeResult::not_run(ErrorKind::Invalid, mistake);
    }
    let start = Instant::now();
    let line = Arc::new(Line { request, next: AtomicU32::new(0), tally: Mutex::default(), start });
    let mut lines = JoinSet::new();
    for _ in 0..line.request.parallel.min(line.request.count) {
        lines.spawn(Arc::clone(&line).run());
    }
    while lines.join_next().await.is_some() {}
    let tally = std::mem::take(&mut *line.tally.lock().unwrap_or_else(PoisonError::into_inner));
    tally.finish(start.elapsed())
}

/// What the parallel lines of a probe share.
struct Line {
    request: ProbeRequest,
    next: AtomicU32,
    tally: Mutex<Tally>,
    start: Instant,
}

impl Line {
    async fn run(self: Arc<Self>) {
        let interval = Duration::from_millis(self.request.interval_ms);
        let mut session = Session::default();
        while self.next.fetch_add(1, Ordering::Relaxed) < self.request.count {
            let began = Instant::now();
            let attempt = self.attempt(&mut session, began).await;
            {
                let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
                tally.add(attempt);
            }
            if !interval.is_zero() && self.next.load(Ordering::Relaxed) < self.request.count {
                sleep_until(began + interval).await;
            }
        }
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.result.reconnects += session.opened.saturating_sub(1);
    }

    async fn attempt(&self, session: &mut Session, began: Instant) -> Attempt {
        let timeout_ms = self.request.timeout_ms;
        let ended = match timeout(Duration::from_millis(timeout_ms), session.attempt(&self.request)).await {
            Ok(ended) => ended,
            Err(_) => Err(Failure::new(
                ErrorKind::Timeout,
                format!("no answer from {} within {timeout_ms} ms", self.request.target),
            )),
        };
        let attempt = match ended {
            Ok(attempt) => Attempt { ok: true, ..attempt },
            Err(failure) => Attempt {
                ok: false,
                error: Some(failure.kind),
                message: Some(failure.message),
                ..failure.attempt.map(|attempt| *attempt).unwrap_or_default()
            },
        };
        Attempt {
            at_us: micros(began.duration_since(self.start)),
            latency_us: micros(began.elapsed()),
            ..attempt
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
