//! The environment of a call: which variables each verb needs, and what may stand in them.

use std::collections::HashMap;

use seaway_cni_network::ipam::Owner;

use crate::error::{CniError, Code};

/// The longest name of an interface (`IFNAMSIZ` without the final zero).
const MAX_IFNAME: usize = 15;
/// The longest names of a namespace and a pod, together.
const MAX_POD: usize = 63 + 253;
/// What the kernel has in the place of names.
const NO_NAMES: [&str; 2] = ["all", "default"];

/// What the runtime wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach a container to the network.
    Add,
    /// Undo it.
    Del,
    /// Is it still as it was?
    Check,
    /// Could an ADD succeed?
    Status,
    /// Remove everything that is not in a list.
    Gc,
    /// Which versions are spoken?
    Version,
}

impl Command {
    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version];

    /// As it stands in CNI_COMMAND.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }

    /// The variables that have to be set, in the order in which they are named when they are not.
    const fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Status | Self::Gc => &["CNI_PATH"],
            Self::Version => &[],
        }
    }

    const fn has_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

/// The variables. Empty ones count as not set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// CNI_COMMAND
    pub command: Option<String>,
    /// CNI_CONTAINERID
    pub container_id: Option<String>,
    /// CNI_NETNS
    pub netns: Option<String>,
    /// CNI_IFNAME
    pub ifname: Option<String>,
    /// CNI_PATH
    pub path: Option<String>,
    /// CNI_ARGS
    pub args: Option<String>,
    /// CNI_NETNS_OVERRIDE is "true" or "1": the plugin's own namespace may be a container's.
    pub netns_override: bool,
}

impl Environment {
    /// That of this process. What is not UTF-8 is read with replacements, and refused later for its characters.
    pub fn from_process() -> Self {
        let variables: HashMap<String, String> = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .filter(|(name, _)| name.starts_with("CNI_"))
            .collect();
        Self::from_map(&variables)
    }

    /// From names and values.
    pub fn from_map(variables: &HashMap<String, String>) -> Self {
        let read = |name: &str| variables.get(name).filter(|value| !value.is_empty()).cloned();
        Self {
            command: read("CNI_COMMAND"),
            container_id: read("CNI_CONTAINERID"),
            netns: read("CNI_NETNS"),
            ifname: read("CNI_IFNAME"),
            path: read("CNI_PATH"),
            args: read("CNI_ARGS"),
            netns_override: read("CNI_NETNS_OVERRIDE")
                .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true")),
        }
    }

    /// Checks everything at once and returns the command.
    pub fn validate(&self) -> Result<Command, CniError> {
        let name = self.command.as_deref().ok_or_else(|| missing(&["CNI_COMMAND"]))?;
        let command = Command::ALL
            .into_iter()
            .find(|command| command.as_str() == name)
            .ok_or_else(|| CniError::new(Code::Environment, format!("unknown CNI_COMMAND: {name}")))?;
        let absent: Vec<&str> =
            command.required().iter().copied().filter(|name| self.value(name).is_none()).collect();
        if !absent.is_empty() {
            return Err(missing(&absent));
        }
        if command.has_attachment() {
            validate_container_id(self.container_id.as_deref().unwrap_or_default())?;
            validate_ifname(self.ifname.as_deref().unwrap_or_default())?;
        }
        Ok(command)
    }

    /// What stands in CNI_ARGS under a key. Whatever else is there is not for us.
    pub fn argument(&self, key: &str) -> Option<&str> {
        let mut pairs = self.args.as_deref()?.split(';').filter_map(|pair| pair.split_once('='));
        pairs.find_map(|(name, value)| (name == key && !value.is_empty()).then_some(value))
    }

    /// The pod that the container is of, `namespace/name`, if the runtime tells.
    pub fn pod(&self) -> Option<String> {
        let of = |key: &str| self.argument(key).filter(|value| is_identifier(value));
        let (namespace, name) = (of("K8S_POD_NAMESPACE")?, of("K8S_POD_NAME")?);
        (namespace.len() + name.len() <= MAX_POD).then(|| format!("{namespace}/{name}"))
    }

    fn value(&self, name: &str) -> Option<&str> {
        match name {
            "CNI_CONTAINERID" => self.container_id.as_deref(),
            "CNI_NETNS" => self.netns.as_deref(),
            "CNI_IFNAME" => self.ifname.as_deref(),
            "CNI_PATH" => self.path.as_deref(),
            _ => None,
        }
    }
}

fn missing(names: &[&str]) -> CniError {
    CniError::new(Code::Environment, format!("required env variables [{}] missing", names.join(",")))
}

/// Letters, digits, `_`, `.`, `-`, and a letter or digit first: the rule for container ids and network names.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn validate_container_id(id: &str) -> Result<(), CniError> {
    if !is_identifier(id) {
        return Err(CniError::new(
            Code::Environment,
            format!(
                "invalid CNI_CONTAINERID {id:?}: want letters, digits, '_', '.', '-', the first a letter or digit"
            ),
        ));
    }
    if id.len() > Owner::MAX_CONTAINER_ID {
        let (length, most) = (id.len(), Owner::MAX_CONTAINER_ID);
        let message = format!("invalid CNI_CONTAINERID: it has {length} characters, more than {most}");
        return Err(CniError::new(Code::Environment, message));
    }
    Ok(())
}

fn validate_ifname(name: &str) -> Result<(), CniError> {
    let reason = if name.len() > MAX_IFNAME {
        "it has more than 15 characters"
    } else if name == "." || name == ".." {
        "that is a directory"
    } else if name.contains(|c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control()) {
        "'/', ':', '%', blanks and control characters are not allowed"
    } else if NO_NAMES.contains(&name) {
        "that stands for every interface"
    } else {
        return Ok(());
    };
    Err(CniError::new(Code::Environment, format!("invalid CNI_IFNAME {name:?}: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&str; 4] = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"];

    fn environment(command: &str, without: &[&str]) -> Environment {
        let values =
            [("CNI_CONTAINERID", "4f1a"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/p")];
        let mut map: HashMap<String, String> = values
            .iter()
            .filter(|(name, _)| !without.contains(name))
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        map.insert("CNI_COMMAND".to_owned(), command.to_owned());
        Environment::from_map(&map)
    }

    /// The matrix of the reference implementation: which variable each verb cannot do without.
    #[test]
    fn each_verb_names_what_it_misses() {
        let table = [
            ("ADD", vec!["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
            ("CHECK", vec!["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
            ("DEL", vec!["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"]),
            ("GC", vec!["CNI_PATH"]),
            ("STATUS", vec!["CNI_PATH"]),
            ("VERSION", vec![]),
        ];
        for (command, required) in table {
            assert_eq!(environment(command, &[]).validate().unwrap().as_str(), command);
            for name in ALL {
                let outcome = environment(command, &[name]).validate();
                if required.contains(&name) {
                    let error = outcome.unwrap_err();
                    assert_eq!(error.code, Code::Environment, "{command} without {name}");
                    assert_eq!(error.message, format!("required env variables [{name}] missing"));
                } else {
                    assert!(outcome.is_ok(), "{command} without {name}");
                }
            }
            if !required.is_empty() {
                let error = environment(command, &ALL).validate().unwrap_err();
                assert_eq!(error.message, format!("required env variables [{}] missing", required.join(",")));
            }
        }
    }

    #[test]
    fn the_pod_is_told_in_the_arguments() {
        let pod = |args: &str| {
            Environment::from_map(&HashMap::from([("CNI_ARGS".to_owned(), args.to_owned())])).pod()
        };
        let usual = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=a-b";
        assert_eq!(pod(usual).as_deref(), Some("default/web-0"));
        for none in ["", ";;=;", "K8S_POD_NAME=web-0", "K8S_POD_NAMESPACE=a\nb;K8S_POD_NAME=web-0"] {
            assert_eq!(pod(none), None, "{none:?}");
        }
        assert_eq!(pod(&format!("K8S_POD_NAMESPACE=a;K8S_POD_NAME={}", "b".repeat(400))), None);
    }

    #[test]
    fn unknown_commands_and_bad_names_are_refused() {
        let with = |change: fn(&mut Environment)| {
            let mut environment = environment("ADD", &[]);
            change(&mut environment);
            environment.validate().map_err(|error| (error.code, error.message))
        };
        let cases: [fn(&mut Environment); 15] = [
            |e| e.command = None,
            |e| e.command = Some("add".to_owned()),
            |e| e.container_id = Some("../../etc".to_owned()),
            |e| e.container_id = Some("-a".to_owned()),
            |e| e.container_id = Some("a b".to_owned()),
            |e| e.container_id = Some("a".repeat(231)),
            |e| e.ifname = Some("..".to_owned()),
            |e| e.ifname = Some("a/b".to_owned()),
            |e| e.ifname = Some("a:b".to_owned()),
            |e| e.ifname = Some("a b".to_owned()),
            |e| e.ifname = Some("abcdefghijklmnop".to_owned()),
            |e| e.ifname = Some("a\u{7}".to_owned()),
            // Of this the kernel would make another name.
            |e| e.ifname = Some("eth%d".to_owned()),
            |e| e.ifname = Some("all".to_owned()),
            |e| e.ifname = Some("default".to_owned()),
        ];
        for case in cases {
            assert_eq!(with(case).unwrap_err().0, Code::Environment);
        }
        assert!(with(|e| e.ifname = Some("net1.100".to_owned())).is_ok());
        // Verbs without an attachment do not look at its variables.
        let status = Environment { ifname: Some("a/b".to_owned()), ..environment("STATUS", &[]) };
        assert!(status.validate().is_ok());
    }
}
