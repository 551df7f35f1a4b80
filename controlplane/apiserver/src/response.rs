//! Responses: JSON (or YAML) bodies, Status bodies for failures, warnings as headers.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use seaway_kinds::{ApiError, negotiate::Encoding};
use serde_json::Value;

use crate::body::{self, Body};

/// What every handler returns.
pub(crate) type ApiResult = Result<Response<Body>, ApiError>;

/// A response with these bytes.
pub(crate) fn bytes(code: u16, content_type: &str, content: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(body::full(content));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A response with a value.
pub(crate) fn value(code: u16, encoding: Encoding, value: &Value) -> ApiResult {
    let content = match encoding {
        Encoding::Json => serde_json::to_vec(value).map_err(ApiError::internal)?,
        Encoding::Yaml => serde_yaml_ng::to_string(value).map_err(ApiError::internal)?.into_bytes(),
    };
    Ok(bytes(code, encoding.content_type(), content))
}

/// A response with an object that is JSON already.
pub(crate) fn json(code: u16, encoding: Encoding, content: Bytes) -> ApiResult {
    match encoding {
        Encoding::Json => Ok(bytes(code, encoding.content_type(), content)),
        Encoding::Yaml => value(code, encoding, &crate::objects::decode(&content)?),
    }
}

/// A text for people.
pub(crate) fn text(code: u16, content: impl Into<Bytes>) -> Response<Body> {
    let mut response = bytes(code, "text/plain; charset=utf-8", content);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The Status of a failure.
pub(crate) fn error(error: &ApiError) -> Response<Body> {
    let mut status = error.status();
    // The token for going on with an expired list belongs into the Status' own metadata.
    let details = status.get_mut("details").and_then(Value::as_object_mut);
    if let Some(token) = details.and_then(|details| details.remove("continue")) {
        status["metadata"]["continue"] = token;
    }
    let content = serde_json::to_vec(&status).unwrap_or_default();
    let mut response = bytes(error.code, "application/json", content);
    if let Some(seconds) = error.retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// Adds a `Warning` header for each text.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let quoted: String = warning
            .chars()
            .filter(|c| !c.is_control())
            .flat_map(|c| matches!(c, '"' | '\\').then_some('\\').into_iter().chain([c]))
            .collect();
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
