//! Versions of the CNI protocol, and which verb came with which.

use serde_json::{Value, json};

use crate::env::Command;
use crate::error::{CniError, Code};

/// A version that this plugin speaks. The result's form is the same from 0.3.0 on but for details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// 0.3.0
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0: CHECK.
    V0_4_0,
    /// 1.0.0: no `ips[].version`.
    V1_0_0,
    /// 1.1.0: STATUS, GC, `interfaces[].mtu`.
    V1_1_0,
}

/// The names of the versions, oldest first.
pub(crate) const SUPPORTED: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

impl Version {
    /// The newest one.
    pub(crate) const NEWEST: Self = Self::V1_1_0;
    const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// Its name.
    pub(crate) const fn as_str(self) -> &'static str {
        SUPPORTED[self as usize]
    }

    /// Reads a name. A configuration without one is of version 0.1.0.
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, CniError> {
        let text = text.filter(|text| !text.is_empty()).unwrap_or("0.1.0");
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            let supported = SUPPORTED.join(", ");
            CniError::new(
                Code::IncompatibleVersion,
                format!("cniVersion {text:?} is not supported: this plugin speaks {supported}"),
            )
        })
    }
}

/// Fails if `version` does not have `command` yet.
pub(crate) fn require(command: Command, version: Version) -> Result<(), CniError> {
    let since = match command {
        Command::Check => Version::V0_4_0,
        Command::Status | Command::Gc => Version::V1_1_0,
        Command::Add | Command::Del | Command::Version => Version::V0_3_0,
    };
    if version >= since {
        return Ok(());
    }
    let (command, version, since) = (command.as_str(), version.as_str(), since.as_str());
    Err(CniError::new(
        Code::IncompatibleVersion,
        format!("the configuration's cniVersion {version} does not have {command}, which came with {since}"),
    ))
}

/// The answer to VERSION. The version that was asked with stands in it, if there is one.
pub(crate) fn answer(stdin: &[u8]) -> Value {
    let asked = serde_json::from_slice::<Value>(stdin).ok();
    let asked = asked.as_ref().and_then(|value| value.get("cniVersion")).and_then(Value::as_str);
    let version = asked.filter(|text| !text.is_empty()).unwrap_or(Version::NEWEST.as_str());
    json!({ "cniVersion": version, "supportedVersions": SUPPORTED })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_order() {
        for version in Version::ALL {
            assert_eq!(Version::parse(Some(version.as_str())), Ok(version));
        }
        assert!(Version::ALL.is_sorted());
        for wrong in [None, Some(""), Some("0.2.0"), Some("1.3.0"), Some("v1.0.0")] {
            assert_eq!(Version::parse(wrong).unwrap_err().code, Code::IncompatibleVersion);
        }
    }
}
