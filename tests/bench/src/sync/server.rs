//! An API server that only lists and watches: what it says is written once, so that it costs the bench little.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::clock::now_ns;
use crate::cluster::{Place, Spec};
use crate::objects;

const SERVICES: &str = "/api/v1/services";
const NODES: &str = "/api/v1/nodes";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
/// Objects per page, whatever limit is asked for.
const PAGE: usize = 1000;

/// A server that runs until it is dropped.
pub struct ApiServer {
    state: Arc<State>,
    address: SocketAddr,
    _runtime: Runtime,
}

#[derive(Default)]
struct State {
    pages: HashMap<&'static str, Vec<Bytes>>,
    watches: Mutex<HashMap<String, Vec<mpsc::UnboundedSender<Bytes>>>>,
    /// 0: none yet.
    first_request_ns: AtomicU64,
}

impl ApiServer {
    /// Serves `specs` and the Node at `place` on `listener`.
    pub fn start(listener: TcpListener, specs: &[Spec], place: Place) -> Result<Self> {
        let numbered = || specs.iter().zip(1..);
        let state = Arc::new(State {
            pages: HashMap::from([
                (SERVICES, pages("v1", "ServiceList", numbered().map(|(s, v)| objects::service(s, v)))),
                (
                    SLICES,
                    pages(
                        "discovery.k8s.io/v1",
                        "EndpointSliceList",
                        numbered().map(|(s, v)| objects::slice(s, v)),
                    ),
                ),
                (NODES, pages("v1", "NodeList", [objects::node(place, 1)].into_iter())),
            ]),
            ..State::default()
        });
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(accept(listener, Arc::clone(&state)));
        Ok(Self { state, address, _runtime: runtime })
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next request is the first.
    pub fn forget_requests(&self) {
        self.state.first_request_ns.store(0, Ordering::SeqCst);
    }

    /// When the first request came.
    pub fn first_request_ns(&self) -> Option<u64> {
        Some(self.state.first_request_ns.load(Ordering::SeqCst)).filter(|ns| *ns > 0)
    }

    /// Tells the watches that an EndpointSlice has changed. Returns when.
    pub fn change_slice(&self, slice: &Value) -> Result<u64> {
        let line = Bytes::from(format!("{}\n", json!({"type": "MODIFIED", "object": slice})));
        let mut watches = self.state.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let watching = watches.get_mut(SLICES).context("nobody watches EndpointSlices")?;
        let sent_ns = now_ns();
        watching.retain(|watch| watch.send(line.clone()).is_ok());
        if watching.is_empty() {
            bail!("nobody watches EndpointSlices any more");
        }
        Ok(sent_ns)
    }
}

/// The answers to a list, page by page.
fn pages(version: &str, kind: &str, objects: impl Iterator<Item = Value>) -> Vec<Bytes> {
    let objects: Vec<String> = objects.map(|object| object.to_string()).collect();
    let chunks: Vec<&[String]> = objects.chunks(PAGE).collect();
    let page = |(number, chunk): (usize, &&[String])| {
        let mut metadata = json!({"resourceVersion": "1000000"});
        if number + 1 < chunks.len() {
            metadata["continue"] = json!((number + 1).to_string());
        }
        let items = chunk.join(",");
        Bytes::from(format!(
            r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{metadata},"items":[{items}]}}"#
        ))
    };
    chunks.iter().enumerate().map(page).collect()
}

async fn accept(listener: tokio::net::TcpListener, state: Arc<State>) {
    while let Ok((connection, _)) = listener.accept().await {
        // An event is one small write: it must not wait for the answer to the one before.
        connection.set_nodelay(true).ok();
        let state = Arc::clone(&state);
        let service = service_fn(move |request| {
            let response = answer(&state, &request);
            async move { Ok::<_, Infallible>(response) }
        });
        let serving = hyper::server::conn::http1::Builder::new();
        tokio::spawn(serving.serve_connection(TokioIo::new(connection), service));
    }
}

fn answer(state: &State, request: &Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
    state.first_request_ns.compare_exchange(0, now_ns(), Ordering::SeqCst, Ordering::SeqCst).ok();
    if request.method() != Method::GET {
        let text = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","code":405}"#;
        return respond(StatusCode::METHOD_NOT_ALLOWED, Full::from(text).boxed());
    }
    let query = request.uri().query().unwrap_or_default();
    let parameters: HashMap<_, _> = form_urlencoded::parse(query.as_bytes()).collect();
    let path = request.uri().path();
    if parameters.get("watch").is_some_and(|watch| watch == "true" || watch == "1") {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut watches = state.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.entry(path.to_owned()).or_default().push(sender);
        let lines = futures::stream::unfold(receiver, |mut receiver| async move {
            let line = receiver.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(line)), receiver))
        });
        return respond(StatusCode::OK, BodyExt::boxed(StreamBody::new(lines)));
    }
    let number = parameters.get("continue").and_then(|token| token.parse().ok()).unwrap_or(0);
    let page = state.pages.get(path).and_then(|pages: &Vec<Bytes>| pages.get(number)).cloned();
    // Whatever else is listed is empty.
    let empty = r#"{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}"#;
    respond(StatusCode::OK, Full::new(page.unwrap_or_else(|| Bytes::from_static(empty.as_bytes()))).boxed())
}

fn respond(status: StatusCode, body: BoxBody<Bytes, Infallible>) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_paged_and_the_last_page_ends_them() {
        let objects = (0..2500).map(|number| json!({"n": number}));
        let read: Vec<Value> = pages("v1", "ServiceList", objects)
            .iter()
            .map(|page| serde_json::from_slice(page).unwrap())
            .collect();
        let counts: Vec<usize> = read.iter().map(|page| page["items"].as_array().unwrap().len()).collect();
        assert_eq!(counts, [1000, 1000, 500]);
        let tokens: Vec<&Value> = read.iter().map(|page| &page["metadata"]["continue"]).collect();
        assert_eq!(tokens, [&json!("1"), &json!("2"), &Value::Null]);
    }
}
