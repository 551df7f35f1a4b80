//! What a request path asks for: which group, version, namespace, resource, object and subresource.

/// The parts of a path below `/api/v1` or `/apis/{group}/{version}`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourcePath<'a> {
    /// The API group; empty for the core group.
    pub group: &'a str,
    /// The version.
    pub version: &'a str,
    /// The namespace, when the path names one.
    pub namespace: Option<&'a str>,
    /// The plural of the kind.
    pub resource: &'a str,
    /// The object's name, when the path names one.
    pub name: Option<&'a str>,
    /// The subresource, when the path names one.
    pub subresource: Option<&'a str>,
    /// What follows the subresource (paths to proxy), without the leading slash.
    pub rest: &'a str,
    /// The deprecated `/watch/` prefix was used.
    pub watch: bool,
}

/// Takes a path apart. `None` when it is no path of a resource (discovery, health, something unknown).
///
/// ```
/// let path = seaway_kinds::path::parse("/apis/apps/v1/namespaces/default/deployments/web/scale").unwrap();
/// assert_eq!((path.group, path.resource, path.name), ("apps", "deployments", Some("web")));
/// assert_eq!((path.namespace, path.subresource), (Some("default"), Some("scale")));
/// ```
pub fn parse(path: &str) -> Option<ResourcePath<'_>> {
    let path = path.strip_prefix('/')?;
    let (group, after) = match path.split_once('/')? {
        ("api", after) => ("", after),
        ("apis", after) => after.split_once('/')?,
        _ => return None,
    };
    let (version, mut after) = after.split_once('/')?;
    let mut parsed = ResourcePath { group, version, ..ResourcePath::default() };
    if let Some(watched) = after.strip_prefix("watch/") {
        (parsed.watch, after) = (true, watched);
    }
    let mut parts = after.splitn(6, '/').filter(|part| !part.is_empty()).peekable();
    let first = parts.next()?;
    if first == "namespaces" {
        let Some(namespace) = parts.next() else {
            return Some(ResourcePath { resource: first, ..parsed });
        };
        parsed.namespace = Some(namespace);
        match parts.peek() {
            // The namespace itself is the object, with or without a subresource of its own.
            None => return Some(ResourcePath { resource: first, name: Some(namespace), ..parsed }),
            Some(&own @ ("status" | "finalize")) => {
                return Some(ResourcePath {
                    resource: first,
                    name: Some(namespace),
                    subresource: Some(own),
                    ..parsed
                });
            }
            Some(_) => parsed.resource = parts.next()?,
        }
    } else {
        parsed.resource = first;
    }
    parsed.name = parts.next();
    parsed.subresource = parts.next();
    // What is left is one or more parts of the same text: find where it begins.
    if let Some(rest) = parts.next() {
        let start = rest.as_ptr() as usize - path.as_ptr() as usize;
        parsed.rest = &path[start..];
    }
    Some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        let table: &[(&str, Option<&str>)] = &[
            ("/api/v1/pods", Some("/v1 - pods - -")),
            ("/api/v1/namespaces", Some("/v1 - namespaces - -")),
            ("/api/v1/namespaces/a", Some("/v1 a namespaces a -")),
            ("/api/v1/namespaces/a/status", Some("/v1 a namespaces a status")),
            ("/api/v1/namespaces/a/finalize", Some("/v1 a namespaces a finalize")),
            ("/api/v1/namespaces/a/pods", Some("/v1 a pods - -")),
            ("/api/v1/namespaces/a/pods/b/log", Some("/v1 a pods b log")),
            ("/api/v1/namespaces/a/services/b/proxy/c/d", Some("/v1 a services b proxy c/d")),
            ("/api/v1/nodes/n/proxy/logs/x", Some("/v1 - nodes n proxy logs/x")),
            ("/apis/apps/v1/deployments", Some("apps/v1 - deployments - -")),
            ("/apis/apps/v1/namespaces/a/deployments/b/scale", Some("apps/v1 a deployments b scale")),
            ("/api/v1/watch/namespaces/a/pods", Some("/v1 a pods - - watch")),
            ("/api/v1", None),
            ("/apis/apps/v1", None),
            ("/healthz", None),
            ("", None),
        ];
        for (text, wanted) in table {
            let got = parse(text).map(|path| {
                let mut line = format!(
                    "{}/{} {} {} {} {}",
                    path.group,
                    path.version,
                    path.namespace.unwrap_or("-"),
                    path.resource,
                    path.name.unwrap_or("-"),
                    path.subresource.unwrap_or("-")
                );
                for extra in [path.rest, if path.watch { "watch" } else { "" }] {
                    if !extra.is_empty() {
                        line = format!("{line} {extra}");
                    }
                }
                line
            });
            assert_eq!(got.as_deref(), *wanted, "{text}");
        }
    }
}
