//! Rules as `iptables-save` writes and `iptables-restore` reads them, and a canonical form to compare them by: the
//! same rule comes back in another order, with modules named, masks added and probabilities rounded.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::frontend::StableHash;

/// One of the two tables that are ours in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Where destinations are chosen. It is committed first: what it translates, `filter` does not refuse.
    Nat,
    /// Where packets that nobody serves are refused.
    Filter,
}

impl Table {
    /// Both, in the order in which they are committed.
    pub const ALL: [Self; 2] = [Self::Nat, Self::Filter];

    /// The name that iptables knows it by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }

    /// The table of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }
}

/// One option of a rule with its values, such as `--dport 80`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arg {
    /// It is negated.
    pub negated: bool,
    /// Its name, with dashes.
    pub name: String,
    /// Its values.
    pub values: Vec<String>,
}

/// A rule without the chain that it stands in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    args: Vec<Arg>,
}

impl Rule {
    /// A rule that matches everything and does nothing, to add to.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an option; several values are separated by blanks.
    #[must_use]
    pub fn with(mut self, name: &str, values: impl fmt::Display) -> Self {
        let values = values.to_string().split(' ').filter(|v| !v.is_empty()).map(str::to_owned).collect();
        self.args.push(Arg { negated: false, name: name.to_owned(), values });
        self
    }

    /// Adds a negated option.
    #[must_use]
    pub fn without(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.args.push(Arg { negated: true, name: name.to_owned(), values: vec![value.to_string()] });
        self
    }

    /// Adds an option that has no value.
    #[must_use]
    pub fn flag(mut self, name: &str) -> Self {
        self.args.push(Arg { negated: false, name: name.to_owned(), values: Vec::new() });
        self
    }

    /// Adds a comment.
    #[must_use]
    pub fn comment(mut self, text: &str) -> Self {
        self = self.with("-m", "comment");
        self.args.push(Arg { negated: false, name: "--comment".to_owned(), values: vec![text.to_owned()] });
        self
    }

    /// The only value of the option `name`, if it is there once and not negated.
    pub fn value(&self, name: &str) -> Option<&str> {
        let mut found = self.args.iter().filter(|arg| arg.name == name);
        match (found.next(), found.next()) {
            (Some(Arg { negated: false, values, .. }), None) if values.len() == 1 => {
                values.first().map(String::as_str)
            }
            _ => None,
        }
    }

    /// All options.
    pub fn args(&self) -> &[Arg] {
        &self.args
    }

    /// Where a packet goes that it matches: the chain or target of `-j` or `-g`.
    pub fn target(&self) -> Option<&str> {
        self.value("-j").or_else(|| self.value("-g"))
    }

    /// Parses what follows the chain's name. `None`: the quotes do not match, or it does not begin with an option.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rule = Self::new();
        let mut negated = false;
        for word in words(text)? {
            match word {
                Word { text, quoted: false } if text == "!" => negated = true,
                Word { text, quoted: false } if text.starts_with('-') && text.len() > 1 => {
                    rule.args.push(Arg { negated, name: text, values: Vec::new() });
                    negated = false;
                }
                Word { text, .. } => rule.args.last_mut()?.values.push(text),
            }
        }
        Some(rule)
    }

    /// The same for rules that mean the same.
    pub fn canonical(&self) -> Vec<Arg> {
        let mut args: Vec<Arg> = self.args.iter().filter(|arg| !implied(arg)).cloned().collect();
        for arg in &mut args {
            for value in &mut arg.values {
                *value = canonical_value(&arg.name, value);
            }
        }
        args.sort();
        args
    }
}

/// What iptables writes on its own account.
fn implied(arg: &Arg) -> bool {
    let value = arg.values.first().map_or("", String::as_str);
    match arg.name.as_str() {
        "-m" => true,
        "--mask" => value == "255.255.255.255" || value == "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "--reject-with" => value == "icmp-port-unreachable" || value == "icmp6-port-unreachable",
        _ => false,
    }
}

fn canonical_value(name: &str, value: &str) -> String {
    match name {
        "-s" | "-d" => {
            let host = |addr: IpAddr| IpNet::from(addr).to_string();
            let net = value.parse::<IpNet>().map(|net| net.to_string());
            net.or_else(|_| value.parse().map(host)).unwrap_or_else(|_| value.to_owned())
        }
        "--to-destination" => {
            value.parse::<SocketAddr>().map_or_else(|_| value.to_owned(), |addr| addr.to_string())
        }
        // The kernel keeps 31 bits of it.
        "--probability" => value.parse::<f64>().map_or_else(|_| value.to_owned(), |p| format!("{p:.6}")),
        _ => value.to_owned(),
    }
}

struct Word {
    text: String,
    quoted: bool,
}

/// Splits at blanks; double quotes hold a word together, a backslash takes the next character as it is.
fn words(text: &str) -> Option<Vec<Word>> {
    let mut words = Vec::new();
    let mut current: Option<Word> = None;
    let mut open = false;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                open = !open;
                current.get_or_insert(Word { text: String::new(), quoted: true }).quoted = true;
            }
            '\\' => {
                let next = characters.next()?;
                current.get_or_insert(Word { text: String::new(), quoted: false }).text.push(next);
            }
            blank if blank.is_whitespace() && !open => words.extend(current.take()),
            other => current.get_or_insert(Word { text: String::new(), quoted: false }).text.push(other),
        }
    }
    words.extend(current);
    (!open).then_some(words)
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, arg) in self.args.iter().enumerate() {
            let blank = if index == 0 { "" } else { " " };
            let not = if arg.negated { "! " } else { "" };
            write!(f, "{blank}{not}{}", arg.name)?;
            for value in &arg.values {
                if needs_quotes(value) {
                    write!(f, " \"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))?;
                } else {
                    write!(f, " {value}")?;
                }
            }
        }
        Ok(())
    }
}

fn needs_quotes(value: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:/[]+".contains(c);
    value.is_empty() || value.starts_with('-') || !value.chars().all(plain)
}

/// A number for the content of a chain: the same for chains that mean the same.
pub(super) fn digest(rules: &[Rule]) -> u64 {
    let mut hash = StableHash::default();
    for rule in rules {
        for arg in rule.canonical() {
            hash.write(&[u8::from(arg.negated)]);
            hash.write(arg.name.as_bytes());
            for value in &arg.values {
                hash.write(&[0]);
                hash.write(value.as_bytes());
            }
            hash.write(&[1]);
        }
        hash.write(&[2]);
    }
    hash.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_iptables_adds_makes_no_difference() {
        let ours = Rule::new()
            .with("-d", "10.96.0.1")
            .with("-p", "tcp")
            .comment("sw1 x")
            .with("--dport", 80)
            .with("-m", "statistic")
            .with("--probability", "0.3333333333")
            .with("-j", "SEAWAY-S-1");
        let theirs = "-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -m comment --comment \"sw1 x\" -m statistic \
                      --probability 0.33333333349 -j SEAWAY-S-1";
        let theirs = Rule::parse(theirs).unwrap();
        assert_eq!(ours.canonical(), theirs.canonical());
        assert_eq!(digest(std::slice::from_ref(&ours)), digest(&[theirs]));
        let negated = Rule::parse("! -d 10.96.0.1").unwrap();
        assert_ne!(negated.canonical(), Rule::parse("-d 10.96.0.1").unwrap().canonical());
        assert_eq!(negated.value("-d"), None);
    }

    proptest! {
        #[test]
        fn strangers_do_not_break_the_parser(text in "\\PC{0,80}") {
            let _parsed = Rule::parse(&text);
        }

        #[test]
        fn what_is_written_is_read(comment in "[ -~]{1,60}") {
            let rule = Rule::new().with("-p", "tcp").comment(&comment).flag("--reap").with("-j", "X");
            prop_assert_eq!(Rule::parse(&rule.to_string()), Some(rule));
        }
    }
}
