//! Between packets and questions: decoding that takes anything, encoding that fits what the client can take.

use hickory_proto::ProtoError;
use hickory_proto::op::{
    Edns, Header, HeaderCounts, Message, MessageType, Metadata, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder};

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
    let [high, low, flags, _, ..] = *packet else { return Err(Reject::Silently) };
    if packet.len() < HEADER_BYTES || flags & 0x80 != 0 {
        return Err(Reject::Silently);
    }
    let reject = |code| Reject::With(Bare { id: [high, low], flags, code });
    if OpCode::from_u8((flags & 0x78) >> 3) != OpCode::Query {
        return Err(reject(ResponseCode::NotImp));
    }
    let message = Message::from_vec(packet).map_err(|_| reject(ResponseCode::FormErr))?;
    let Metadata { id, recursion_desired, checking_disabled, .. } = message.metadata;
    let edns = message.edns.as_ref().map(|edns| ClientEdns {
        version: edns.version(),
        payload: edns.max_payload(),
        dnssec_ok: edns.flags().dnssec_ok,
    });
    let mut queries = message.queries.into_iter();
    // RFC 9619: a question is one question.
    let (Some(query), None) = (queries.next(), queries.next()) else {
        return Err(reject(ResponseCode::FormErr));
    };
    Ok(Request { id, recursion_desired, checking_disabled, query, edns })
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
            additionals: Vec::new(),
        }
    }
}

/// Writes the answer to `request` into `packet`, of at most `limit` octets. Where it does not fit it is cut at a record
/// and, unless only additional records are missing, marked as truncated: the client asks again over TCP.
pub(crate) fn encode(
    request: &Request,
    response: &Response,
    limit: u16,
    packet: &mut Vec<u8>,
) -> Result<(), ProtoError> {
    packet.clear();
    let edns = request.edns.map(|client| opt(client, response.code));
    let mut encoder = BinEncoder::new(packet);
    encoder.set_max_size(if edns.is_some() { limit - OPT_BYTES } else { limit });
    let place = encoder.place::<Header>()?;
    request.query.emit(&mut encoder)?;
    let (answers, answers_cut) = records(&mut encoder, &response.answers)?;
    let (authorities, authorities_cut) =
        if answers_cut { (0, false) } else { records(&mut encoder, &response.authorities)? };
    let cut = answers_cut || authorities_cut;
    let (mut additionals, _) = if cut { (0, false) } else { records(&mut encoder, &response.additionals)? };
    if let Some(edns) = edns {
        encoder.set_max_size(limit);
        edns.emit(&mut encoder)?;
        additionals += 1;
    }
    let mut metadata = Metadata::new(request.id, MessageType::Response, OpCode::Query);
    metadata.authoritative = response.authoritative;
    metadata.truncation = cut;
    metadata.recursion_desired = request.recursion_desired;
    metadata.recursion_available = response.recursion_available;
    metadata.authentic_data = response.authentic_data;
    metadata.checking_disabled = request.checking_disabled;
    metadata.response_code = response.code;
    let counts = HeaderCounts { queries: 1, answers, authorities, additionals };
    place.replace(&mut encoder, Header { metadata, counts })
}

/// Writes as many records as fit; how many, and whether some are left over.
fn records(encoder: &mut BinEncoder<'_>, records: &[Record]) -> Result<(u16, bool), ProtoError> {
    let (count, cut) = match encoder.emit_all(records.iter()) {
        Ok(count) => (count, false),
        Err(ProtoError::NotAllRecordsWritten { count, .. }) => (count, true),
        Err(error) => return Err(error),
    };
    // A message of 65,535 octets has no room for more.
    Ok((u16::try_from(count).unwrap_or(u16::MAX), cut))
}

fn opt(client: ClientEdns, code: ResponseCode) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD_MAX);
    edns.set_version(0);
    edns.set_dnssec_ok(client.dnssec_ok);
    edns.set_rcode_high(code.high());
    edns
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::A;
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

    proptest! {
        #[test]
        fn any_packet_is_taken(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
            drop(decode(&packet));
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
