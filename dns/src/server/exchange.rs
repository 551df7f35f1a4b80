//! One question, whichever way it came: packet in, packet out, counted.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::sync::watch;
use tracing::info;

use super::{Shared, State};
use crate::handler::{Answered, Pending, Step};
use crate::metrics::{Count, Meter, Scope, Source, Transport};
use crate::wire::{Bare, Reject, Request, decode, encode};

/// The state as this task sees it: the newest one, taken over only when there is a newer, and with nothing in it that is
/// written for an answer and shared with other tasks.
pub(super) struct View {
    states: watch::Receiver<Arc<State>>,
    state: Arc<State>,
}

impl View {
    pub(super) fn new(states: &watch::Receiver<Arc<State>>) -> Self {
        let mut states = states.clone();
        let state = states.borrow_and_update().own().into();
        Self { states, state }
    }

    pub(super) fn newest(&mut self) -> &State {
        if self.states.has_changed().unwrap_or(false) {
            self.state = self.states.borrow_and_update().own().into();
        }
        &self.state
    }
}

/// What became of a packet.
pub(super) enum Outcome {
    /// The answer stands in the buffer.
    Reply,
    /// It is not to be answered.
    Silence,
    /// An upstream has to be asked.
    Later(Box<Later>),
}

/// A question that waits for an upstream.
pub(super) struct Later {
    request: Request,
    pending: Pending,
    began: Instant,
    from: (Transport, IpAddr),
}

/// Answers `packet` into `reply`, where that can be done at once. A panic costs this one answer.
pub(super) fn answer_now(
    shared: &Shared,
    view: &mut View,
    count: &mut impl Count,
    from: (Transport, IpAddr),
    packet: &[u8],
    reply: &mut Vec<u8>,
) -> Outcome {
    let attempt = AssertUnwindSafe(|| answer(shared, view, count, from, packet, reply));
    catch_unwind(attempt).unwrap_or_else(|_| {
        shared.metrics.panicked();
        Outcome::Silence
    })
}

fn answer(
    shared: &Shared,
    view: &mut View,
    count: &mut impl Count,
    (transport, client): (Transport, IpAddr),
    packet: &[u8],
    reply: &mut Vec<u8>,
) -> Outcome {
    let began = Instant::now();
    shared.asked(began);
    let request = match decode(packet) {
        Ok(request) => request,
        Err(Reject::Silently) => return Outcome::Silence,
        Err(Reject::With(bare)) => {
            count.request(Scope::Other, transport, RecordType::ZERO, packet.len(), false);
            reply.clear();
            reply.extend_from_slice(&bare.encode());
            count.response(Scope::Other, transport, (bare.code, Source::None), reply.len(), began.elapsed());
            return Outcome::Reply;
        }
    };
    let kind = request.query.query_type();
    let State { zone, handler, .. } = view.newest();
    match handler.begin(zone, &request, client, limit(&request, transport)) {
        Step::Done(answered) => {
            count.request(answered.scope, transport, kind, packet.len(), request.dnssec_ok());
            write(&request, &answered, count, (transport, client), began, reply);
            Outcome::Reply
        }
        Step::Later(pending) => {
            count.request(pending.scope, transport, kind, packet.len(), request.dnssec_ok());
            Outcome::Later(Box::new(Later { request, pending: *pending, began, from: (transport, client) }))
        }
    }
}

/// Asks upstream and writes the answer.
pub(super) async fn answer_later(mut meter: &Meter, later: Later) -> Vec<u8> {
    let Later { request, pending, began, from } = later;
    let answered = pending.finish().await;
    let mut reply = Vec::with_capacity(512);
    write(&request, &answered, &mut meter, from, began, &mut reply);
    reply
}

fn write(
    request: &Request,
    answered: &Answered,
    count: &mut impl Count,
    (transport, client): (Transport, IpAddr),
    began: Instant,
    reply: &mut Vec<u8>,
) {
    let limit = limit(request, transport);
    let mut code = answered.response.code;
    if encode(request, &answered.response, limit, reply).is_err() {
        code = ResponseCode::ServFail;
        reply.clear();
        reply.extend_from_slice(&Bare::answering(request, code).encode());
    }
    let took = began.elapsed();
    count.response(answered.scope, transport, (code, answered.source), reply.len(), took);
    if answered.log {
        info!(
            target: "access", %client, question = %request.query, ?code, bytes = reply.len(), ?took, "answered"
        );
    }
}

/// The longest answer that the client takes.
fn limit(request: &Request, transport: Transport) -> u16 {
    match transport {
        Transport::Udp => request.udp_limit(),
        Transport::Tcp => u16::MAX,
    }
}
