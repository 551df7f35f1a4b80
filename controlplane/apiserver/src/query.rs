//! Query parameters, typed: what a list, a watch or a write was asked for.

use std::{borrow::Cow, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use seaway_kinds::{
    ApiError, FieldError, FieldSelector, FieldValidation, Kind, LabelSelector, field::Fault,
    table::IncludeObject,
};
use serde::{Deserialize, Serialize};

/// The parameters of one request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    pub(crate) fn parse(text: Option<&'a str>) -> Self {
        Self(form_urlencoded::parse(text.unwrap_or_default().as_bytes()).collect())
    }

    /// The value of a parameter that was given and is not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| &**value)
    }

    /// Whether a switch is on; given without a value counts as on.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|(key, value)| key == name && value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    /// A number, or an error that names the parameter.
    pub(crate) fn number<N: std::str::FromStr>(&self, name: &str) -> Result<Option<N>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number = text.parse();
        number
            .map(Some)
            .map_err(|_| ApiError::bad_request(format!("invalid {name} {text:?}: must be a number")))
    }

    /// Whether the write is only to be tried.
    pub(crate) fn dry_run(&self) -> Result<bool, ApiError> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!("invalid dryRun {other:?}: must be All"))),
        }
    }

    pub(crate) fn field_validation(&self) -> Result<FieldValidation, ApiError> {
        FieldValidation::parse(self.get("fieldValidation"))
    }

    pub(crate) fn include_object(&self) -> Result<IncludeObject, ApiError> {
        IncludeObject::parse(self.get("includeObject"))
    }
}

/// Which objects are wanted.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    pub(crate) labels: LabelSelector,
    pub(crate) fields: FieldSelector,
}

impl Selection {
    pub(crate) fn parse(kind: &Kind, query: &Query<'_>) -> Result<Self, ApiError> {
        Ok(Self {
            labels: LabelSelector::parse(query.get("labelSelector").unwrap_or_default())?,
            fields: FieldSelector::parse(kind, query.get("fieldSelector").unwrap_or_default())?,
        })
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    pub(crate) fn matches(&self, object: &serde_json::Value) -> bool {
        self.labels.matches(object) && self.fields.matches(object)
    }
}

/// From which state a read may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// The newest.
    Now,
    /// The newest, which must have reached this revision.
    NotOlderThan(u64),
    /// Exactly this revision.
    Exact(u64),
}

/// What a list was asked for.
#[derive(Debug)]
pub(crate) struct ListQuery {
    pub(crate) at: At,
    pub(crate) limit: usize,
    pub(crate) from: Option<Continue>,
}

impl ListQuery {
    pub(crate) fn parse(kind: &Kind, query: &Query<'_>) -> Result<Self, ApiError> {
        let version = resource_version(query)?;
        let limit = query.number::<usize>("limit")?.unwrap_or(0);
        let from = query.get("continue").map(Continue::parse).transpose()?;
        if from.is_some() && version.unwrap_or(0) != 0 {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let at = match (query.get("resourceVersionMatch"), version) {
            (None, None | Some(0)) => At::Now,
            (None, Some(version)) if limit > 0 => At::Exact(version),
            (None | Some("NotOlderThan"), Some(version)) => At::NotOlderThan(version),
            (Some(word), None) => {
                let detail =
                    format!("resourceVersionMatch is forbidden unless resourceVersion is provided: {word}");
                return Err(invalid(kind, "resourceVersionMatch", Fault::Forbidden, &detail));
            }
            (Some("Exact"), Some(0)) => {
                let detail = "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"";
                return Err(invalid(kind, "resourceVersionMatch", Fault::Forbidden, detail));
            }
            (Some("Exact"), Some(version)) => At::Exact(version),
            (Some(other), _) => {
                let detail = format!("supported values: \"Exact\", \"NotOlderThan\", not {other:?}");
                return Err(invalid(kind, "resourceVersionMatch", Fault::NotSupported, &detail));
            }
        };
        let at = match &from {
            Some(Continue { rv, .. }) => u64::try_from(*rv).map_or(At::Now, At::Exact),
            None => at,
        };
        Ok(Self { at, limit, from })
    }
}

/// What a watch was asked for.
#[derive(Debug)]
pub(crate) struct WatchQuery {
    /// Events after this revision; `None` or 0 begins with the objects that are there.
    pub(crate) after: Option<u64>,
    /// Begin with the objects that are there, and mark the end of them.
    pub(crate) initial_events: bool,
    pub(crate) bookmarks: bool,
    pub(crate) timeout: Option<Duration>,
}

impl WatchQuery {
    pub(crate) fn parse(kind: &Kind, query: &Query<'_>) -> Result<Self, ApiError> {
        let initial_events = query.flag("sendInitialEvents") && query.get("sendInitialEvents").is_some();
        match (query.get("sendInitialEvents"), query.get("resourceVersionMatch")) {
            (None, None) | (Some(_), Some("NotOlderThan")) => {}
            (None, Some(_)) => {
                let detail =
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                return Err(invalid(kind, "resourceVersionMatch", Fault::Forbidden, detail));
            }
            (Some(_), _) => {
                let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                return Err(invalid(kind, "resourceVersionMatch", Fault::Forbidden, detail));
            }
        }
        Ok(Self {
            after: resource_version(query)?,
            initial_events,
            bookmarks: query.flag("allowWatchBookmarks"),
            timeout: query.number::<u64>("timeoutSeconds")?.filter(|s| *s > 0).map(Duration::from_secs),
        })
    }
}

fn invalid(kind: &Kind, path: &str, fault: Fault, detail: &str) -> ApiError {
    let error = FieldError { fault, path: path.to_owned(), value: None, detail: detail.to_owned() };
    ApiError::invalid_as("meta.k8s.io", "ListOptions", &kind.plural, &[error])
}

fn resource_version(query: &Query<'_>) -> Result<Option<u64>, ApiError> {
    let Some(text) = query.get("resourceVersion") else { return Ok(None) };
    let version = text.parse();
    version
        .map(Some)
        .map_err(|_| ApiError::bad_request(format!("invalid resource version {text:?}: must be a number")))
}

/// Where the next page of a list begins. The client sees it as an opaque text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Continue {
    /// The revision of the first page; -1 goes on with what is there now.
    pub(crate) rv: i64,
    /// The last key of the page before.
    pub(crate) after: String,
}

impl Continue {
    fn parse(token: &str) -> Result<Self, ApiError> {
        let decoded = BASE64.decode(token.trim_end_matches('=')).ok();
        decoded.and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or_else(|| {
            ApiError::bad_request("continue key is not valid: take it from the list's metadata.continue")
        })
    }

    pub(crate) fn token(&self) -> String {
        BASE64.encode(serde_json::to_vec(self).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use seaway_kinds::Registry;

    use super::*;

    fn list(text: &str) -> Result<At, u16> {
        let registry = Registry::builtin();
        let kind = registry.resource("", "v1", "pods").unwrap();
        ListQuery::parse(kind, &Query::parse(Some(text))).map(|query| query.at).map_err(|error| error.code)
    }

    #[test]
    fn a_switch_is_on_unless_it_says_no() {
        let table = [
            ("", false),
            ("watch", true),
            ("watch=", true),
            ("watch=true", true),
            ("watch=1", true),
            ("watch=yes", true),
            ("watch=0", false),
            ("watch=False", false),
        ];
        for (text, on) in table {
            assert_eq!(Query::parse(Some(text)).flag("watch"), on, "{text}");
        }
    }

    #[test]
    fn which_state_a_list_answers_from() {
        let table = [
            ("", Ok(At::Now)),
            ("resourceVersion=", Ok(At::Now)),
            ("resourceVersion=0", Ok(At::Now)),
            ("resourceVersion=7", Ok(At::NotOlderThan(7))),
            ("resourceVersion=7&limit=5", Ok(At::Exact(7))),
            ("resourceVersion=7&limit=5&resourceVersionMatch=NotOlderThan", Ok(At::NotOlderThan(7))),
            ("resourceVersion=7&resourceVersionMatch=Exact", Ok(At::Exact(7))),
            ("resourceVersion=0&resourceVersionMatch=Exact", Err(422)),
            ("resourceVersionMatch=Exact", Err(422)),
            ("resourceVersion=7&resourceVersionMatch=Roughly", Err(422)),
            ("resourceVersion=seven", Err(400)),
            ("limit=many", Err(400)),
            ("continue=nonsense", Err(400)),
        ];
        for (text, wanted) in table {
            assert_eq!(list(text), wanted, "{text}");
        }
        let token = Continue { rv: 9, after: "/core/pods/a/b".to_owned() }.token();
        assert_eq!(list(&format!("limit=1&continue={token}")), Ok(At::Exact(9)));
        assert_eq!(list(&format!("limit=1&continue={token}&resourceVersion=4")), Err(400));
    }

    #[test]
    fn initial_events_need_a_match() {
        let registry = Registry::builtin();
        let kind = registry.resource("", "v1", "pods").unwrap();
        let table = [
            ("watch=1", Ok(false)),
            ("watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", Ok(true)),
            ("watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan", Ok(false)),
            ("watch=1&sendInitialEvents=true", Err(422)),
            ("watch=1&resourceVersionMatch=NotOlderThan", Err(422)),
        ];
        for (text, wanted) in table {
            let query = WatchQuery::parse(kind, &Query::parse(Some(text)));
            assert_eq!(query.map(|query| query.initial_events).map_err(|error| error.code), wanted, "{text}");
        }
    }
}
