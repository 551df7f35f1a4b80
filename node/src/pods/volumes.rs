//! Volumes of a pod: directories on the node that containers get mounted. Supported: emptyDir, configMap, secret,
//! downwardAPI, and projections of the last three.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, DownwardAPIVolumeFile, KeyToPath, Pod, Volume};

use super::env::{Objects, Place, Reference, field_value};
use crate::shim::protocol::BindMount;

/// A file of a volume.
type Files = BTreeMap<PathBuf, (Vec<u8>, u32)>;

const DEFAULT_MODE: i32 = 0o644;

/// What a volume is made of.
#[derive(Debug, PartialEq, Eq)]
enum Content {
    Empty,
    Files(Files),
}

/// What must be fetched for the pod's volumes.
pub(crate) fn references(pod: &Pod) -> BTreeSet<Reference> {
    let mut found = BTreeSet::new();
    for volume in volumes(pod) {
        found.extend(volume.config_map.as_ref().map(|v| Reference::ConfigMap(v.name.clone())));
        let secret = volume.secret.as_ref().and_then(|v| v.secret_name.clone());
        found.extend(secret.map(Reference::Secret));
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            found.extend(source.config_map.as_ref().map(|v| Reference::ConfigMap(v.name.clone())));
            found.extend(source.secret.as_ref().map(|v| Reference::Secret(v.name.clone())));
        }
    }
    found
}

/// Makes the container's volumes below `dir` and says how they are mounted.
pub(crate) fn prepare(
    place: Place<'_>,
    container: &Container,
    dir: &Path,
    objects: &Objects,
) -> Result<Vec<BindMount>, String> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes(place.pod).iter().find(|v| v.name == mount.name);
        let volume = volume.ok_or_else(|| format!("there is no volume {:?}", mount.name))?;
        let path = dir.join(single(&volume.name)?);
        let content =
            content(place, volume, objects).map_err(|e| format!("volume {:?}: {e}", volume.name))?;
        let read_only = mount.read_only.unwrap_or(false) || content != Content::Empty;
        write(&path, content).map_err(|e| format!("volume {:?}: {e}", volume.name))?;
        let mut source = path;
        if let Some(sub) = mount.sub_path.as_deref().filter(|sub| !sub.is_empty()) {
            source.push(relative(sub)?);
            if !source.exists() {
                std::fs::create_dir_all(&source).map_err(|e| format!("subPath {sub:?}: {e}"))?;
            }
        }
        mounts.push(BindMount { source, path: PathBuf::from(&mount.mount_path), read_only });
    }
    Ok(mounts)
}

fn volumes(pod: &Pod) -> &[Volume] {
    pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
}

fn content(place: Place<'_>, volume: &Volume, objects: &Objects) -> Result<Content, String> {
    let mut files = Files::new();
    if volume.empty_dir.is_some() {
        return Ok(Content::Empty);
    }
    if let Some(source) = &volume.config_map {
        let reference = Reference::ConfigMap(source.name.clone());
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        keys(&mut files, objects, &reference, source.items.as_deref(), source.optional, mode)?;
    } else if let Some(source) = &volume.secret {
        let reference = Reference::Secret(source.secret_name.clone().unwrap_or_default());
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        keys(&mut files, objects, &reference, source.items.as_deref(), source.optional, mode)?;
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        fields(&mut files, place, source.items.as_deref(), mode)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                let reference = Reference::ConfigMap(map.name.clone());
                keys(&mut files, objects, &reference, map.items.as_deref(), map.optional, mode)?;
            } else if let Some(secret) = &source.secret {
                let reference = Reference::Secret(secret.name.clone());
                keys(&mut files, objects, &reference, secret.items.as_deref(), secret.optional, mode)?;
            } else if let Some(api) = &source.downward_api {
                fields(&mut files, place, api.items.as_deref(), mode)?;
            } else {
                return Err("this projection is not supported by the builtin runtime".to_owned());
            }
        }
    } else {
        return Err(
            "not supported by the builtin runtime: it has emptyDir, configMap, secret, downwardAPI and \
                    projections of these"
                .to_owned(),
        );
    }
    Ok(Content::Files(files))
}

fn keys(
    files: &mut Files,
    objects: &Objects,
    reference: &Reference,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
) -> Result<(), String> {
    let optional = optional.unwrap_or(false);
    let Some(data) = objects.get(reference).and_then(Option::as_ref) else {
        return if optional { Ok(()) } else { Err(format!("{reference} not found")) };
    };
    let Some(items) = items else {
        for (key, value) in data {
            files.insert(relative(key)?, (value.clone(), bits(mode)));
        }
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                let mode = bits(item.mode.unwrap_or(mode));
                files.insert(relative(&item.path)?, (value.clone(), mode));
            }
            None if optional => {}
            None => return Err(format!("{reference} has no key {:?}", item.key)),
        }
    }
    Ok(())
}

fn fields(
    files: &mut Files,
    place: Place<'_>,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: i32,
) -> Result<(), String> {
    for item in items.unwrap_or_default() {
        let field = item.field_ref.as_ref();
        let field = field.ok_or("resourceFieldRef is not supported by the builtin runtime")?;
        let text = field_value(place, field)?;
        files.insert(relative(&item.path)?, (text.into_bytes(), bits(item.mode.unwrap_or(mode))));
    }
    Ok(())
}

fn bits(mode: i32) -> u32 {
    mode.cast_unsigned() & 0o777
}

/// A path that stays below where it is joined.
fn relative(path: &str) -> Result<PathBuf, String> {
    let parsed = Path::new(path);
    if path.is_empty() || !parsed.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(format!("path {path:?} must be relative and without \"..\""));
    }
    Ok(parsed.to_owned())
}

/// A name that is one component of a path.
fn single(name: &str) -> Result<PathBuf, String> {
    relative(name).and_then(|path| match path.components().count() {
        1 => Ok(path),
        _ => Err(format!("{name:?} is not a file name")),
    })
}

fn write(path: &Path, content: Content) -> io::Result<()> {
    let fresh = !path.exists();
    std::fs::create_dir_all(path)?;
    let Content::Files(files) = content else {
        if fresh {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
        }
        return Ok(());
    };
    for (name, (bytes, mode)) in files {
        let file = path.join(name);
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&file, bytes)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn prepared(volume: serde_json::Value, dir: &Path) -> Result<Vec<BindMount>, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"volumes": [volume], "containers": [
                {"name": "a", "volumeMounts": [{"name": "v", "mountPath": "/data"}]}]},
        }))
        .unwrap();
        let objects = Objects::from([(
            Reference::ConfigMap("conf".into()),
            Some(BTreeMap::from([("key".to_owned(), b"value".to_vec())])),
        )]);
        let place = Place { pod: &pod, ips: &[], node_ips: &[] };
        prepare(place, &pod.spec.as_ref().unwrap().containers[0], dir, &objects)
    }

    #[test]
    fn files_appear_where_they_are_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let volume =
            json!({"name": "v", "configMap": {"name": "conf", "items": [{"key": "key", "path": "x/y"}]}});
        let mounts = prepared(volume, dir.path()).unwrap();
        assert_eq!(mounts[0].path, Path::new("/data"));
        assert!(mounts[0].read_only);
        assert_eq!(std::fs::read_to_string(mounts[0].source.join("x/y")).unwrap(), "value");
        let volume = json!({"name": "v", "downwardAPI": {"items": [
            {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}});
        let mounts = prepared(volume, dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(mounts[0].source.join("name")).unwrap(), "web");
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for (volume, want) in [
            (json!({"name": "v", "hostPath": {"path": "/"}}), "volume \"v\": not supported"),
            (json!({"name": "v", "secret": {"secretName": "s"}}), "volume \"v\": secret \"s\" not found"),
            (json!({"name": "w", "emptyDir": {}}), "there is no volume \"v\""),
            (
                json!({"name": "v", "configMap": {"name": "conf", "items": [{"key": "key", "path": "../x"}]}}),
                "volume \"v\": path \"../x\" must be relative",
            ),
        ] {
            let error = prepared(volume, dir.path()).unwrap_err();
            assert!(error.starts_with(want), "{error}");
        }
    }
}
