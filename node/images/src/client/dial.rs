//! `/dial`: a probe, as JSON in the body of a POST or as query parameters of a GET, executed here.

use std::sync::atomic::{AtomicU64, Ordering};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Map, Value};

use crate::http::{Peer, Service, json, query, text};
use crate::probe::{self, ProbeRequest};

/// The longest request body.
const BODY_BYTES_MAX: usize = 256 * 1024;
/// The fields of a request that are text, whatever their value looks like.
const TEXT_FIELDS: [&str; 8] = ["kind", "target", "source", "send", "host", "record_type", "server", "name"];

#[derive(Default)]
pub(super) struct Dial {
    probes: AtomicU64,
}

impl Dial {
    async fn dial(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let value = if request.method() == Method::POST {
            match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
                Ok(body) => serde_json::from_slice(&body.to_bytes()),
                Err(error) => return text(StatusCode::BAD_REQUEST, format!("body: {error}\n")),
            }
        } else {
            Ok(from_query(query(&request)))
        };
        let wanted: ProbeRequest = match value.and_then(serde_json::from_value) {
            Ok(wanted) => wanted,
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("probe: {error}\n")),
        };
        self.probes.fetch_add(1, Ordering::Relaxed);
        match serde_json::to_vec(&probe::execute(wanted).await) {
            Ok(result) => json(StatusCode::OK, result),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("result: {error}\n")),
        }
    }
}

/// `kind=tcp&target=web:80&count=3` as the JSON object that it stands for.
fn from_query(pairs: Vec<(String, String)>) -> Value {
    let object: Map<String, Value> = pairs
        .into_iter()
        .map(|(name, text)| {
            let value = match text.as_str() {
                _ if TEXT_FIELDS.contains(&name.as_str()) => Value::String(text),
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                digits => {
                    digits.parse::<u64>().map_or_else(|_| Value::String(digits.to_owned()), Value::from)
                }
            };
            (name, value)
        })
        .collect();
    Value::Object(object)
}

impl Service for Dial {
    async fn answer(&self, _peer: Peer, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match request.uri().path() {
            "/dial" => self.dial(request).await,
            "/" => text(StatusCode::OK, format!("{} probes\n", self.probes.load(Ordering::Relaxed))),
            "/healthz" | "/livez" | "/readyz" => text(StatusCode::OK, "ok\n"),
            _ => text(
                StatusCode::NOT_FOUND,
                "want /dial?kind=tcp&target=HOST:PORT or POST /dial, or /healthz\n",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_parameters_become_a_request() {
        let pairs = |pairs: &[(&str, &str)]| {
            from_query(pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect())
        };
        let request: ProbeRequest = serde_json::from_value(pairs(&[
            ("kind", "udp"),
            ("target", "web:80"),
            ("count", "3"),
            ("send", "123"),
            ("unconnected", "true"),
            ("source", "10.0.0.1"),
        ]))
        .unwrap();
        assert_eq!((request.count, request.send.as_deref(), request.unconnected), (3, Some("123"), true));
        let error = serde_json::from_value::<ProbeRequest>(pairs(&[
            ("kind", "tcp"),
            ("target", "a"),
            ("cuont", "3"),
        ]));
        assert!(error.unwrap_err().to_string().contains("unknown field `cuont`"));
    }
}
