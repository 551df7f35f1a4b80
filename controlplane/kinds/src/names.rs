//! The rules that names, label keys and label values follow.

/// A part of a DNS name, and also a valid label for most names of objects: RFC 1123.
pub fn dns_label(text: &str) -> Result<(), String> {
    if text.len() > 63 {
        return Err("must be no more than 63 characters".to_owned());
    }
    if is_dns_label(text) {
        return Ok(());
    }
    Err("a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
         and end with an alphanumeric character (e.g. 'my-name', or '123-abc')"
        .to_owned())
}

/// Parts as in [`dns_label`], joined by dots, 253 characters at most.
pub fn dns_subdomain(text: &str) -> Result<(), String> {
    if text.len() > 253 {
        return Err("must be no more than 253 characters".to_owned());
    }
    if text.split('.').all(is_dns_label) {
        return Ok(());
    }
    Err("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
         start and end with an alphanumeric character (e.g. 'example.com')"
        .to_owned())
}

/// As [`dns_label`], and starting with a letter: RFC 1035, for Services.
pub fn dns_1035_label(text: &str) -> Result<(), String> {
    if text.len() > 63 {
        return Err("must be no more than 63 characters".to_owned());
    }
    if is_dns_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Ok(());
    }
    Err("a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
         character, and end with an alphanumeric character (e.g. 'my-name', or 'abc-123')"
        .to_owned())
}

/// The name of a port: like an RFC 1123 label of at most 15 characters with a letter and no double hyphen.
pub fn port_name(text: &str) -> Result<(), String> {
    if text.len() > 15 {
        return Err("must be no more than 15 characters".to_owned());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        return Err("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        return Err("must not contain consecutive hyphens".to_owned());
    }
    if is_dns_label(text) {
        return Ok(());
    }
    Err("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-), and must not begin or end with a \
         hyphen"
        .to_owned())
}

/// The key of a label, annotation, taint or extended resource: `[prefix/]name`.
pub fn qualified_name(text: &str) -> Result<(), String> {
    let name = match text.split_once('/') {
        None => text,
        Some(("", _)) => return Err("prefix part must be non-empty".to_owned()),
        Some((prefix, name)) => {
            dns_subdomain(prefix).map_err(|why| format!("prefix part {why}"))?;
            name
        }
    };
    if name.is_empty() {
        return Err("name part must be non-empty".to_owned());
    }
    if name.len() > 63 {
        return Err("name part must be no more than 63 characters".to_owned());
    }
    if is_label_text(name) {
        return Ok(());
    }
    Err("name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
         alphanumeric character (e.g. 'MyName', or 'my.name', or '123-abc')"
        .to_owned())
}

/// The value of a label.
pub fn label_value(text: &str) -> Result<(), String> {
    if text.len() > 63 {
        return Err("must be no more than 63 characters".to_owned());
    }
    if text.is_empty() || is_label_text(text) {
        return Ok(());
    }
    Err("a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
         start and end with an alphanumeric character (e.g. 'MyValue', or 'my_value', or '12345')"
        .to_owned())
}

fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    bytes.iter().all(inner)
        && bytes.first().is_some_and(|b| *b != b'-')
        && bytes.last().is_some_and(|b| *b != b'-')
        && bytes.len() <= 63
}

fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        type Rule = fn(&str) -> Result<(), String>;
        let long = "a".repeat(64);
        let table: &[(&str, Rule, &[&str], &[&str])] = &[
            ("label", dns_label, &["a", "a-1", "1a"], &["", "A", "-a", "a-", "a.b", "a_b", &long]),
            ("subdomain", dns_subdomain, &["a", "a.b-c.1"], &["", "a..b", ".a", "a.", "A.b", &long]),
            ("1035", dns_1035_label, &["a1", "a-b"], &["1a", "", "a.b", &long]),
            ("port", port_name, &["http", "a-1"], &["", "123", "a--b", "-a", "abcdefghijklmnop", "A"]),
            ("qualified", qualified_name, &["a", "A_b.c", "x.io/A"], &["", "/a", "a/", "a/b/c", "-a", "X/a"]),
            ("value", label_value, &["", "a", "A_1.b-c"], &["-a", "a-", "a b", "ä", &long]),
        ];
        for (name, rule, good, bad) in table {
            for text in *good {
                assert_eq!(rule(text), Ok(()), "{name} {text:?}");
            }
            for text in *bad {
                assert!(rule(text).is_err(), "{name} {text:?}");
            }
        }
    }
}
