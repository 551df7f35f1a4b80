//! Whatever text a client puts into a path, a header or a query parameter: an answer, never a panic.

use proptest::prelude::*;
use seaway_kinds::quantity::Quantity;
use seaway_kinds::{FieldSelector, FieldValidation, LabelSelector, Registry, negotiate, path, time};

proptest! {
    #[test]
    fn any_text(text in "\\PC{0,60}") {
        let registry = Registry::builtin();
        drop(LabelSelector::parse(&text));
        for kind in registry.kinds() {
            drop(FieldSelector::parse(kind, &text));
        }
        drop(FieldValidation::parse(Some(&text)));
        drop(negotiate::negotiate(Some(&text)));
        negotiate::negotiate_discovery(Some(&text));
        drop(Quantity::parse(&text));
        drop(time::parse(&text));
        path::parse(&text);
    }

    #[test]
    fn near_misses(text in "[a-z!=,() ./\\\\<>-]{0,40}") {
        if let Ok(selector) = LabelSelector::parse(&text) {
            let printed = selector.to_string();
            prop_assert_eq!(LabelSelector::parse(&printed).map(|again| again.to_string()), Ok(printed));
        }
        path::parse(&format!("/api/v1/{text}"));
        path::parse(&format!("/apis/{text}"));
    }

    #[test]
    fn a_selector_agrees_with_its_object_form(key in "[a-c]", values in proptest::collection::btree_set("[x-z]", 1..3),
                                              label in "[x-z]") {
        let words: Vec<&str> = values.iter().map(String::as_str).collect();
        let labels = serde_json::json!({ "a": label });
        for (operator, word) in [("In", "in"), ("NotIn", "notin")] {
            let object = serde_json::json!({
                "matchExpressions": [{"key": key, "operator": operator, "values": words}]});
            let from_object = LabelSelector::from_object(&object);
            let from_text = LabelSelector::parse(&format!("{key} {word} ({})", words.join(",")));
            let (Ok(from_object), Ok(from_text)) = (from_object, from_text) else {
                return Err(TestCaseError::fail("both forms are valid"));
            };
            prop_assert_eq!(
                from_object.matches_labels(labels.as_object()),
                from_text.matches_labels(labels.as_object())
            );
        }
    }
}
