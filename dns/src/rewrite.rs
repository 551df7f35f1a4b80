//! Names that are asked for under another one, and the way back.

use hickory_proto::rr::{Name, Record};
use regex::Regex;

use crate::settings::{Matching, Rewrite};

/// A rule, ready for use.
#[derive(Debug)]
pub(crate) struct Rule {
    rewrite: Rewrite,
    /// Where it matches by an expression, which has been found good when it was read.
    expression: Option<Regex>,
}

impl Rule {
    pub(crate) fn new(rewrite: &Rewrite) -> Self {
        let expression = (rewrite.matching == Matching::Regex).then(|| Regex::new(&rewrite.from).ok());
        Self { rewrite: rewrite.clone(), expression: expression.flatten() }
    }

    /// What becomes of a name in lower case, if the rule is about it.
    fn apply(&self, text: &str) -> Option<Name> {
        let Rewrite { matching, from, to } = &self.rewrite;
        let changed = match matching {
            Matching::Exact => (text == from).then(|| to.clone()),
            Matching::Prefix => text.strip_prefix(&**from).map(|rest| format!("{to}{rest}")),
            Matching::Suffix => text.strip_suffix(&**from).map(|rest| format!("{rest}{to}")),
            Matching::Substring => text.contains(&**from).then(|| text.replace(&**from, to)),
            Matching::Regex => {
                let groups = self.expression.as_ref()?.captures(text)?;
                let groups = groups.iter().map(|group| group.map_or("", |group| group.as_str()));
                Some(
                    groups
                        .enumerate()
                        .fold(to.clone(), |to, (n, group)| to.replace(&format!("{{{n}}}"), group)),
                )
            }
        }?;
        let mut name = Name::from_ascii(changed).ok()?;
        name.set_fqdn(true);
        Some(name)
    }
}

/// The name to ask for instead of `name`: the first rule that applies decides.
pub(crate) fn rewritten(rules: &[Rule], name: &Name) -> Option<Name> {
    if rules.is_empty() {
        return None;
    }
    let text = name.to_ascii().to_ascii_lowercase();
    rules.iter().find_map(|rule| rule.apply(&text))
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

    fn rule(matching: Matching, from: &str, to: &str) -> Rule {
        Rule::new(&Rewrite { matching, from: from.to_owned(), to: to.to_owned() })
    }

    #[test]
    fn rules() {
        let rules = [
            rule(Matching::Exact, "db.example.", "db.shop.svc.cluster.local."),
            rule(Matching::Suffix, ".old.example.", ".shop.svc.cluster.local."),
            rule(Matching::Prefix, "blue-", "green-"),
            rule(Matching::Substring, "staging", "prod"),
            rule(Matching::Regex, r"^([a-z]+)-(\d+)\.set\.example\.$", "{1}-{2}.{1}.shop.svc.cluster.local"),
        ];
        let rewritten =
            |name: &str| rewritten(&rules, &Name::from_ascii(name).unwrap()).map(|name| name.to_ascii());
        assert_eq!(rewritten("DB.example.").as_deref(), Some("db.shop.svc.cluster.local."));
        assert_eq!(rewritten("web.old.example.").as_deref(), Some("web.shop.svc.cluster.local."));
        assert_eq!(rewritten("blue-web.example.").as_deref(), Some("green-web.example."));
        assert_eq!(rewritten("web.staging.example.").as_deref(), Some("web.prod.example."));
        assert_eq!(rewritten("DB-7.set.example.").as_deref(), Some("db-7.db.shop.svc.cluster.local."));
        assert_eq!(rewritten("db-x.set.example."), None);
        assert_eq!(rewritten("www.example."), None);
    }
}
