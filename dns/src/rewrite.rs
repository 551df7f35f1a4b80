//! Names that are asked for under another one, and the way back.

use std::sync::Arc;

use hickory_proto::rr::{Name, RData, Record};
use regex::{Captures, Regex};

use crate::settings::{Matching, Rewrite};
use crate::wire::Response;

/// A rule, ready for use.
#[derive(Debug)]
pub(crate) struct Rule {
    rewrite: Rewrite,
    /// Where it matches by an expression, which has been found good when it was read.
    expression: Option<Regex>,
    /// Those of its rules for answers, in their order.
    answers: Vec<Regex>,
}

/// Another name that is looked up instead, and the rules that have led to it.
#[derive(Debug)]
pub(crate) struct Instead {
    pub(crate) name: Name,
    rules: Vec<Arc<Rule>>,
}

impl Rule {
    pub(crate) fn new(rewrite: &Rewrite) -> Self {
        let expression = (rewrite.matching == Matching::Regex).then(|| Regex::new(&rewrite.from).ok());
        let answers = rewrite.answers.iter().filter_map(|rule| Regex::new(&rule.from).ok()).collect();
        Self { rewrite: rewrite.clone(), expression: expression.flatten(), answers }
    }

    /// What becomes of a name in lower case, if the rule is about it.
    fn apply(&self, text: &str) -> Option<Name> {
        let Rewrite { matching, from, to, .. } = &self.rewrite;
        let changed = match matching {
            Matching::Exact => (text == from).then(|| to.clone()),
            Matching::Prefix => text.strip_prefix(&**from).map(|rest| format!("{to}{rest}")),
            Matching::Suffix => text.strip_suffix(&**from).map(|rest| format!("{rest}{to}")),
            Matching::Substring => text.contains(&**from).then(|| text.replace(&**from, to)),
            Matching::Regex => self.expression.as_ref()?.captures(text).map(|groups| filled_in(to, &groups)),
        }?;
        absolute(&changed)
    }

    /// Changes names of an answer's records, and in them, as the rule says.
    fn answer(&self, record: &mut Record, asked: &Name) {
        for (rule, expression) in self.rewrite.answers.iter().zip(&self.answers) {
            let changed = |name: &Name| {
                let text = name.to_ascii().to_ascii_lowercase();
                expression.captures(&text).and_then(|groups| absolute(&filled_in(&rule.to, &groups)))
            };
            let place = if rule.of_values { name_in(&mut record.data) } else { Some(&mut record.name) };
            // What was asked for has come back already.
            let place = place.filter(|name| rule.of_values || *name != asked);
            if let Some(place) = place
                && let Some(other) = changed(place)
            {
                *place = other;
            }
        }
    }
}

/// `text` with the groups that it names.
fn filled_in(text: &str, groups: &Captures<'_>) -> String {
    let groups = groups.iter().map(|group| group.map_or("", |group| group.as_str()));
    groups.enumerate().fold(text.to_owned(), |text, (n, group)| text.replace(&format!("{{{n}}}"), group))
}

fn absolute(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// The name that a record leads to.
fn name_in(data: &mut RData) -> Option<&mut Name> {
    match data {
        RData::CNAME(data) => Some(&mut data.0),
        RData::NS(data) => Some(&mut data.0),
        RData::PTR(data) => Some(&mut data.0),
        RData::SRV(data) => Some(&mut data.target),
        RData::MX(data) => Some(&mut data.exchange),
        RData::SOA(data) => Some(&mut data.mname),
        _ => None,
    }
}

/// The name to ask for instead of `name`: the first rule that applies decides, or those that let others go on.
pub(crate) fn rewritten(rules: &[Arc<Rule>], name: &Name) -> Option<Instead> {
    let mut instead: Option<Instead> = None;
    for rule in rules {
        let current = instead.as_ref().map_or(name, |instead| &instead.name);
        let Some(changed) = rule.apply(&current.to_ascii().to_ascii_lowercase()) else { continue };
        let mut applied = instead.map(|instead| instead.rules).unwrap_or_default();
        applied.push(Arc::clone(rule));
        instead = Some(Instead { name: changed, rules: applied });
        if !rule.rewrite.goes_on {
            break;
        }
    }
    instead
}

impl Instead {
    /// Gives an answer the name that was asked for: the client does not know of the other one.
    pub(crate) fn restore(&self, response: &mut Response, asked: &Name) {
        restore(&mut response.answers, asked, &self.name);
        let records = response.answers.iter_mut().chain(&mut response.authorities);
        for record in records.chain(&mut response.additionals) {
            // In reverse: the last rule has made the name that was looked up.
            self.rules.iter().rev().for_each(|rule| rule.answer(record, asked));
        }
    }
}

/// Gives records that are called `other` the name `asked`.
pub(crate) fn restore(records: &mut [Record], asked: &Name, other: &Name) {
    for record in records.iter_mut().filter(|record| record.name == *other) {
        record.name.clone_from(asked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::AnswerRewrite;
    use hickory_proto::op::ResponseCode;
    use hickory_proto::rr::rdata::{A, CNAME};

    fn rule(matching: Matching, from: &str, to: &str) -> Rewrite {
        Rewrite { matching, from: from.to_owned(), to: to.to_owned(), goes_on: false, answers: Vec::new() }
    }

    fn ready(rules: &[Rewrite]) -> Vec<Arc<Rule>> {
        rules.iter().map(|rule| Arc::new(Rule::new(rule))).collect()
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn rules() {
        let rules = ready(&[
            rule(Matching::Exact, "db.example.", "db.shop.svc.cluster.local."),
            rule(Matching::Suffix, ".old.example.", ".shop.svc.cluster.local."),
            rule(Matching::Prefix, "blue-", "green-"),
            rule(Matching::Substring, "staging", "prod"),
            rule(Matching::Regex, r"^([a-z]+)-(\d+)\.set\.example\.$", "{1}-{2}.{1}.shop.svc.cluster.local"),
            Rewrite { goes_on: true, ..rule(Matching::Suffix, ".first.example.", ".second.example.") },
            rule(Matching::Suffix, ".second.example.", ".third.example."),
            rule(Matching::Suffix, ".third.example.", ".never.example."),
        ]);
        let rewritten = |text: &str| rewritten(&rules, &name(text)).map(|instead| instead.name.to_ascii());
        assert_eq!(rewritten("DB.example.").as_deref(), Some("db.shop.svc.cluster.local."));
        assert_eq!(rewritten("web.old.example.").as_deref(), Some("web.shop.svc.cluster.local."));
        assert_eq!(rewritten("blue-web.example.").as_deref(), Some("green-web.example."));
        assert_eq!(rewritten("web.staging.example.").as_deref(), Some("web.prod.example."));
        assert_eq!(rewritten("DB-7.set.example.").as_deref(), Some("db-7.db.shop.svc.cluster.local."));
        assert_eq!(rewritten("web.first.example.").as_deref(), Some("web.third.example."));
        assert_eq!(rewritten("db-x.set.example."), None);
        assert_eq!(rewritten("www.example."), None);
    }

    #[test]
    fn names_in_answers() {
        let answer = |of_values, from: &str, to: &str| AnswerRewrite {
            of_values,
            from: from.to_owned(),
            to: to.to_owned(),
        };
        let (inner, outer) = (r"^(.*)\.inner\.example\.$", "{1}.outer.example.");
        let rules = ready(&[Rewrite {
            answers: vec![answer(false, inner, outer), answer(true, inner, outer)],
            ..rule(Matching::Suffix, ".outer.example.", ".inner.example.")
        }]);
        let asked = name("Web.outer.example.");
        let instead = rewritten(&rules, &asked).unwrap();
        let record = |owner: &str, data| Record::from_rdata(name(owner), 5, data);
        let alias = RData::CNAME(CNAME(name("b.inner.example.")));
        let address = RData::A(A::new(192, 0, 2, 1));
        let mut response = Response {
            answers: vec![record("web.inner.example.", alias), record("b.inner.example.", address.clone())],
            additionals: vec![record("far.example.", address)],
            ..Response::empty(ResponseCode::NoError)
        };
        instead.restore(&mut response, &asked);
        let told: Vec<String> = response
            .answers
            .iter()
            .chain(&response.additionals)
            .map(|record| format!("{} {}", record.name.to_ascii(), record.data))
            .collect();
        assert_eq!(
            told,
            ["Web.outer.example. b.outer.example.", "b.outer.example. 192.0.2.1", "far.example. 192.0.2.1"]
        );
    }
}
