//! A small API server in memory: lists in pages, watches that break, versions that are gone.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::{Bytes, Frame};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// What the server holds.
#[derive(Default)]
pub(crate) struct State {
    /// Objects by resource and name.
    pub(crate) objects: BTreeMap<(String, String), Value>,
    /// Every event so far with its resource. The version of a list is how many there were.
    history: Vec<(String, Bytes)>,
    /// Open watches by resource.
    watches: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    /// The next watches of these resources are answered with 410 Gone.
    pub(crate) gone: Vec<String>,
    /// Everything is answered with 503.
    pub(crate) down: bool,
    /// This resource is answered with 403.
    pub(crate) forbidden: Option<String>,
    /// Only the pods of one node may be listed.
    pub(crate) all_pods_forbidden: bool,
    pub(crate) lists: usize,
}

#[derive(Clone, Default)]
pub(crate) struct Server(pub(crate) Arc<Mutex<State>>);

impl Server {
    pub(crate) fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(&request)) }
        });
        kube::Client::new(service, "default")
    }

    pub(crate) fn put(&self, resource: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let mut state = self.0.lock().unwrap();
        let known = state.objects.insert((resource.to_owned(), name), object.clone()).is_some();
        send(
            &mut state,
            resource,
            &json!({"type": if known { "MODIFIED" } else { "ADDED" }, "object": object}),
        );
    }

    #[allow(dead_code, reason = "not every test that uses this server deletes")]
    pub(crate) fn delete(&self, resource: &str, name: &str) {
        let mut state = self.0.lock().unwrap();
        let object = state.objects.remove(&(resource.to_owned(), name.to_owned())).unwrap();
        send(&mut state, resource, &json!({"type": "DELETED", "object": object}));
    }

    /// Says `line` to those who watch.
    #[allow(dead_code, reason = "not every test that uses this server says such things")]
    pub(crate) fn say(&self, resource: &str, line: &str) {
        tell(&mut self.0.lock().unwrap(), resource, line);
    }

    /// Ends all watches, as a server that restarts does.
    #[allow(dead_code, reason = "not every test that uses this server restarts it")]
    pub(crate) fn hang_up(&self) {
        self.0.lock().unwrap().watches.clear();
    }

    fn answer(&self, request: &Request<Body>) -> Response<BoxBody<Bytes, Infallible>> {
        let resource = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let query = request.uri().query().unwrap_or("");
        let mut state = self.0.lock().unwrap();
        if state.down {
            return failure(StatusCode::SERVICE_UNAVAILABLE, "down");
        }
        let node = query.split('&').find_map(|part| part.strip_prefix("fieldSelector=spec.nodeName%3D"));
        let all_pods = resource == "pods" && node.is_none() && state.all_pods_forbidden;
        if all_pods || state.forbidden.as_ref() == Some(&resource) {
            return failure(StatusCode::FORBIDDEN, "forbidden");
        }
        if query.contains("watch=") {
            if let Some(at) = state.gone.iter().position(|gone| *gone == resource) {
                state.gone.remove(at);
                return failure(StatusCode::GONE, "too old resource version");
            }
            let (sender, receiver) = mpsc::unbounded_channel();
            let since = query.split('&').find_map(|part| part.strip_prefix("resourceVersion=")?.parse().ok());
            let missed = state.history.iter().skip(since.unwrap_or(0)).filter(|(of, _)| *of == resource);
            for (_, line) in missed {
                sender.send(line.clone()).unwrap();
            }
            state.watches.push((resource, sender));
            let frames = futures::stream::unfold(receiver, |mut receiver| async move {
                let bytes = receiver.recv().await?;
                Some((Ok::<_, Infallible>(Frame::data(bytes)), receiver))
            });
            return Response::new(BodyExt::boxed(http_body_util::StreamBody::new(frames)));
        }
        state.lists += 1;
        let of_resource =
            state.objects.iter().filter(|((of, _), _)| *of == resource).map(|(_, object)| object);
        let selected = |object: &&Value| node.is_none_or(|node| object["spec"]["nodeName"] == node);
        let items: Vec<&Value> = of_resource.filter(selected).collect();
        let list = json!({"kind": "List", "apiVersion": "v1", 
            "metadata": {"resourceVersion": state.history.len().to_string()}, "items": items});
        Response::new(http_body_util::Full::new(Bytes::from(list.to_string())).boxed())
    }
}

fn send(state: &mut State, resource: &str, event: &Value) {
    tell(state, resource, &event.to_string());
}

fn tell(state: &mut State, resource: &str, line: &str) {
    let line = Bytes::from(format!("{line}\n"));
    state.history.push((resource.to_owned(), line.clone()));
    state.watches.retain(|(of, sender)| of != resource || sender.send(line.clone()).is_ok());
}

fn failure(code: StatusCode, message: &str) -> Response<BoxBody<Bytes, Infallible>> {
    let reason = if code == StatusCode::GONE { "Expired" } else { "ServiceUnavailable" };
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message,
        "reason": reason, "code": code.as_u16()});
    let body = http_body_util::Full::new(Bytes::from(status.to_string())).boxed();
    Response::builder().status(code).body(body).unwrap()
}
