//! The volumes of a pod.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::access::{list, list_mut, text};
use super::{default_object, default_text, default_to};
use crate::field::Errors;
use crate::names;

/// Readable by everyone, written by the owner.
const FILE_MODE: u16 = 0o644;

fn sources(volume: &Value) -> Vec<&str> {
    let members = volume.as_object().into_iter().flatten();
    members.map(|(key, _)| key.as_str()).filter(|key| *key != "name").collect()
}

pub(super) fn default_volume(volume: &mut Value) {
    if sources(volume).is_empty() {
        volume["emptyDir"] = json!({});
    }
    for key in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(key) {
            default_to(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(path) = volume.get_mut("hostPath") {
        default_to(path, "type", "");
    }
    if let Some(claim) = volume.get_mut("ephemeral").and_then(|source| source.get_mut("volumeClaimTemplate"))
    {
        default_object(claim, "spec");
        default_text(&mut claim["spec"], "volumeMode", "Filesystem");
    }
    if let Some(source) = volume.get_mut("downwardAPI") {
        default_downward(source);
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in list_mut(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken") {
                default_to(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = source.get_mut("downwardAPI") {
                default_downward(downward);
            }
        }
    }
}

fn default_downward(source: &mut Value) {
    for item in list_mut(source, "items") {
        if let Some(field) = item.get_mut("fieldRef") {
            default_text(field, "apiVersion", "v1");
        }
    }
}

/// Checks the volumes and returns their names.
pub(super) fn validate_volumes<'a>(spec: &'a Value, path: &str, errors: &mut Errors) -> HashSet<&'a str> {
    let mut known = HashSet::new();
    for (at, volume) in list(spec, "volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{at}]");
        let name = text(volume, "name");
        if name.is_empty() {
            errors.required(&format!("{path}.name"), "");
        } else if let Err(why) = names::dns_label(name) {
            errors.invalid(&format!("{path}.name"), name, why);
        } else if !known.insert(name) {
            errors.duplicate(&format!("{path}.name"), name);
        }
        let sources = sources(volume);
        for second in sources.iter().skip(1) {
            errors.forbidden(&format!("{path}.{second}"), "may not specify more than 1 volume type");
        }
        for (source, key) in [
            ("hostPath", "path"),
            ("persistentVolumeClaim", "claimName"),
            ("secret", "secretName"),
            ("configMap", "name"),
            ("nfs", "server"),
        ] {
            if volume.get(source).is_some_and(|source| text(source, key).is_empty()) {
                errors.required(&format!("{path}.{source}.{key}"), "");
            }
        }
    }
    known
}
