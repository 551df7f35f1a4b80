//! One request from path to answer: which resource, which verb, may they, and who handles it.

use std::sync::Arc;

use http::{HeaderMap, Method, Request, Response, header};
use hyper::body::Incoming;
use seaway_kinds::{
    ApiError, Kind, Registry,
    decode::BodyType,
    managed::Writer,
    path::{self, ResourcePath},
};
use seaway_store::Store;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{self, Attributes, Identity},
    binding,
    body::{self, Body},
    delete,
    documents::Documents,
    list, log,
    metrics::Metrics,
    node_client::NodeClient,
    query::Query,
    response::{self, ApiResult},
    review, scale, services, watch, write,
};

/// The name of a field manager may be this long.
const MANAGER_MAX: usize = 128;

/// Everything that handlers share.
pub(crate) struct Api {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) registry: Registry,
    pub(crate) services: services::Services,
    pub(crate) documents: Documents,
    pub(crate) metrics: Metrics,
    pub(crate) nodes: NodeClient,
    pub(crate) bookmark_interval: std::time::Duration,
    /// Ends the watches.
    pub(crate) closing: CancellationToken,
}

/// One request on a resource.
pub(crate) struct Call<'a> {
    pub(crate) api: &'a Arc<Api>,
    pub(crate) identity: &'a Identity,
    pub(crate) kind: &'a Arc<Kind>,
    pub(crate) path: &'a ResourcePath<'a>,
    pub(crate) query: &'a Query<'a>,
    pub(crate) headers: &'a HeaderMap,
}

impl Call<'_> {
    /// The object's name in the path.
    pub(crate) fn name(&self) -> &str {
        self.path.name.unwrap_or_default()
    }

    /// The namespace, for kinds that live in one.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.path.namespace.filter(|_| self.kind.namespaced)
    }

    pub(crate) fn key(&self) -> String {
        crate::objects::key(self.kind, self.namespace(), self.name())
    }

    pub(crate) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Who writes: the `fieldManager` of the request, else what its `User-Agent` begins with, else the user.
    pub(crate) fn writer(&self) -> Writer<'_> {
        let agent =
            || self.header(header::USER_AGENT).unwrap_or_default().split('/').next().unwrap_or_default();
        let named = self.query.get("fieldManager").filter(|name| !name.is_empty());
        let manager = Some(named.unwrap_or_else(agent)).filter(|name| !name.is_empty());
        let manager = manager.unwrap_or(&self.identity.user);
        let manager = manager.get(..MANAGER_MAX).unwrap_or(manager);
        let subresource = self.path.subresource.unwrap_or_default();
        Writer { manager, subresource, now: jiff::Timestamp::now() }
    }

    pub(crate) fn negotiate(
        &self,
    ) -> Result<(seaway_kinds::negotiate::Output, seaway_kinds::negotiate::Encoding), ApiError> {
        seaway_kinds::negotiate::negotiate(self.header(header::ACCEPT))
    }

    /// Turns the request's body into an object of the expected kind.
    pub(crate) fn decode(&self, expected: &BodyType, body: &[u8]) -> Result<seaway_kinds::Decoded, ApiError> {
        let content_type = self.header(header::CONTENT_TYPE);
        let validation = self.query.field_validation()?;
        let media = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if matches!(media, "application/yaml" | "application/x-yaml" | "text/yaml") {
            return seaway_kinds::decode::conform(expected, yaml(body)?, validation);
        }
        seaway_kinds::decode::decode(expected, content_type, body, validation)
    }
}

/// Reads YAML as a JSON value.
pub(crate) fn yaml(body: &[u8]) -> Result<serde_json::Value, ApiError> {
    serde_yaml_ng::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the body of the request is not valid YAML: {error}")))
}

/// Answers one request.
pub(crate) async fn handle(
    api: Arc<Api>,
    identity: Arc<Identity>,
    request: Request<Incoming>,
) -> Response<Body> {
    let started = std::time::Instant::now();
    let (parts, mut body) = request.into_parts();
    let raw_path = parts.uri.path();
    let decoded = percent_decoded(raw_path);
    let path = decoded.as_deref().unwrap_or(raw_path);
    let query = Query::parse(parts.uri.query());
    let parsed = path::parse(path);
    let mut verb = "";
    let result = match &parsed {
        None => api.documents.answer(&api, &identity, &parts, path),
        Some(resource) => match find(&api, resource) {
            None if identity.is_anonymous() => Err(ApiError::unauthorized()),
            None if resource.group == CRD_GROUP && parts.method == Method::GET => no_definitions(resource),
            None => Err(no_such_resource(&api, resource)),
            Some(kind) => {
                let call = Call {
                    api: &api,
                    identity: &identity,
                    kind: &kind,
                    path: resource,
                    query: &query,
                    headers: &parts.headers,
                };
                match verb_of(&parts.method, &call) {
                    Some(found) => {
                        verb = found;
                        Box::pin(dispatch(&call, verb, &mut body)).await
                    }
                    None => Err(ApiError::method_not_allowed(&kind, parts.method.as_str())),
                }
            }
        },
    };
    if result.is_err() {
        body::discard(&mut body).await;
    }
    let response = result.unwrap_or_else(|error| response::error(&error));
    let resource = parsed.as_ref().filter(|_| !verb.is_empty());
    api.metrics.observe(verb, resource, response.status().as_u16(), started.elapsed());
    response
}

/// The path with its escapes resolved; `None` when there are none, or they are no UTF-8.
fn percent_decoded(path: &str) -> Option<String> {
    if !path.contains('%') {
        return None;
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escape = (*first == b'%').then(|| after.get(..2)).flatten();
        let digits = escape.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// What kubectl's commands ask for that reach into a pod.
const INTO_PODS: [&str; 5] = ["exec", "attach", "portforward", "proxy", "ephemeralcontainers"];

/// The group in which kubectl looks for kinds that nobody told it of.
const CRD_GROUP: &str = "apiextensions.k8s.io";

/// There are no custom kinds here. kubectl asks before it says that a kind is unknown, and says something else when the
/// answer is that there is no such question.
fn no_definitions(path: &ResourcePath<'_>) -> ApiResult {
    if path.resource != "customresourcedefinitions" || path.name.is_some() {
        return Err(ApiError::no_such_resource());
    }
    let list = serde_json::json!({
        "kind": "CustomResourceDefinitionList", "apiVersion": format!("{CRD_GROUP}/{}", path.version),
        "metadata": {}, "items": [],
    });
    response::value(200, seaway_kinds::negotiate::Encoding::Json, &list)
}

/// Not found; what people expect of a pod and this server does not have is said in so many words.
fn no_such_resource(api: &Api, path: &ResourcePath<'_>) -> ApiError {
    let pods = path.resource == "pods" && path.group.is_empty();
    let asked = path.subresource.filter(|name| pods && INTO_PODS.contains(name));
    let kind = asked.and_then(|_| api.registry.resource(path.group, path.version, path.resource));
    let (Some(asked), Some(kind)) = (asked, kind) else { return ApiError::no_such_resource() };
    let why = format!("{asked} is not supported: this API server does not reach into pods, except for logs");
    ApiError { message: why, ..ApiError::method_not_allowed(kind, asked) }
}

fn find(api: &Api, path: &ResourcePath<'_>) -> Option<Arc<Kind>> {
    let kind = api.registry.resource(path.group, path.version, path.resource)?;
    if path.subresource.is_some_and(|name| kind.subresource(name).is_none()) {
        return None;
    }
    // A namespaced object cannot be named without its namespace, nor the other way round.
    let is_namespace = kind.plural == "namespaces";
    if path.name.is_some() && kind.namespaced != path.namespace.is_some() && !is_namespace {
        return None;
    }
    if path.name.is_none() && path.namespace.is_some() && !kind.namespaced {
        return None;
    }
    Some(Arc::clone(kind))
}

/// The verb, in the words of Kubernetes.
fn verb_of(method: &Method, call: &Call<'_>) -> Option<&'static str> {
    let named = call.path.name.is_some();
    let watching = call.path.watch || call.query.flag("watch");
    let verb = match (method, named) {
        (&Method::GET | &Method::HEAD, _) if watching && call.path.subresource.is_none() => "watch",
        (&Method::GET | &Method::HEAD, true) => "get",
        (&Method::GET | &Method::HEAD, false) => "list",
        (&Method::POST, _) => "create",
        (&Method::PUT, true) => "update",
        (&Method::PATCH, true) => "patch",
        (&Method::DELETE, true) => "delete",
        (&Method::DELETE, false) => "deletecollection",
        _ => return None,
    };
    let served = match call.path.subresource {
        Some(name) => call.kind.subresource(name)?.verbs.iter().any(|known| known == verb),
        None => call.kind.has_verb(verb) && (verb != "create" || !named),
    };
    served.then_some(verb)
}

async fn dispatch(call: &Call<'_>, verb: &'static str, body: &mut Incoming) -> ApiResult {
    let attributes = Attributes {
        verb,
        group: &call.kind.group,
        resource: &call.kind.plural,
        subresource: call.path.subresource.unwrap_or_default(),
        namespace: call.namespace().unwrap_or_default(),
        name: call.name(),
    };
    if !call.kind.is_stored() {
        return review::create(call, &body::read(body).await?);
    }
    if !call.identity.may(&attributes) {
        return Err(auth::forbidden(call.identity, call.kind, &attributes));
    }
    let subresource = call.path.subresource;
    match (verb, subresource) {
        ("get", Some("log")) => return log::get(call).await,
        ("get", None | Some("status")) => return list::get(call).await,
        ("get", Some("scale")) => return scale::get(call).await,
        ("list", _) => return list::list(call).await,
        ("watch", _) => return watch::watch(call).await,
        _ => {}
    }
    let body = body::read(body).await?;
    match (verb, subresource) {
        ("create", None) => write::create(call, &body).await,
        ("create", Some("binding")) => binding::bind(call, &body).await,
        ("create", Some("eviction")) => delete::evict(call, &body).await,
        ("update" | "patch", Some("scale")) => scale::write(call, verb, &body).await,
        ("update", _) => write::update(call, &body).await,
        ("patch", _) => write::patch(call, &body).await,
        ("delete", None) => delete::delete(call, &body).await,
        ("deletecollection", None) => delete::delete_collection(call, &body).await,
        _ => Err(ApiError::method_not_allowed(call.kind, verb)),
    }
}
