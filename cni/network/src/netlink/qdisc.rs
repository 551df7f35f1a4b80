//! Queueing disciplines, as far as we need them: a token bucket that limits what a link sends.
//!
//! The library has no types for it, so its attributes are written here byte by byte (`linux/pkt_sched.h`).

use netlink_packet_core::{DefaultNla, Nla, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcHeader, TcMessage, TcOption};

use super::{Netlink, Request, Result, Write};

const KIND: &str = "tbf";
/// `TCA_OPTIONS`
const OPTIONS: u16 = 2;
/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64`, `TCA_TBF_BURST`
const PARMS: u16 = 1;
const RATE64: u16 = 4;
const BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: the kernel computes times itself and needs no table from us.
const LINK_LAYER_ETHERNET: u8 = 1;
/// For how long packets may wait: what does not fit is dropped, and TCP slows down.
const LATENCY_MS: u64 = 25;
/// How much of a burst may wait beyond that, which has come at once. Runtimes give bursts of half a gigabyte: if as much
/// could wait, it would for minutes.
const WAITING_BURST: u32 = 256 * 1024;

/// A limit on what a link sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes per second.
    pub rate_bytes: u64,
    /// How many bytes may go at once after a pause.
    pub burst_bytes: u32,
}

impl Netlink {
    /// Limits what a link sends, in place of whatever its root queue was.
    pub fn set_token_bucket(&mut self, link: u32, bucket: &TokenBucket) -> Result<()> {
        self.execute(Request::set_token_bucket(link, bucket))
    }

    /// Whether a token bucket limits what a link sends, and to which rate.
    pub fn token_bucket_rate(&mut self, link: u32) -> Result<Option<u64>> {
        let query = RouteNetlinkMessage::GetQueueDiscipline(message(link));
        let answers = self.dump(query, &format_args!("queues of link {link}"))?;
        let mut rates = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(queue) => rate_of(link, &queue),
            _ => None,
        });
        Ok(rates.next_back())
    }
}

impl Request {
    /// See [`Netlink::set_token_bucket`].
    pub fn set_token_bucket(link: u32, bucket: &TokenBucket) -> Self {
        let mut message = message(link);
        message.attributes.push(TcAttribute::Kind(KIND.to_owned()));
        message.attributes.push(TcAttribute::Other(DefaultNla::new(OPTIONS, bucket.options())));
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        Self::new(message, Write::Replace, "set", format!("token bucket on link {link}"))
    }
}

fn message(link: u32) -> TcMessage {
    let index = i32::try_from(link).unwrap_or(i32::MAX);
    let header = TcHeader { index, parent: TcHandle::ROOT, ..TcHeader::default() };
    let mut message = TcMessage::default();
    message.header = header;
    message
}

fn rate_of(link: u32, queue: &TcMessage) -> Option<u64> {
    if u32::try_from(queue.header.index) != Ok(link) {
        return None;
    }
    let is_ours = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == KIND);
    queue.attributes.iter().any(is_ours).then_some(())?;
    let options = queue.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let mut rate = 0;
    // The options of a kind that the library does not know are one attribute with all of them inside.
    for option in options.into_iter().flatten() {
        let TcOption::Other(nested) = option else { continue };
        let nested = value_of(nested);
        for attribute in NlasIterator::new(nested.as_slice()).flatten() {
            let value = attribute.value();
            match attribute.kind() {
                RATE64 => rate = value.try_into().map_or(rate, u64::from_ne_bytes),
                PARMS if rate == 0 => {
                    let bytes = value.get(8..12).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
                    rate = bytes.map_or(rate, |bytes| u64::from(u32::from_ne_bytes(bytes)));
                }
                _ => {}
            }
        }
    }
    Some(rate)
}

fn value_of(attribute: &DefaultNla) -> Vec<u8> {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    value
}

impl TokenBucket {
    /// `struct tc_tbf_qopt`, and beside it what is wider than its fields.
    fn options(&self) -> Vec<u8> {
        let in_flight = self.rate_bytes.saturating_mul(LATENCY_MS) / 1000;
        let limit = u32::try_from(in_flight.saturating_add(u64::from(self.burst_bytes.min(WAITING_BURST))))
            .unwrap_or(u32::MAX);
        let rate = u32::try_from(self.rate_bytes).unwrap_or(u32::MAX);
        // struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate; then the same as the peak rate,
        // which there is none of; limit, buffer (superseded by TCA_TBF_BURST) and mtu.
        let mut parms = vec![0, LINK_LAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
        parms.extend(rate.to_ne_bytes());
        parms.extend([0; 12]);
        parms.extend(limit.to_ne_bytes());
        parms.extend([0; 8]);
        let mut options = Vec::new();
        attribute(&mut options, PARMS, &parms);
        attribute(&mut options, RATE64, &self.rate_bytes.to_ne_bytes());
        attribute(&mut options, BURST, &self.burst_bytes.to_ne_bytes());
        options
    }
}

/// An attribute whose length is a multiple of four, so that it needs no padding.
fn attribute(options: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    options.extend(length.to_ne_bytes());
    options.extend(kind.to_ne_bytes());
    options.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_are_laid_out_as_the_kernel_reads_them() {
        let bucket = TokenBucket { rate_bytes: 1_000_000, burst_bytes: 20_000 };
        let options = bucket.options();
        assert_eq!(options.len(), (4 + 36) + (4 + 8) + (4 + 4));
        assert_eq!(options[12..16], 1_000_000_u32.to_ne_bytes(), "the rate");
        assert_eq!(options[28..32], 45_000_u32.to_ne_bytes(), "25 ms and the burst");
        let bursting = TokenBucket { rate_bytes: 1_000_000, burst_bytes: u32::MAX / 8 }.options();
        assert_eq!(bursting[28..32], (25_000_u32 + 262_144).to_ne_bytes(), "not the whole of the burst");
        let wide = TokenBucket { rate_bytes: 100_000_000_000, burst_bytes: 1 }.options();
        assert_eq!(wide[12..16], u32::MAX.to_ne_bytes());
        assert_eq!(wide[44..52], 100_000_000_000_u64.to_ne_bytes());
    }
}
