//! The search path, walked on the server's side: a pod asks for `example.com.NAMESPACE.svc.ZONE` first, and would go on
//! through its search domains up to `example.com` itself. Whoever knows the pod's namespace can do that for it, at once.

use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record};

/// The names that the client would ask for one after the other, `asked` being the first; empty where `asked` is not the
/// first name of a walk. `search` are domains beyond the cluster's own three.
pub(crate) fn walk(asked: &Name, origin: &Name, namespace: &str, search: &[Name]) -> Vec<Name> {
    let domain = |labels: &[&str]| {
        let mut domain = Name::new();
        for label in labels {
            domain = domain.append_label(label.as_bytes()).ok()?;
        }
        domain.append_domain(origin).ok()
    };
    let Some(first) = domain(&[namespace, "svc"]) else { return Vec::new() };
    // The name of the namespace itself is no search.
    let (depth, base) = (asked.iter().len(), first.iter().len());
    if depth <= base || !first.zone_of(asked) {
        return Vec::new();
    }
    let Ok(mut stem) = Name::from_labels(asked.iter().take(depth - base)) else { return Vec::new() };
    stem.set_fqdn(false);
    let domains = domain(&["svc"]).into_iter().chain([origin.clone()]).chain(search.iter().cloned());
    let mut names: Vec<Name> =
        domains.filter_map(|domain| stem.clone().append_domain(&domain).ok()).collect();
    stem.set_fqdn(true);
    names.push(stem);
    names
}

/// The alias from the name that was asked for to the one that exists.
pub(crate) fn alias(asked: &Name, found: &Name, ttl_s: u32) -> Record {
    Record::from_rdata(asked.clone(), ttl_s, RData::CNAME(CNAME(found.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn walks() {
        let names = |asked: &str| {
            let names = walk(&name(asked), &name("cluster.local."), "shop", &[name("corp.example.")]);
            names.iter().map(Name::to_ascii).collect::<Vec<_>>()
        };
        assert_eq!(
            names("www.Example.com.shop.SVC.cluster.local."),
            [
                "www.Example.com.svc.cluster.local.",
                "www.Example.com.cluster.local.",
                "www.Example.com.corp.example.",
                "www.Example.com."
            ]
        );
        assert_eq!(
            names("web.shop.svc.cluster.local."),
            ["web.svc.cluster.local.", "web.cluster.local.", "web.corp.example.", "web."]
        );
        assert!(names("shop.svc.cluster.local.").is_empty());
        assert!(names("www.example.com.other.svc.cluster.local.").is_empty());
        assert!(names("www.example.com.svc.cluster.local.").is_empty());
        assert!(names("www.example.com.").is_empty());
    }
}
