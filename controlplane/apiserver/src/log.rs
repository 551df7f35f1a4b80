//! The `log` subresource of pods: passed through from the agent of the pod's node, as a stream.

use std::net::IpAddr;

use http::{HeaderValue, Response, header};
use http_body_util::BodyExt as _;
use seaway_kinds::{ApiError, Kind};
use serde_json::Value;

use crate::{
    api::Call,
    body::{BodyError, Chunk},
    list, objects,
    response::ApiResult,
};

const PASSED_ON: &[&str] =
    &["follow", "tailLines", "sinceSeconds", "sinceTime", "timestamps", "limitBytes", "previous"];
const AGENT_PORT: u16 = 10250;

/// GET.
pub(crate) async fn get(call: &Call<'_>) -> ApiResult {
    let entry = list::entry(call.api, call.kind, &call.key(), call.name()).await?;
    let pod = objects::shown(call.kind, &entry.value)?;
    let container = container(call, &pod)?;
    let node_name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node_name.is_empty() {
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", call.name())));
    }
    let (ip, port) = agent(call, node_name).await?;
    let path = path(call, &container);
    let answer = call.api.nodes.get(ip, port, &path).await.map_err(|error| {
        ApiError::internal(format!("Get \"https://{}{path}\": {error}", std::net::SocketAddr::new(ip, port)))
    })?;
    let (parts, body) = answer.into_parts();
    if !parts.status.is_success() {
        let text = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[..text.len().min(1024)]).trim().to_owned();
        return Err(match parts.status.as_u16() {
            400 | 404 => ApiError::bad_request(text),
            code => ApiError::internal(format!("the agent of node {node_name} answered {code}: {text}")),
        });
    }
    let body = body.map_frame(|frame| frame.map_data(Chunk::from)).map_err(BodyError::from);
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

fn names<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a str> {
    pod["spec"][list].as_array().into_iter().flatten().filter_map(|container| container["name"].as_str())
}

/// The container that was asked for, or the only one.
fn container(call: &Call<'_>, pod: &Value) -> Result<String, ApiError> {
    let all = || {
        names(pod, "containers").chain(names(pod, "initContainers")).chain(names(pod, "ephemeralContainers"))
    };
    if let Some(wanted) = call.query.get("container") {
        if all().any(|name| name == wanted) {
            return Ok(wanted.to_owned());
        }
        let why = format!("container {wanted} is not valid for pod {}", call.name());
        return Err(ApiError::bad_request(why));
    }
    let containers: Vec<&str> = names(pod, "containers").collect();
    match containers[..] {
        [only] => Ok(only.to_owned()),
        _ => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            call.name(),
            containers.join(" ")
        ))),
    }
}

fn path(call: &Call<'_>, container: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for name in PASSED_ON {
        if let Some(value) = call.query.get(name) {
            query.append_pair(name, value);
        }
    }
    let query = query.finish();
    let separator = if query.is_empty() { "" } else { "?" };
    let namespace = call.namespace().unwrap_or_default();
    format!("/containerLogs/{namespace}/{}/{container}{separator}{query}", call.name())
}

/// Where the node's agent listens.
async fn agent(call: &Call<'_>, node_name: &str) -> Result<(IpAddr, u16), ApiError> {
    let nodes: &Kind =
        call.api.registry.resource("", "v1", "nodes").ok_or_else(ApiError::no_such_resource)?;
    let entry = list::entry(call.api, nodes, &objects::key(nodes, None, node_name), node_name).await?;
    let node = objects::decode(&entry.value)?;
    let addresses = node["status"]["addresses"].as_array().map_or(&[][..], Vec::as_slice);
    let ip = addresses
        .iter()
        .filter(|address| address["type"] == "InternalIP")
        .find_map(|address| address["address"].as_str()?.parse().ok())
        .ok_or_else(|| ApiError::internal(format!("node {node_name} has no InternalIP")))?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    Ok((ip, port.and_then(|port| u16::try_from(port).ok()).unwrap_or(AGENT_PORT)))
}
