//! Between packets and questions: decoding that takes anything, encoding that fits what the client can take.

mod write;

use std::sync::Arc;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};
use tracing::debug;

use write::{WriteError, Writer};

/// The UDP payload that we offer and use at most: fits an IPv6 packet that no link fragments (DNS flag day 2020).
pub(crate) const UDP_PAYLOAD_MAX: u16 = 1232;
/// What a client takes that says nothing about it.
const UDP_PAYLOAD_MIN: u16 = 512;
const HEADER_BYTES: usize = 12;
/// An OPT record without options.
const OPT_BYTES: u16 = 11;

/// A well-formed question.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) id: u16,
    pub(crate) recursion_desired: bool,
    pub(crate) checking_disabled: bool,
    /// The client understands that an answer is authentic, or not.
    pub(crate) authentic_data: bool,
    pub(crate) query: Query,
    pub(crate) edns: Option<ClientEdns>,
}

/// What the client's OPT record says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientEdns {
    pub(crate) version: u8,
    pub(crate) payload: u16,
    pub(crate) dnssec_ok: bool,
}

impl Request {
    pub(crate) fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// The longest UDP answer that the client takes.
    pub(crate) fn udp_limit(&self) -> u16 {
        self.edns.map_or(UDP_PAYLOAD_MIN, |edns| edns.payload.clamp(UDP_PAYLOAD_MIN, UDP_PAYLOAD_MAX))
    }
}

/// What is no question to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reject {
    /// Not to be answered: too short to have an id, or itself an answer (two servers must not talk in circles).
    Silently,
    /// To be answered with no more than a header.
    With(Bare),
}

/// An answer that is only a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bare {
    id: [u8; 2],
    /// The flags' first octet of the question: opcode and RD come back.
    flags: u8,
    pub(crate) code: ResponseCode,
}

impl Bare {
    /// The packet.
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        const RESPONSE: u8 = 0x80;
        const OPCODE_AND_RD: u8 = 0x79;
        let mut packet = [0; HEADER_BYTES];
        packet[..2].copy_from_slice(&self.id);
        packet[2] = RESPONSE | self.flags & OPCODE_AND_RD;
        packet[3] = self.code.low();
        packet
    }

    pub(crate) fn answering(request: &Request, code: ResponseCode) -> Self {
        Self { id: request.id.to_be_bytes(), flags: u8::from(request.recursion_desired), code }
    }
}

/// Reads a question.
pub(crate) fn decode(packet: &[u8]) -> Result<Request, Reject> {
    let [high, low, flags, more_flags, ..] = *packet else { return Err(Reject::Silently) };
    let Some(counts) = packet.get(4..HEADER_BYTES).filter(|_| flags & 0x80 == 0) else {
        return Err(Reject::Silently);
    };
    let reject = |code| Reject::With(Bare { id: [high, low], flags, code });
    if OpCode::from_u8((flags & 0x78) >> 3) != OpCode::Query {
        return Err(reject(ResponseCode::NotImp));
    }
    let malformed = |()| reject(ResponseCode::FormErr);
    // What almost all questions are: one question, and an OPT record or nothing behind it.
    let read = match *counts {
        [0, 1, 0, 0, 0, 0, 0, additionals @ (0 | 1)] => plain(packet, additionals == 1),
        _ => None,
    };
    let (query, edns) = match read {
        Some(read) => read,
        None => unusual(packet).map_err(malformed)?,
    };
    let id = u16::from_be_bytes([high, low]);
    let (recursion_desired, checking_disabled) = (flags & 1 != 0, more_flags & 0x10 != 0);
    let authentic_data = more_flags & 0x20 != 0;
    Ok(Request { id, recursion_desired, checking_disabled, authentic_data, query, edns })
}

/// The labels of the name that a plain question would have, as they stand in `packet`: for preparations, before anything is
/// known to be a question.
pub(crate) fn glance(packet: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = packet.get(HEADER_BYTES..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (&length, behind) = rest.split_first().filter(|(length, _)| **length > 0)?;
        let (label, behind) = behind.split_at_checked(length.into())?;
        rest = behind;
        Some(label)
    })
}

/// Reads what stands behind the header of a plain question. `None`: it is none.
fn plain(packet: &[u8], with_edns: bool) -> Option<(Query, Option<ClientEdns>)> {
    let mut decoder = BinDecoder::new(packet);
    decoder.read_slice(HEADER_BYTES).ok()?;
    let query = Query::read(&mut decoder).ok()?;
    if !with_edns {
        return Some((query, None));
    }
    let rest = packet.get(decoder.index()..)?;
    let (&[0, 0, 41, high, low, _code, version, flags, _flags, ref length @ ..], options) =
        rest.split_first_chunk::<{ OPT_BYTES as usize }>()?
    else {
        return None;
    };
    let options = options.get(..usize::from(u16::from_be_bytes(*length)))?;
    let edns = ClientEdns { version, payload: u16::from_be_bytes([high, low]), dnssec_ok: flags & 0x80 != 0 };
    are_options(options).then_some((query, Some(edns)))
}

/// Whether the options of an OPT record are as long as they say. What they say is nothing to us.
fn are_options(mut options: &[u8]) -> bool {
    while let [_, _, high, low, rest @ ..] = options {
        let Some(rest) = rest.get(usize::from(u16::from_be_bytes([*high, *low]))..) else { return false };
        options = rest;
    }
    options.is_empty()
}

/// Reads a question with whatever there may be around it.
fn unusual(packet: &[u8]) -> Result<(Query, Option<ClientEdns>), ()> {
    let message = Message::from_vec(packet).map_err(drop)?;
    let edns = message.edns.as_ref().map(|edns| ClientEdns {
        version: edns.version(),
        payload: edns.max_payload(),
        dnssec_ok: edns.flags().dnssec_ok,
    });
    let mut queries = message.queries.into_iter();
    // RFC 9619: a question is one question.
    match (queries.next(), queries.next()) {
        (Some(query), None) => Ok((query, edns)),
        _ => Err(()),
    }
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) code: ResponseCode,
    pub(crate) authoritative: bool,
    pub(crate) recursion_available: bool,
    pub(crate) authentic_data: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    /// One more of those, which many answers share: a zone's SOA.
    pub(crate) denial: Option<Arc<Record>>,
    pub(crate) additionals: Vec<Record>,
}

impl Response {
    pub(crate) fn empty(code: ResponseCode) -> Self {
        Self {
            code,
            authoritative: false,
            recursion_available: false,
            authentic_data: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            denial: None,
            additionals: Vec::new(),
        }
    }
}

/// The answer cannot be written.
#[derive(Debug)]
pub(crate) struct Unwritable;

/// Writes the answer to `request` into `packet`, of at most `limit` octets. Where it does not fit it is cut at a record
/// and, unless only additional records are missing, marked as truncated: the client asks again over TCP.
pub(crate) fn encode(
    request: &Request,
    response: &Response,
    limit: u16,
    packet: &mut Vec<u8>,
) -> Result<(), Unwritable> {
    write(request, response, limit.into(), packet).map_err(|error| {
        if let WriteError::Unwritable(error) = error {
            debug!(question = %request.query, %error, "an answer cannot be written");
        }
        Unwritable
    })
}

fn write(
    request: &Request,
    response: &Response,
    limit: usize,
    packet: &mut Vec<u8>,
) -> Result<(), WriteError> {
    packet.clear();
    packet.extend_from_slice(&[0; HEADER_BYTES]);
    let opt_bytes = if request.edns.is_some() { usize::from(OPT_BYTES) } else { 0 };
    let mut writer = Writer::new(packet, limit - opt_bytes);
    writer.question_name(request.query.name())?;
    writer.u16(request.query.query_type().into())?;
    writer.u16(request.query.query_class().into())?;
    let (answers, answers_cut) = writer.records(&response.answers)?;
    let authorities = response.authorities.iter().chain(response.denial.as_deref());
    let (authorities, authorities_cut) =
        if answers_cut { (0, false) } else { writer.records(authorities)? };
    let cut = answers_cut || authorities_cut;
    let (mut additionals, _) = if cut { (0, false) } else { writer.records(&response.additionals)? };
    if let Some(edns) = request.edns {
        writer.set_limit(limit);
        writer.bytes(&write::opt(UDP_PAYLOAD_MAX, response.code.high(), edns.dnssec_ok))?;
        additionals += 1;
    }
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    packet[..2].copy_from_slice(&request.id.to_be_bytes());
    packet[2] =
        0x80 | flag(response.authoritative, 0x04) | flag(cut, 0x02) | flag(request.recursion_desired, 0x01);
    packet[3] = flag(response.recursion_available, 0x80)
        | flag(response.authentic_data && (request.authentic_data || request.dnssec_ok()), 0x20)
        | flag(request.checking_disabled, 0x10)
        | response.code.low();
    for (at, count) in [1, answers, authorities, additionals].into_iter().enumerate() {
        packet[4 + 2 * at..6 + 2 * at].copy_from_slice(&count.to_be_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Edns;
    use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, PTR, SOA, SRV, TXT};
    use hickory_proto::rr::{Name, RData, RecordType};
    use proptest::prelude::*;

    fn question(name: &str, edns: bool) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        if edns {
            message.set_edns(Edns::new());
        }
        message
    }

    fn response(count: u8) -> Response {
        let name = Name::from_ascii("a.example.").unwrap();
        let record = |last| Record::from_rdata(name.clone(), 5, RData::A(A::new(192, 0, 2, last)));
        let answers: Vec<Record> = (0..count).map(record).collect();
        Response { additionals: answers.clone(), answers, ..Response::empty(ResponseCode::NoError) }
    }

    #[test]
    fn what_is_no_question() {
        assert_eq!(decode(&[0; 11]).unwrap_err(), Reject::Silently);
        let mut answer = question("a.example.", false).to_vec().unwrap();
        answer[2] |= 0x80;
        assert_eq!(decode(&answer).unwrap_err(), Reject::Silently);
        let code = |packet: &[u8]| match decode(packet).unwrap_err() {
            Reject::With(bare) => Message::from_vec(&bare.encode()).unwrap().metadata.response_code,
            Reject::Silently => panic!("dropped"),
        };
        let good = question("a.example.", true).to_vec().unwrap();
        let edns = |options: &[u8]| {
            let mut packet =
                [&good[..good.len() - 2], &[0, u8::try_from(options.len()).unwrap()], options].concat();
            packet.push(0);
            packet
        };
        assert!(decode(&edns(&[0, 10, 0, 1, 7])).is_ok());
        assert_eq!(code(&edns(&[0, 10, 0, 9, 7])), ResponseCode::FormErr);
        // A cookie, a subnet and what nobody knows are nothing to us; two OPT records are one too many (RFC 6891, 6.1.1).
        assert!(decode(&edns(&[0, 10, 0, 2, 7, 7, 0, 8, 0, 4, 0, 1, 0, 0, 0xff, 0xfe, 0, 0])).is_ok());
        let opt = &good[good.len() - usize::from(OPT_BYTES)..];
        let mut twice = [&good[..], opt].concat();
        twice[11] = 2;
        assert_eq!(code(&twice), ResponseCode::FormErr);
        let mut beside_another = [&good[..], &[0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 192, 0, 2, 1]].concat();
        beside_another[11] = 2;
        assert!(decode(&beside_another).unwrap().edns.is_some());
        assert_eq!(code(&good[..good.len() - 1]), ResponseCode::FormErr);
        assert_eq!(code(&[0; 12]), ResponseCode::FormErr);
        let mut two = question("a.example.", false);
        two.add_query(two.queries[0].clone());
        assert_eq!(code(&two.to_vec().unwrap()), ResponseCode::FormErr);
        let mut update = good;
        update[2] |= 5 << 3;
        assert_eq!(code(&update), ResponseCode::NotImp);
    }

    #[test]
    fn a_glance_sees_the_labels_of_the_question_and_no_further() {
        let packet = question("web.shop.svc.cluster.local.", true).to_vec().unwrap();
        let seen: Vec<&[u8]> = glance(&packet).collect();
        assert_eq!(seen, [&b"web"[..], b"shop", b"svc", b"cluster", b"local"]);
        assert_eq!(glance(&packet[..HEADER_BYTES + 7]).count(), 1);
        assert_eq!(glance(&packet[..4]).count(), 0);
    }

    #[test]
    fn answers_are_cut_to_what_the_client_takes() {
        for (edns, limit) in [(false, 512), (true, 512), (true, 1232), (false, u16::MAX)] {
            let request = decode(&question("a.example.", edns).to_vec().unwrap()).unwrap();
            for count in [0, 1, 20, 24, 27, 28, 29, 30, 31, 60, 76, 200] {
                let mut packet = Vec::new();
                encode(&request, &response(count), limit, &mut packet).unwrap();
                assert!(packet.len() <= usize::from(limit));
                let message = Message::from_vec(&packet).unwrap();
                assert_eq!(message.metadata.truncation, message.answers.len() < usize::from(count));
                assert_eq!(message.edns.is_some(), edns);
                // Additional records alone do not make an answer truncated.
                assert!(message.metadata.truncation || message.additionals.len() <= usize::from(count));
            }
        }
    }

    fn name() -> impl Strategy<Value = Name> {
        let label = prop_oneof![Just("a"), Just("A"), Just("bb"), Just("web"), Just("x-1")];
        proptest::collection::vec(label, 0..6).prop_map(|labels| Name::from_labels(labels).unwrap())
    }

    fn data() -> impl Strategy<Value = RData> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(|addr| RData::A(A(addr.into()))),
            any::<[u8; 16]>().prop_map(|addr| RData::AAAA(AAAA(addr.into()))),
            name().prop_map(|name| RData::CNAME(CNAME(name))),
            name().prop_map(|name| RData::PTR(PTR(name))),
            (any::<u16>(), name()).prop_map(|(n, name)| RData::SRV(SRV::new(n, 1, n, name))),
            (any::<u16>(), name()).prop_map(|(n, name)| RData::MX(MX::new(n, name))),
            (name(), name(), any::<u32>()).prop_map(|(a, b, n)| RData::SOA(SOA::new(a, b, n, 1, 2, 3, n))),
            Just(RData::TXT(TXT::new(vec!["some".to_owned(), "text".to_owned()]))),
        ]
    }

    fn records() -> impl Strategy<Value = Vec<Record>> {
        let record = (name(), any::<u32>(), data());
        proptest::collection::vec(
            record.prop_map(|(name, ttl, data)| Record::from_rdata(name, ttl, data)),
            0..12,
        )
    }

    proptest! {
        /// What hickory-proto reads is what was written, whatever of it has been written with pointers.
        #[test]
        fn what_is_written_is_what_is_read(asked in name(), answers in records(), authorities in records(), additionals in records()) {
            let mut message = Message::query();
            message.add_query(Query::query(asked, RecordType::A));
            let request = decode(&message.to_vec().unwrap()).unwrap();
            let response = Response { answers, authorities, additionals, ..Response::empty(ResponseCode::NoError) };
            let mut packet = Vec::new();
            encode(&request, &response, u16::MAX, &mut packet).unwrap();
            let read = Message::from_vec(&packet).unwrap();
            prop_assert_eq!(&read.queries[0], &request.query);
            prop_assert_eq!(&read.answers, &response.answers);
            prop_assert_eq!(&read.authorities, &response.authorities);
            prop_assert_eq!(&read.additionals, &response.additionals);
            // Names in data keep their letters.
            let letters = |records: &[Record]| records.iter().map(|record| record.data.to_string()).collect::<Vec<_>>();
            prop_assert_eq!(letters(&read.answers), letters(&response.answers));
        }

        #[test]
        fn any_packet_is_taken(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
            drop(decode(&packet));
            prop_assert!(glance(&packet).count() <= packet.len());
        }

        #[test]
        fn a_damaged_question_is_taken(edns: bool, damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut: prop::sample::Index) {
            let mut packet = question("web.default.svc.cluster.local.", edns).to_vec().unwrap();
            for (at, value) in damage {
                let at = at.index(packet.len());
                packet[at] = value;
            }
            packet.truncate(cut.index(packet.len()) + 1);
            if let Ok(request) = decode(&packet) {
                let mut answer = Vec::new();
                encode(&request, &response(40), request.udp_limit(), &mut answer).unwrap();
                prop_assert!(Message::from_vec(&answer).is_ok());
            }
        }
    }
}
