//! The server without sockets: packets in, packets out, for benches and for the fuzzer.

use std::net::IpAddr;
use std::sync::Arc;

use seaway_model::Snapshot;

use crate::handler::{Handler, Step};
use crate::settings::Settings;
use crate::wire::{Bare, Reject, Request, decode, encode};
use crate::zone::Zone;
use crate::{DnsConfig, DnsError, Metrics};

/// Answers packets from one snapshot, asking nobody.
#[derive(Debug)]
pub struct Responder {
    zone: Arc<Zone>,
    handler: Arc<Handler>,
}

impl Responder {
    /// A responder for `snapshot`. Upstreams of `config` are left out.
    ///
    /// # Errors
    /// When the configuration contradicts itself.
    pub fn new(config: &DnsConfig, snapshot: &Arc<Snapshot>, metrics: &Metrics) -> Result<Self, DnsError> {
        let config = DnsConfig { upstreams: Vec::new(), file: None, ..config.clone() };
        let mut zone = Zone::new(&config)?;
        zone.update(snapshot);
        let handler = Handler::new(&Settings::of(&config), None, &[], metrics)?;
        Ok(Self { zone: Arc::new(zone), handler: Arc::new(handler) })
    }

    /// Writes the answer to a packet that came over UDP into `reply`. Whether there is one.
    pub fn respond(&self, packet: &[u8], client: IpAddr, reply: &mut Vec<u8>) -> bool {
        self.respond_within(packet, client, Request::udp_limit, reply)
    }

    /// The same for a packet that came over TCP.
    pub fn respond_over_tcp(&self, packet: &[u8], client: IpAddr, reply: &mut Vec<u8>) -> bool {
        self.respond_within(packet, client, |_| u16::MAX, reply)
    }

    fn respond_within(
        &self,
        packet: &[u8],
        client: IpAddr,
        limit: impl FnOnce(&Request) -> u16,
        reply: &mut Vec<u8>,
    ) -> bool {
        reply.clear();
        let request = match decode(packet) {
            Ok(request) => request,
            Err(Reject::Silently) => return false,
            Err(Reject::With(bare)) => {
                reply.extend_from_slice(&bare.encode());
                return true;
            }
        };
        let limit = limit(&request);
        let Step::Done(answered) = self.handler.begin(&self.zone, &request, client, limit) else {
            return false;
        };
        if encode(&request, &answered.response, limit, reply).is_err() {
            reply.clear();
            let code = hickory_proto::op::ResponseCode::ServFail;
            reply.extend_from_slice(&Bare::answering(&request, code).encode());
        }
        true
    }
}
