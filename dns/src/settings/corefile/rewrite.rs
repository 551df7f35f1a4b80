//! Names that are asked for under another one, as Corefiles and TOML files have it.

use super::Reader;
use super::syntax::Directive;
use crate::settings::{AnswerRewrite, Matching, Rewrite, ZoneSettings, values};

/// `exact`, `prefix`, `suffix`, `substring` or `regex`.
pub(in crate::settings) fn matching(text: &str) -> Result<Matching, String> {
    match text {
        "exact" => Ok(Matching::Exact),
        "prefix" => Ok(Matching::Prefix),
        "suffix" => Ok(Matching::Suffix),
        "substring" => Ok(Matching::Substring),
        "regex" => Ok(Matching::Regex),
        other => Err(format!("{other:?}: want exact, prefix, suffix, substring or regex")),
    }
}

/// A rule for names. Names that are matched whole or at their end are absolute.
pub(in crate::settings) fn rewrite(matching: Matching, from: &str, to: &str) -> Result<Rewrite, String> {
    if from.is_empty() {
        return Err("a rewrite needs a name to start from".to_owned());
    }
    let rule = |from, to| Rewrite { matching, from, to, goes_on: false, answers: Vec::new() };
    if matching == Matching::Regex {
        return Ok(rule(values::expression(from)?, to.to_ascii_lowercase()));
    }
    let dotted = |text: &str| {
        let absolute = matches!(matching, Matching::Exact | Matching::Suffix);
        let text = text.to_ascii_lowercase();
        if absolute && !text.ends_with('.') { text + "." } else { text }
    };
    let (from, to) = (dotted(from), dotted(to));
    if matching == Matching::Exact {
        values::name(&from)?;
        values::name(&to)?;
    }
    Ok(rule(from, to))
}

/// `[continue|stop] name [MATCHING] FROM TO [answer …]`
fn parse(args: &[&str]) -> Result<Rewrite, String> {
    const WANTED: &str = "only `rewrite [continue|stop] name [exact|prefix|suffix|substring|regex] FROM TO [answer auto|name FROM \
                          TO|value FROM TO]` is supported";
    let (goes_on, args) = match args {
        ["continue", rest @ ..] => (true, rest),
        ["stop", rest @ ..] | rest => (false, rest),
    };
    let (rule, rest) = match args {
        ["name", from, to] => (rewrite(Matching::Exact, from, to)?, &[][..]),
        ["name", from, to, rest @ ..] if rest.first() == Some(&"answer") && matching(from).is_err() => {
            (rewrite(Matching::Exact, from, to)?, rest)
        }
        ["name", how, from, to, rest @ ..] => (rewrite(matching(how)?, from, to)?, rest),
        _ => return Err(WANTED.to_owned()),
    };
    Ok(Rewrite { goes_on, answers: answers(rest)?, ..rule })
}

/// What is done to names in answers, beside that what was asked for comes back.
fn answers(args: &[&str]) -> Result<Vec<AnswerRewrite>, String> {
    let (mut rules, mut rest) = (Vec::new(), args);
    while !rest.is_empty() {
        // Behind the first one the word may be left out.
        let word = rest.strip_prefix(&["answer"]);
        if word.is_none() && rest.len() == args.len() {
            return Err(format!("{:?}: want \"answer\"", rest[0]));
        }
        rest = match word.unwrap_or(rest) {
            // It is always so.
            ["auto", rest @ ..] | ["name", "auto", rest @ ..] => rest,
            [part @ ("name" | "value"), from, to, rest @ ..] => {
                let from = values::expression(from)?;
                rules.push(AnswerRewrite { of_values: *part == "value", from, to: to.to_ascii_lowercase() });
                rest
            }
            _ => return Err("answer wants auto, name FROM TO, or value FROM TO".to_owned()),
        };
    }
    Ok(rules)
}

impl Reader<'_> {
    /// A rule in one line, or in the lines of a block.
    pub(super) fn rewrite(&mut self, directive: &Directive, zone: &mut ZoneSettings) {
        let mut args = directive.args();
        if args.len() < 2 {
            args.extend(directive.body.iter().flat_map(|line| &line.words).map(String::as_str));
        } else if let Some(line) = directive.body.first() {
            self.problem(line.line, "a rule is given in one line or in a block, not in both".to_owned());
        }
        zone.rewrites.extend(self.take(directive.line, parse(&args)));
    }
}
