//! Everything that is not an object: health, version, metrics, discovery, OpenAPI. The documents never change while the
//! server runs, so their bytes are made once, when first asked for.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use seaway_kinds::{
    ApiError, discovery,
    negotiate::{self, DiscoveryOutput},
    openapi,
};
use seaway_store::{Engine, Store as _};
use serde_json::{Value, json};

use crate::{
    api::Api,
    auth::Identity,
    body::{self, Body},
    response::{self, ApiResult},
};

/// The Kubernetes version whose API this is.
const MINOR: &str = "33";
const GIT_VERSION: &str = concat!("v1.33.0+seaway-", env!("CARGO_PKG_VERSION"));

/// The documents, made when first asked for.
pub(crate) struct Documents {
    made: Mutex<HashMap<String, Document>>,
    /// For health and metrics.
    pub(crate) engine: Arc<Engine>,
    /// What clients reach the server at.
    pub(crate) address: String,
}

#[derive(Clone)]
struct Document {
    content: Bytes,
    etag: HeaderValue,
}

impl Documents {
    pub(crate) fn new(engine: Arc<Engine>, address: String) -> Self {
        Self { made: Mutex::default(), engine, address }
    }

    /// Answers a path that is no resource's.
    pub(crate) fn answer(&self, api: &Api, identity: &Identity, request: &Parts, path: &str) -> ApiResult {
        if !identity.may_read_path(path) {
            let why = format!("User \"{}\" cannot get path \"{path}\"", identity.user);
            return Err(ApiError::forbidden_path(why));
        }
        if request.method != Method::GET && request.method != Method::HEAD {
            return Err(ApiError::new(
                405,
                "MethodNotAllowed",
                format!("{} is not supported on {path}", request.method),
            ));
        }
        let path = path.trim_end_matches('/');
        match path {
            "/version" => response::value(200, negotiate::Encoding::Json, &version()),
            "/metrics" => self.metrics(api),
            "/api" | "/apis" => self.discovery_root(api, request, path),
            "/openapi/v2" => self.openapi_v2(api, request, path),
            "" => self.document(request, "application/json", path, || json_bytes(&paths(api))),
            _ => match health_check(path) {
                Some(check) => self.health(api, request, path, check),
                None => {
                    self.document(request, "application/json", path, || json_bytes(&Self::find(api, path)?))
                }
            },
        }
    }

    fn find(api: &Api, path: &str) -> Option<Value> {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match parts[..] {
            ["api", version] => discovery::resource_list(&api.registry, "", version),
            ["apis", group] => discovery::group(&api.registry, group),
            ["apis", group, version] => discovery::resource_list(&api.registry, group, version),
            ["openapi", "v3"] => Some(openapi::index(&api.registry)),
            ["openapi", "v3", "api", version] => openapi::document(&api.registry, "", version),
            ["openapi", "v3", "apis", group, version] => openapi::document(&api.registry, group, version),
            _ => None,
        }
    }

    fn discovery_root(&self, api: &Api, request: &Parts, path: &str) -> ApiResult {
        let accept = request.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        let output = negotiate::negotiate_discovery(accept);
        let name = format!("{path} {}", output.content_type());
        let mut response = self.document(request, &output.content_type(), &name, || {
            json_bytes(&match (path, output) {
                ("/api", DiscoveryOutput::Legacy) => discovery::api_versions(&self.address),
                ("/api", DiscoveryOutput::Aggregated(version)) => {
                    discovery::aggregated_core(&api.registry, version)
                }
                (_, DiscoveryOutput::Legacy) => discovery::group_list(&api.registry),
                (_, DiscoveryOutput::Aggregated(version)) => {
                    discovery::aggregated_groups(&api.registry, version)
                }
            })
        })?;
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
        Ok(response)
    }

    /// As protobuf to whom asks for it, as JSON to people.
    fn openapi_v2(&self, api: &Api, request: &Parts, path: &str) -> ApiResult {
        let accept = request.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        let mut response = if negotiate::wants_openapi_protobuf(accept)? {
            let name = format!("{path} protobuf");
            self.document(request, openapi::v2::PROTOBUF_ANSWER, &name, || {
                Some(openapi::v2::protobuf(&api.registry))
            })
        } else {
            self.document(request, "application/json", path, || json_bytes(&openapi::v2::json(&api.registry)))
        }?;
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
        Ok(response)
    }

    /// A document with an ETag, or 304 for who has it already.
    fn document(
        &self,
        request: &Parts,
        content_type: &str,
        name: &str,
        content: impl FnOnce() -> Option<Vec<u8>>,
    ) -> ApiResult {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let document = if let Some(document) = made.get(name) {
            document.clone()
        } else {
            let document = Document::of(content().ok_or_else(ApiError::no_such_resource)?)?;
            made.insert(name.to_owned(), document.clone());
            document
        };
        drop(made);
        let known = request.headers.get(header::IF_NONE_MATCH).is_some_and(|etag| etag == document.etag);
        let mut response = if known {
            let mut response = Response::new(body::full(Bytes::new()));
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            response::bytes(200, content_type, document.content)
        };
        response.headers_mut().insert(header::ETAG, document.etag);
        Ok(response)
    }

    fn metrics(&self, api: &Api) -> ApiResult {
        let text = api.metrics.render(&self.engine.stats()).map_err(ApiError::internal)?;
        let mut response = response::text(200, text);
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Ok(response)
    }

    /// Health: the store takes writes, and the server is not about to stop.
    fn health(&self, api: &Api, request: &Parts, path: &str, check: Check) -> ApiResult {
        let ready = path.starts_with("/readyz");
        let checks = [
            ("ping", Ok(())),
            ("store", self.engine.healthy().map_err(|error| error.to_string())),
            (
                "shutdown",
                if api.closing.is_cancelled() && ready { Err("shutting down".to_owned()) } else { Ok(()) },
            ),
        ];
        let wanted = |name: &str| match check {
            Check::All => true,
            Check::One(one) => one == name,
        };
        let checks: Vec<_> =
            checks.iter().filter(|(name, _)| wanted(name) && (ready || *name != "shutdown")).collect();
        if checks.is_empty() {
            return Err(ApiError::no_such_resource());
        }
        let healthy = checks.iter().all(|(_, result)| result.is_ok());
        let verbose =
            request.uri.query().is_some_and(|query| query.split('&').any(|word| word.starts_with("verbose")));
        Ok(health_text(path, &checks, healthy, verbose))
    }
}

/// Which checks a health path asks for.
#[derive(Debug, Clone, Copy)]
enum Check<'a> {
    All,
    One(&'a str),
}

fn health_check(path: &str) -> Option<Check<'_>> {
    let mut parts = path.splitn(3, '/').skip(1);
    let root = parts.next()?;
    if !matches!(root, "healthz" | "livez" | "readyz") {
        return None;
    }
    Some(parts.next().map_or(Check::All, Check::One))
}

fn health_text(
    path: &str,
    checks: &[&(&str, Result<(), String>)],
    healthy: bool,
    verbose: bool,
) -> Response<Body> {
    if healthy && !verbose {
        return response::text(200, "ok");
    }
    let lines = checks.iter().map(|(name, result)| match result {
        Ok(()) => format!("[+]{name} ok\n"),
        Err(why) => format!("[-]{name} failed: {why}\n"),
    });
    let root = path.split('/').nth(1).unwrap_or_default();
    let verdict = format!("{root} check {}\n", if healthy { "passed" } else { "failed" });
    let text: String = lines.chain([verdict]).collect();
    response::text(if healthy { 200 } else { 503 }, text)
}

impl Document {
    fn of(content: Vec<u8>) -> Result<Self, ApiError> {
        let content = Bytes::from(content);
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        let etag =
            HeaderValue::try_from(format!("\"{:016X}\"", hasher.finish())).map_err(ApiError::internal)?;
        Ok(Self { content, etag })
    }
}

fn json_bytes(value: &Value) -> Option<Vec<u8>> {
    // Writing JSON into memory does not fail.
    serde_json::to_vec(value).ok()
}

fn version() -> Value {
    json!({
        "major": "1", "minor": MINOR, "gitVersion": GIT_VERSION, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc",
        "platform": format!("linux/{}", platform()),
    })
}

fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn paths(api: &Api) -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, versions) in api.registry.groups() {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    let more = ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"];
    paths.extend(more.map(str::to_owned));
    json!({"paths": paths})
}
