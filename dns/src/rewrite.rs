//! Names that are asked for under another one, and the way back.

use hickory_proto::rr::{Name, Record};

use crate::settings::{Matching, Rewrite};

/// The name to ask for instead of `name`: the first rule that applies decides.
pub(crate) fn rewritten(rules: &[Rewrite], name: &Name) -> Option<Name> {
    if rules.is_empty() {
        return None;
    }
    let text = name.to_ascii().to_ascii_lowercase();
    rules.iter().find_map(|rule| apply(rule, &text))
}

fn apply(rule: &Rewrite, text: &str) -> Option<Name> {
    let changed = match rule.matching {
        Matching::Exact => (text == rule.from).then(|| rule.to.clone()),
        Matching::Prefix => text.strip_prefix(&*rule.from).map(|rest| format!("{}{rest}", rule.to)),
        Matching::Suffix => text.strip_suffix(&*rule.from).map(|rest| format!("{rest}{}", rule.to)),
        Matching::Substring => text.contains(&*rule.from).then(|| text.replace(&*rule.from, &rule.to)),
    }?;
    let mut name = Name::from_ascii(changed).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// Gives records the name that was asked for: the client does not know of the other one.
pub(crate) fn restore(records: &mut [Record], asked: &Name, instead: &Name) {
    for record in records.iter_mut().filter(|record| record.name == *instead) {
        record.name.clone_from(asked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(matching: Matching, from: &str, to: &str) -> Rewrite {
        Rewrite { matching, from: from.to_owned(), to: to.to_owned() }
    }

    #[test]
    fn rules() {
        let rules = [
            rule(Matching::Exact, "db.example.", "db.shop.svc.cluster.local."),
            rule(Matching::Suffix, ".old.example.", ".shop.svc.cluster.local."),
            rule(Matching::Prefix, "blue-", "green-"),
            rule(Matching::Substring, "staging", "prod"),
        ];
        let rewritten =
            |name: &str| rewritten(&rules, &Name::from_ascii(name).unwrap()).map(|name| name.to_ascii());
        assert_eq!(rewritten("DB.example.").as_deref(), Some("db.shop.svc.cluster.local."));
        assert_eq!(rewritten("web.old.example.").as_deref(), Some("web.shop.svc.cluster.local."));
        assert_eq!(rewritten("blue-web.example.").as_deref(), Some("green-web.example."));
        assert_eq!(rewritten("web.staging.example.").as_deref(), Some("web.prod.example."));
        assert_eq!(rewritten("www.example."), None);
    }
}
