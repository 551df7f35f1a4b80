//! Hashes of pod templates, spelled with the letters that upstream uses in names (no vowels, no 0, 1, 3).

use k8s_openapi::api::core::v1::PodTemplateSpec;

const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The hash of `template`; a collision count other than none leads to another one.
pub(crate) fn of_template(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    // The types serialize their fields in a fixed order and their maps sorted.
    let mut bytes = serde_json::to_vec(template).unwrap_or_default();
    if let Some(count) = collisions {
        bytes.extend(count.to_le_bytes());
    }
    spell(fnv1a(&bytes))
}

fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// As upstream: each digit of the decimal number picks a letter.
fn spell(hash: u32) -> String {
    hash.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_stable_and_follow_the_template_and_the_collisions() {
        let template: PodTemplateSpec = serde_json::from_value(
            serde_json::json!({"spec": {"containers": [{"name": "a", "image": "x:1"}]}}),
        )
        .unwrap();
        let mut other = template.clone();
        other.spec.as_mut().unwrap().containers[0].image = Some("x:2".into());
        let hash = of_template(&template, None);
        assert_eq!(hash, of_template(&template, None));
        assert_ne!(hash, of_template(&other, None));
        assert_ne!(hash, of_template(&template, Some(1)));
        assert!(hash.bytes().all(|byte| ALPHABET.contains(&byte)), "{hash}");
    }
}
