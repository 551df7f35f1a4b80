//! Which representation a client asked for in its `Accept` header.

use crate::ApiError;
use crate::openapi::v2;

/// How objects are to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// As they are.
    Object,
    /// As a `meta.k8s.io` Table of this version (`v1` or `v1beta1`).
    Table(&'static str),
    /// Only metadata, as `PartialObjectMetadata` of this version (a list asked for with
    /// `as=PartialObjectMetadataList`, which is the same thing for lists).
    Metadata(&'static str),
}

/// What a response is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
}

impl Encoding {
    /// The response's `Content-Type`. (Watches of JSON are `application/json` as well.)
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
        }
    }
}

/// Which discovery document `/api` and `/apis` answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscoveryOutput {
    /// `APIVersions`, `APIGroupList`.
    Legacy,
    /// `APIGroupDiscoveryList` of this version (`v2` or `v2beta1`).
    Aggregated(&'static str),
}

impl DiscoveryOutput {
    /// The response's `Content-Type`.
    pub fn content_type(self) -> String {
        match self {
            Self::Legacy => "application/json".to_owned(),
            Self::Aggregated(version) => {
                format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList")
            }
        }
    }
}

/// Whether `/openapi/v2` is wanted as protobuf; 406 where neither that nor JSON will do.
pub fn wants_openapi_protobuf(accept: Option<&str>) -> Result<bool, ApiError> {
    let accept = accept.unwrap_or("*/*");
    let known = |media: &str| match media {
        v2::PROTOBUF | v2::PROTOBUF_ANSWER => Some(true),
        "application/json" | "application/*" | "*/*" => Some(false),
        _ => None,
    };
    let wanted = alternatives(accept).find_map(|wanted| known(wanted.media));
    wanted.ok_or_else(|| {
        ApiError::not_acceptable(format!(
            "only the following media types are accepted: application/json, {}",
            v2::PROTOBUF
        ))
    })
}

struct Wanted<'a> {
    media: &'a str,
    as_: &'a str,
    group: &'a str,
    version: &'a str,
}

fn alternatives(accept: &str) -> impl Iterator<Item = Wanted<'_>> {
    accept.split(',').map(|alternative| {
        let mut parts = alternative.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let mut wanted = Wanted { media, as_: "", group: "", version: "" };
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            match key.trim() {
                "as" => wanted.as_ = value.trim(),
                "g" => wanted.group = value.trim(),
                "v" => wanted.version = value.trim(),
                _ => {}
            }
        }
        wanted
    })
}

fn encoding(media: &str) -> Option<Encoding> {
    match media {
        "application/json" | "application/*" | "*/*" | "" => Some(Encoding::Json),
        "application/yaml" => Some(Encoding::Yaml),
        _ => None,
    }
}

fn meta_version(version: &str) -> Option<&'static str> {
    ["v1", "v1beta1"].into_iter().find(|known| *known == version)
}

/// The first of the wanted representations that can be made; without a header, the object as JSON.
pub fn negotiate(accept: Option<&str>) -> Result<(Output, Encoding), ApiError> {
    let accept = accept.unwrap_or_default();
    for wanted in alternatives(accept) {
        let Some(encoding) = encoding(wanted.media) else { continue };
        let output = match (wanted.as_, wanted.group, meta_version(wanted.version)) {
            ("", ..) => Output::Object,
            ("Table", "meta.k8s.io", Some(version)) => Output::Table(version),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", Some(version)) => {
                Output::Metadata(version)
            }
            _ => continue,
        };
        return Ok((output, encoding));
    }
    Err(ApiError::not_acceptable(
        "only the following media types are accepted: application/json, application/yaml, \
         application/json;as=Table;v=v1;g=meta.k8s.io, \
         application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
    ))
}

/// Which discovery document to answer with; anything unknown gets the legacy one.
pub fn negotiate_discovery(accept: Option<&str>) -> DiscoveryOutput {
    for wanted in alternatives(accept.unwrap_or_default()) {
        let json = encoding(wanted.media) == Some(Encoding::Json);
        match (wanted.as_, wanted.group, wanted.version) {
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") if json => {
                return DiscoveryOutput::Aggregated("v2");
            }
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1") if json => {
                return DiscoveryOutput::Aggregated("v2beta1");
            }
            ("", ..) if json => return DiscoveryOutput::Legacy,
            _ => {}
        }
    }
    DiscoveryOutput::Legacy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_send() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,\
                       application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let informer = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,\
                        application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        let typed = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(negotiate(None), Ok((Output::Object, Encoding::Json)));
        assert_eq!(negotiate(Some("*/*")), Ok((Output::Object, Encoding::Json)));
        assert_eq!(negotiate(Some(kubectl)), Ok((Output::Table("v1"), Encoding::Json)));
        assert_eq!(negotiate(Some(informer)), Ok((Output::Metadata("v1"), Encoding::Json)));
        assert_eq!(negotiate(Some(typed)), Ok((Output::Object, Encoding::Json)));
        assert_eq!(negotiate(Some("application/yaml")), Ok((Output::Object, Encoding::Yaml)));
        assert_eq!(negotiate(Some("application/cbor")).map_err(|error| error.code), Err(406));
        assert_eq!(
            negotiate(Some("application/json;as=Chair;v=v1;g=meta.k8s.io")).map_err(|error| error.code),
            Err(406)
        );
    }

    #[test]
    fn discovery() {
        let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                       application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(negotiate_discovery(Some(kubectl)), DiscoveryOutput::Aggregated("v2"));
        assert_eq!(negotiate_discovery(Some("application/json")), DiscoveryOutput::Legacy);
        assert_eq!(negotiate_discovery(None), DiscoveryOutput::Legacy);
        assert_eq!(
            DiscoveryOutput::Aggregated("v2").content_type(),
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        );
    }
}
