//! Each rule of strategic merge patch, as object + patch = result.
#![allow(clippy::too_many_lines, reason = "a table")]

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema;

fn merged(owner: &str, object: &Value, patch: &Value) -> Result<Value, StrategicError> {
    let schema = schema::builtin();
    apply(schema, schema.named(owner).unwrap(), object, patch)
}

#[test]
fn rules() {
    let containers = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]});
    let table = [
        (
            "members merge",
            "PodSpec",
            json!({"nodeName": "n", "hostname": "h"}),
            json!({"hostname": "g"}),
            json!({"nodeName": "n", "hostname": "g"}),
        ),
        (
            "null removes",
            "PodSpec",
            json!({"nodeName": "n", "hostname": "h"}),
            json!({"hostname": null}),
            json!({"nodeName": "n"}),
        ),
        (
            "maps merge",
            "PodSpec",
            json!({"nodeSelector": {"a": "1", "b": "2"}}),
            json!({"nodeSelector": {"b": null, "c": "3"}}),
            json!({"nodeSelector": {"a": "1", "c": "3"}}),
        ),
        (
            "lists merge by key",
            "PodSpec",
            containers.clone(),
            json!({"containers": [{"name": "b", "image": "2"}]}),
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]}),
        ),
        (
            "new elements",
            "PodSpec",
            containers.clone(),
            json!({"containers": [{"name": "c", "image": "3"}], "$setElementOrder/containers":
               [{"name": "a"}, {"name": "b"}, {"name": "c"}]}),
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}, {"name": "c", "image": "3"}]}),
        ),
        (
            "elements go",
            "PodSpec",
            containers.clone(),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [{"name": "b", "image": "1"}]}),
        ),
        (
            "lists replaced on demand",
            "PodSpec",
            containers.clone(),
            json!({"containers": [{"name": "z"}, {"$patch": "replace"}]}),
            json!({"containers": [{"name": "z"}]}),
        ),
        (
            "order alone",
            "PodSpec",
            containers.clone(),
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
            json!({"containers": [{"name": "b", "image": "1"}, {"name": "a", "image": "1"}]}),
        ),
        (
            "lists without key replace",
            "PodSpec",
            json!({"tolerations": [{"key": "a"}]}),
            json!({"tolerations": [{"key": "b"}]}),
            json!({"tolerations": [{"key": "b"}]}),
        ),
        (
            "plain lists union",
            "ObjectMeta",
            json!({"finalizers": ["a", "b"]}),
            json!({"finalizers": ["b", "c"]}),
            json!({"finalizers": ["a", "b", "c"]}),
        ),
        (
            "plain elements go",
            "ObjectMeta",
            json!({"finalizers": ["a", "b"]}),
            json!({"$deleteFromPrimitiveList/finalizers": ["a"]}),
            json!({"finalizers": ["b"]}),
        ),
        (
            "objects replaced on demand",
            "DeploymentSpec",
            json!({"strategy": {"type": "RollingUpdate"}}),
            json!({"strategy": {"$patch": "replace", "type": "Recreate"}}),
            json!({"strategy": {"type": "Recreate"}}),
        ),
        (
            "objects go",
            "DeploymentSpec",
            json!({"paused": true, "strategy": {"type": "Recreate"}}),
            json!({"strategy": {"$patch": "delete"}}),
            json!({"paused": true}),
        ),
        (
            "retained keys",
            "DeploymentSpec",
            json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
            json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
            json!({"strategy": {"type": "Recreate"}}),
        ),
        (
            "keys deep inside",
            "PodSpec",
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80}], "env": [{"name": "x", "value": "1"}]}]}),
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 81}], "env": [{"name": "x", "value": "2"}]}]}),
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80}, {"containerPort": 81}],
                "env": [{"name": "x", "value": "2"}]}]}),
        ),
        (
            "a new list is taken as it is",
            "ServiceSpec",
            json!({}),
            json!({"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"},
                             {"port": 1, "$patch": "delete"}]}),
            json!({"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}),
        ),
        (
            "unknown members stay for the decoder to name",
            "PodSpec",
            json!({}),
            json!({"colour": [1]}),
            json!({"colour": [1]}),
        ),
    ];
    for (name, owner, object, patch, wanted) in table {
        assert_eq!(merged(owner, &object, &patch).unwrap(), wanted, "{name}");
    }
}

#[test]
fn faults() {
    let object = json!({"containers": [{"name": "a"}]});
    assert!(matches!(
        merged("PodSpec", &object, &json!({"containers": [{"image": "x"}]})),
        Err(StrategicError::MergeKey { .. })
    ));
    assert!(matches!(
        merged("PodSpec", &object, &json!({"$patch": "frobnicate"})),
        Err(StrategicError::Directive { .. })
    ));
    assert!(matches!(
        merged("PodSpec", &object, &json!({"$setElementOrder/containers": 1})),
        Err(StrategicError::NotAList { .. })
    ));
    assert!(matches!(
        merged("DeploymentSpec", &json!({}), &json!({"strategy": {"$retainKeys": ["a"], "type": "x"}})),
        Err(StrategicError::RetainKeys { .. })
    ));
}

fn containers() -> impl Strategy<Value = Vec<Value>> {
    proptest::collection::btree_map("[a-e]", "[0-9]", 0..5)
        .prop_map(|map| map.into_iter().map(|(name, image)| json!({"name": name, "image": image})).collect())
}

proptest! {
    #[test]
    fn a_patch_applied_twice_changes_nothing_more(before in containers(), patch in containers(), gone in "[a-e]") {
        let object = json!({"containers": before});
        let mut list: Vec<Value> = patch.iter().filter(|value| value["name"] != gone.as_str()).cloned().collect();
        list.push(json!({"name": gone, "$patch": "delete"}));
        let patch = json!({"containers": list});
        let once = merged("PodSpec", &object, &patch).unwrap();
        prop_assert_eq!(&merged("PodSpec", &once, &patch).unwrap(), &once);
        let names: Vec<&Value> = once["containers"].as_array().unwrap().iter().map(|value| &value["name"]).collect();
        prop_assert!(!names.contains(&&json!(gone)));
        // Nothing but the deleted element is lost.
        for known in before.iter().chain(&patch["containers"].as_array().unwrap()[..list_len(&patch) - 1]) {
            prop_assert!(known["name"] == gone.as_str() || names.contains(&&known["name"]));
        }
    }

    #[test]
    fn elements_follow_the_order_that_is_asked_for(before in containers(), seed in any::<u64>()) {
        let mut order: Vec<Value> = before.iter().map(|value| json!({"name": value["name"]})).collect();
        if !order.is_empty() {
            let turn = usize::try_from(seed % order.len() as u64).unwrap();
            order.rotate_left(turn);
        }
        let patched = merged(
            "PodSpec",
            &json!({"containers": before}),
            &json!({"$setElementOrder/containers": order}),
        ).unwrap();
        let got: Vec<Value> =
            patched["containers"].as_array().unwrap().iter().map(|value| json!({"name": value["name"]})).collect();
        prop_assert_eq!(got, order);
    }
}

fn list_len(patch: &Value) -> usize {
    patch["containers"].as_array().unwrap().len()
}
