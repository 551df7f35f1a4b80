//! What one thread has counted and not yet told: counters that threads share make them wait for each other, and a dozen of
//! them for each answer cost more than the answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use prometheus::local::LocalHistogram;

use super::meter::{CODES, Count, Meter, Scope, Source, TYPES, Transport, as_f64, code_at, type_at};

/// What is counted is told after so long, or after so many answers.
const TELL_AFTER: Duration = Duration::from_millis(100);
const TELL_AT: u32 = 4096;

/// Counts of one thread.
pub(crate) struct Tally {
    meter: Arc<Meter>,
    requests: [[[u32; TYPES.len() + 1]; Transport::ALL.len()]; Scope::ALL.len()],
    responses: [[[u32; CODES]; Source::ALL.len()]; Scope::ALL.len()],
    do_requests: [u32; Scope::ALL.len()],
    durations: [Option<LocalHistogram>; Scope::ALL.len()],
    request_sizes: [[Option<LocalHistogram>; Transport::ALL.len()]; Scope::ALL.len()],
    response_sizes: [[Option<LocalHistogram>; Transport::ALL.len()]; Scope::ALL.len()],
    untold: u32,
    told: Instant,
}

impl Tally {
    pub(crate) fn new(meter: Arc<Meter>) -> Self {
        Self {
            meter,
            requests: Default::default(),
            responses: Default::default(),
            do_requests: Default::default(),
            durations: Default::default(),
            request_sizes: Default::default(),
            response_sizes: Default::default(),
            untold: 0,
            told: Instant::now(),
        }
    }

    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Tells what has been counted, if that is much or long ago.
    pub(crate) fn tell_sometimes(&mut self) {
        if self.untold >= TELL_AT || self.untold > 0 && self.told.elapsed() >= TELL_AFTER {
            self.tell();
        }
    }

    /// Tells what has been counted.
    pub(crate) fn tell(&mut self) {
        if self.untold == 0 {
            return;
        }
        (self.untold, self.told) = (0, Instant::now());
        for scope in Scope::ALL {
            let at = scope as usize;
            for transport in Transport::ALL {
                for (type_at, count) in self.requests[at][transport as usize].iter_mut().enumerate() {
                    if *count > 0 {
                        self.meter.requests(scope, transport, type_at).inc_by(std::mem::take(count).into());
                    }
                }
            }
            for source in Source::ALL {
                for (code_at, count) in self.responses[at][source as usize].iter_mut().enumerate() {
                    if *count > 0 {
                        self.meter.responses(scope, source, code_at).inc_by(std::mem::take(count).into());
                    }
                }
            }
            if self.do_requests[at] > 0 {
                self.meter.do_requests(scope).inc_by(std::mem::take(&mut self.do_requests[at]).into());
            }
        }
        let sizes = self.request_sizes.iter().chain(&self.response_sizes).flatten();
        self.durations.iter().chain(sizes).flatten().for_each(LocalHistogram::flush);
    }
}

impl Count for Tally {
    fn request(
        &mut self,
        scope: Scope,
        transport: Transport,
        kind: RecordType,
        size: usize,
        dnssec_ok: bool,
    ) {
        self.untold += 1;
        self.requests[scope as usize][transport as usize][type_at(kind)] += 1;
        self.do_requests[scope as usize] += u32::from(dnssec_ok);
        self.request_sizes[scope as usize][transport as usize]
            .get_or_insert_with(|| self.meter.request_sizes(scope, transport).local())
            .observe(as_f64(size));
    }

    fn response(
        &mut self,
        scope: Scope,
        transport: Transport,
        (code, source): (ResponseCode, Source),
        size: usize,
        took: Duration,
    ) {
        self.responses[scope as usize][source as usize][code_at(code)] += 1;
        self.durations[scope as usize]
            .get_or_insert_with(|| self.meter.durations(scope).local())
            .observe(took.as_secs_f64());
        self.response_sizes[scope as usize][transport as usize]
            .get_or_insert_with(|| self.meter.response_sizes(scope, transport).local())
            .observe(as_f64(size));
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.tell();
    }
}
