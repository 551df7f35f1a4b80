//! DNS: one question, over UDP or TCP, with the search path where asked for.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::attempt::Failure;
use super::resolv_conf::ResolvConf;
use super::{Attempt, ErrorKind, ProbeRequest, connect, udp};

pub(super) async fn attempt(request: &ProbeRequest) -> Result<Attempt, Failure> {
    let conf = resolv_conf(request)?;
    let server = request.server.or_else(|| conf.servers.first().copied());
    let server =
        server.ok_or_else(|| Failure::new(ErrorKind::Invalid, "no server: /etc/resolv.conf names none"))?;
    let kind = request.record_type.as_deref().unwrap_or("A").to_ascii_uppercase();
    let kind: RecordType = kind
        .parse()
        .map_err(|_| Failure::new(ErrorKind::Invalid, format!("unknown record type {kind:?}")))?;
    let names = if request.search { conf.candidates(&request.target) } else { vec![request.target.clone()] };
    let mut last = Err(Failure::new(ErrorKind::Invalid, "no name to ask for"));
    for name in names {
        last = ask(request, server, &name, kind).await;
        // As the C library: only "there is nothing" leads on along the search path.
        if !matches!(&last, Err(Failure { kind: ErrorKind::NxDomain | ErrorKind::NoData, .. })) {
            break;
        }
    }
    last
}

fn resolv_conf(request: &ProbeRequest) -> Result<ResolvConf, Failure> {
    if request.server.is_some() && !request.search {
        return Ok(ResolvConf::parse(""));
    }
    std::fs::read_to_string("/etc/resolv.conf")
        .map(|text| ResolvConf::parse(&text))
        .map_err(|error| Failure::io("/etc/resolv.conf", &error))
}

async fn ask(
    request: &ProbeRequest,
    server: SocketAddr,
    name: &str,
    kind: RecordType,
) -> Result<Attempt, Failure> {
    let invalid = |why: String| Failure::new(ErrorKind::Invalid, format!("name {name:?}: {why}"));
    let mut question = Message::query();
    let mut asked = Name::from_ascii(name).map_err(|error| invalid(error.to_string()))?;
    asked.set_fqdn(true);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(asked, kind));
    let wire = question.to_vec().map_err(|error| invalid(error.to_string()))?;
    let (reply, attempt) = if request.tcp {
        over_tcp(request, server, &wire).await?
    } else {
        let (reply, attempt) = udp::exchange(request, &mut None, server, &wire).await?;
        let truncated = reply.get(2).is_some_and(|flags| flags & 0b10 != 0);
        if truncated { over_tcp(request, server, &wire).await? } else { (reply, attempt) }
    };
    let malformed = |why: String| Failure::new(ErrorKind::Mismatch, format!("{server} answered {why}"));
    let answer =
        Message::from_vec(&reply).map_err(|error| malformed(format!("what is no DNS message: {error}")))?;
    if answer.metadata.id != question.metadata.id {
        return Err(malformed("another question".to_owned()));
    }
    judge(name, kind, &answer, attempt)
}

async fn over_tcp(
    request: &ProbeRequest,
    server: SocketAddr,
    wire: &[u8],
) -> Result<(Vec<u8>, Attempt), Failure> {
    let failed = |error| Failure::io(format_args!("DNS over TCP with {server}"), &error);
    let mut stream = connect::tcp(request, &server.to_string()).await?;
    let attempt =
        Attempt { local: stream.local_addr().ok(), peer: stream.peer_addr().ok(), ..Attempt::default() };
    let length = u16::try_from(wire.len()).unwrap_or(u16::MAX);
    let framed = [&length.to_be_bytes()[..], wire].concat();
    stream.write_all(&framed).await.map_err(failed)?;
    let length = stream.read_u16().await.map_err(failed)?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await.map_err(failed)?;
    Ok((reply, attempt))
}

fn judge(name: &str, kind: RecordType, answer: &Message, attempt: Attempt) -> Result<Attempt, Failure> {
    let rcode = spelled(answer.metadata.response_code);
    let addresses: Vec<IpAddr> = answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
    let attempt = Attempt {
        rcode: Some(rcode.clone()),
        answers: answer
            .answers
            .iter()
            .map(|record| format!("{} {} {}", record.name, record.record_type(), data(&record.data)))
            .collect(),
        addresses,
        ..attempt
    };
    let error = match answer.metadata.response_code {
        ResponseCode::NoError if !answer.answers.is_empty() => return Ok(attempt),
        ResponseCode::NoError => ErrorKind::NoData,
        ResponseCode::NXDomain => ErrorKind::NxDomain,
        _ => ErrorKind::ServFail,
    };
    let message = format!("{name} {kind}: {rcode}, {} answers", answer.answers.len());
    Err(Failure { kind: error, message, attempt: Some(Box::new(attempt)) })
}

fn data(data: &RData) -> String {
    match data {
        RData::TXT(text) => text
            .txt_data
            .iter()
            .map(|part| format!("{:?}", String::from_utf8_lossy(part)))
            .collect::<Vec<_>>()
            .join(" "),
        other => other.to_string(),
    }
}

fn spelled(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => format!("RCODE{}", u16::from(other)),
    }
}
