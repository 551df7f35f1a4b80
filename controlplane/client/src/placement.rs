//! The rules by which a pod may be placed on a node, where scheduler and DaemonSet controller must agree: taints and
//! tolerations, node selectors, node affinity. Pure functions on API types.

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

/// A new pod is not placed there.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// A new pod is rather placed elsewhere.
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
/// Pods that are there are evicted.
pub const NO_EXECUTE: &str = "NoExecute";

/// Whether `toleration` tolerates `taint`.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => key.is_empty() || key == taint.key,
        "Equal" | "" => {
            key == taint.key
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

/// The taints of `node` with one of `effects` that `spec` does not tolerate.
pub fn untolerated<'a>(
    spec: &'a PodSpec,
    node: &'a Node,
    effects: &'a [&str],
) -> impl Iterator<Item = &'a Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    taints
        .iter()
        .filter(move |taint| effects.contains(&taint.effect.as_str()))
        .filter(move |taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

/// Whether `node` matches `spec.nodeSelector` and the required node affinity.
pub fn matches_node_affinity(spec: &PodSpec, node: &Node) -> bool {
    let labels = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels(key).is_some_and(|label| label == value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected
        && required
            .is_none_or(|selector| selector.node_selector_terms.iter().any(|term| matches_term(term, node)))
}

/// The sum of the weights of the preferred node affinity terms that `node` matches.
pub fn preferred_affinity_weight(spec: &PodSpec, node: &Node) -> i64 {
    let preferred = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_deref());
    let terms = preferred.unwrap_or_default().iter();
    terms.filter(|term| matches_term(&term.preference, node)).map(|term| i64::from(term.weight)).sum()
}

/// Terms are alternatives, the requirements of a term must all hold. An empty term matches nothing.
fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let labels = node.metadata.labels.as_ref();
    expressions.iter().all(|requirement| {
        matches_requirement(
            requirement,
            labels.and_then(|labels| labels.get(&requirement.key)).map(String::as_str),
        )
    }) && fields.iter().all(|requirement| {
        requirement.key == "metadata.name" && matches_requirement(requirement, node.metadata.name.as_deref())
    })
}

fn matches_requirement(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = |value: &str| values.iter().any(|allowed| allowed == value);
    let number = |text: &str| text.parse::<i64>().ok();
    let bound = || values.first().map(String::as_str).and_then(number);
    match requirement.operator.as_str() {
        "In" => value.is_some_and(among),
        "NotIn" => !value.is_some_and(among),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => value.and_then(number).zip(bound()).is_some_and(|(value, bound)| value > bound),
        "Lt" => value.and_then(number).zip(bound()).is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node() -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"zone": "a", "cores": "8"}},
            "spec": {"taints": [{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]},
        }))
        .unwrap()
    }

    fn spec(value: Value) -> PodSpec {
        let mut value = value;
        value["containers"] = json!([]);
        serde_json::from_value(value).unwrap()
    }

    fn required(expressions: &Value, fields: &Value) -> PodSpec {
        spec(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": expressions, "matchFields": fields}]}}}}))
    }

    #[test]
    fn tolerations() {
        let cases = [
            (json!({"key": "dedicated", "value": "db"}), true),
            (json!({"key": "dedicated", "operator": "Equal", "value": "db", "effect": "NoSchedule"}), true),
            (json!({"key": "dedicated", "value": "web"}), false),
            (json!({"key": "dedicated", "operator": "Exists"}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "other", "operator": "Exists"}), false),
        ];
        for (toleration, tolerated) in cases {
            let spec = spec(json!({"tolerations": [toleration]}));
            let node = node();
            assert_eq!(untolerated(&spec, &node, &[NO_SCHEDULE]).next().is_none(), tolerated, "{spec:?}");
        }
    }

    #[test]
    fn node_selectors_and_affinity() {
        assert!(matches_node_affinity(&spec(json!({"nodeSelector": {"zone": "a"}})), &node()));
        assert!(!matches_node_affinity(&spec(json!({"nodeSelector": {"zone": "b"}})), &node()));
        let cases = [
            (json!({"key": "zone", "operator": "In", "values": ["a", "b"]}), true),
            (json!({"key": "zone", "operator": "NotIn", "values": ["a"]}), false),
            (json!({"key": "absent", "operator": "NotIn", "values": ["a"]}), true),
            (json!({"key": "absent", "operator": "Exists"}), false),
            (json!({"key": "absent", "operator": "DoesNotExist"}), true),
            (json!({"key": "cores", "operator": "Gt", "values": ["4"]}), true),
            (json!({"key": "cores", "operator": "Lt", "values": ["8"]}), false),
            (json!({"key": "zone", "operator": "Gt", "values": ["4"]}), false),
        ];
        for (expression, matched) in cases {
            let spec = required(&json!([expression]), &json!([]));
            assert_eq!(matches_node_affinity(&spec, &node()), matched, "{expression}");
        }
        let by_name = |name: &str| json!([{"key": "metadata.name", "operator": "In", "values": [name]}]);
        assert!(matches_node_affinity(&required(&json!([]), &by_name("n1")), &node()));
        assert!(!matches_node_affinity(&required(&json!([]), &by_name("n2")), &node()));
        assert!(!matches_node_affinity(&required(&json!([]), &json!([])), &node()), "an empty term");
    }

    #[test]
    fn preferences_add_up() {
        let term = |weight: i32, zone: &str| {
            json!({"weight": weight, "preference":
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}})
        };
        let spec =
            spec(json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
            [term(10, "a"), term(5, "b"), term(1, "a")]}}}));
        assert_eq!(preferred_affinity_weight(&spec, &node()), 11);
    }
}
