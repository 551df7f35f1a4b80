//! Errors as CNI wants them: a number with a meaning, a sentence, details.

use std::error::Error;
use std::fmt;

use seaway_cni_network::ipam::IpamError;
use seaway_cni_network::netlink::NetlinkError;
use seaway_cni_network::netns::NetnsError;
use seaway_cni_network::pod::{CheckError, WireError};
use serde_json::{Value, json};

use crate::version::Version;

/// The numbers of the specification; from 100 on, our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The CNI version is not supported, or does not have the verb.
    IncompatibleVersion = 1,
    /// A field of the configuration asks for what is not offered.
    UnsupportedField = 2,
    /// The container is unknown: there is nothing to clean up.
    UnknownContainer = 3,
    /// The environment is wrong.
    Environment = 4,
    /// Something could not be read or written.
    Io = 5,
    /// The configuration is not JSON of the right shape.
    Decoding = 6,
    /// The configuration cannot be used.
    Config = 7,
    /// The network namespace cannot be used.
    Netns = 8,
    /// Try again later.
    TryAgainLater = 11,
    /// STATUS: ADD would fail.
    NotAvailable = 50,
    /// STATUS: ADD would fail, and pods that exist are cut off as well.
    Degraded = 51,
    /// Every address is held.
    AddressesExhausted = 100,
    /// The kernel refused.
    Kernel = 101,
    /// CHECK found something missing or different.
    CheckFailed = 102,
    /// The interface is there already.
    InterfaceExists = 103,
    /// What should not be.
    Internal = 999,
}

/// An error of the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniError {
    /// Its number.
    pub code: Code,
    /// What went wrong.
    pub message: String,
    /// The causes.
    pub details: String,
    pub(crate) version: Version,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new(), version: Version::NEWEST }
    }

    /// The same with `cause` and its causes as the details.
    #[must_use]
    pub fn because(mut self, cause: &dyn Error) -> Self {
        let mut causes = vec![cause.to_string()];
        let mut next = cause.source();
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        self.details = causes.join(": ");
        self
    }

    pub(crate) fn at_version(self, version: Version) -> Self {
        Self { version, ..self }
    }

    /// As it goes to stdout.
    pub fn to_json(&self) -> Value {
        let mut value = json!({
            "cniVersion": self.version.as_str(),
            "code": self.code as u32,
            "msg": self.message,
        });
        if !self.details.is_empty() {
            value["details"] = self.details.clone().into();
        }
        value
    }

    /// An error whose sentence is `cause`, and whose details are the causes of that.
    fn from_cause(code: Code, cause: &dyn Error) -> Self {
        let error = Self::new(code, cause.to_string());
        match cause.source() {
            Some(source) => error.because(source),
            None => error,
        }
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code as u32)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

impl Error for CniError {}

impl From<IpamError> for CniError {
    fn from(error: IpamError) -> Self {
        let code = match &error {
            IpamError::Exhausted { .. } => Code::AddressesExhausted,
            IpamError::Io { .. } => Code::Io,
            IpamError::Locked { .. } => Code::TryAgainLater,
        };
        Self::from_cause(code, &error)
    }
}

impl From<NetlinkError> for CniError {
    fn from(error: NetlinkError) -> Self {
        Self::from_cause(Code::Kernel, &error)
    }
}

impl From<NetnsError> for CniError {
    fn from(error: NetnsError) -> Self {
        Self::from_cause(Code::Netns, &error)
    }
}

impl From<WireError> for CniError {
    fn from(error: WireError) -> Self {
        let code = match &error {
            WireError::InterfaceExists { .. } => Code::InterfaceExists,
            WireError::Namespace(_) | WireError::Netlink(NetlinkError::Namespace(_)) => Code::Netns,
            WireError::InterfaceGone { .. } | WireError::Netlink(_) | WireError::Sysctl(_) => Code::Kernel,
        };
        Self::from_cause(code, &error)
    }
}

impl From<CheckError> for CniError {
    fn from(error: CheckError) -> Self {
        let code = match &error {
            CheckError::Differs { .. } => Code::CheckFailed,
            CheckError::Netlink(NetlinkError::Namespace(_)) => Code::Netns,
            CheckError::Netlink(_) => Code::Kernel,
        };
        Self::from_cause(code, &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_finds_the_addresses_locked_is_to_try_again_later() {
        let locked = IpamError::Locked { path: "/d/net/lock".into(), waited_ms: 30_000 };
        let error = CniError::from(locked).to_json();
        assert_eq!(error["code"], 11);
        assert!(error["msg"].as_str().unwrap().contains("/d/net/lock"), "{error}");
    }
}
