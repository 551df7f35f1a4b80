//! Arguments of the images: `--name value`, `--name=value` and `--switch`, each with an environment variable of the
//! same name (`HTTP_PORT` for `--http-port`) behind it, so that a pod may set either.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::process::ImageError;

/// Arguments, read but not yet understood.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    given: BTreeMap<String, Vec<String>>,
    environment: BTreeMap<String, String>,
}

impl Arguments {
    /// Reads `args`; `names` are those that take a value, `switches` those that do not.
    pub(crate) fn read(args: &[String], names: &[&str], switches: &[&str]) -> Result<Self, ImageError> {
        let environment = names
            .iter()
            .chain(switches)
            .filter_map(|name| std::env::var(variable(name)).ok().map(|value| ((*name).to_owned(), value)))
            .collect();
        let mut arguments = Self { given: BTreeMap::new(), environment };
        let mut rest = args.iter();
        while let Some(argument) = rest.next() {
            let fail = |why: &str| ImageError::Argument { argument: argument.clone(), why: why.to_owned() };
            let spelled = argument.strip_prefix("--").ok_or_else(|| fail("want --NAME VALUE"))?;
            let (name, value) =
                spelled.split_once('=').map_or((spelled, None), |(name, value)| (name, Some(value)));
            let value = if names.contains(&name) {
                match value {
                    Some(value) => value.to_owned(),
                    None => rest.next().cloned().ok_or_else(|| fail("its value is missing"))?,
                }
            } else if switches.contains(&name) {
                value.unwrap_or("true").to_owned()
            } else {
                let known: Vec<String> =
                    names.iter().chain(switches).map(|name| format!("--{name}")).collect();
                return Err(fail(&format!("unknown; want one of {}", known.join(", "))));
            };
            arguments.given.entry(name.to_owned()).or_default().push(value);
        }
        Ok(arguments)
    }

    /// Every value of `name`, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        match self.given.get(name) {
            Some(values) => values.iter().map(String::as_str).collect(),
            None => self.environment.get(name).map(String::as_str).into_iter().collect(),
        }
    }

    /// The last value of `name`, else `default`.
    pub(crate) fn value<T: FromStr>(&self, name: &str, default: T) -> Result<T, ImageError> {
        match self.all(name).last() {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| ImageError::Argument {
                argument: format!("--{name}"),
                why: format!("{text:?} is not a {}", std::any::type_name::<T>()),
            }),
        }
    }
}

fn variable(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Arguments, ImageError> {
        let args: Vec<String> = args.iter().map(|&a| a.to_owned()).collect();
        Arguments::read(&args, &["test-only-port", "test-only-load"], &["test-only-switch"])
    }

    #[test]
    fn both_spellings_and_repeats() {
        let arguments = read(&[
            "--test-only-port",
            "1",
            "--test-only-load=a",
            "--test-only-load",
            "b",
            "--test-only-switch",
        ]);
        let arguments = arguments.unwrap();
        assert_eq!(arguments.value("test-only-port", 0_u16).unwrap(), 1);
        assert_eq!(arguments.all("test-only-load"), ["a", "b"]);
        assert!(arguments.value("test-only-switch", false).unwrap());
        assert_eq!(read(&[]).unwrap().value("test-only-port", 7_u16).unwrap(), 7);
    }

    #[test]
    fn mistakes_name_the_argument() {
        let message = |args: &[&str]| match read(args) {
            Ok(arguments) => arguments.value("test-only-port", 0_u16).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        expect_test::expect![[r#"
            argument "port": want --NAME VALUE
            argument "--test-only-port": its value is missing
            argument "--no": unknown; want one of --test-only-port, --test-only-load, --test-only-switch
            argument "--test-only-port": "x" is not a u16"#]]
        .assert_eq(
            &[
                message(&["port"]),
                message(&["--test-only-port"]),
                message(&["--no"]),
                message(&["--test-only-port=x"]),
            ]
            .join("\n"),
        );
    }
}
