//! What is wrong with one field of an object: path, kind of fault, value and detail, worded like Kubernetes'.

use serde_json::{Value, json};

/// The kind of fault; its name is the `reason` of the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The field has to be there.
    Required,
    /// The value has the right type and is not allowed.
    Invalid,
    /// The value is none of a fixed set.
    NotSupported,
    /// The value occurs twice where it must be unique.
    Duplicate,
    /// The field may not be set (or not changed) here.
    Forbidden,
    /// A text that is too long.
    TooLong,
    /// A list that has too many elements.
    TooMany,
    /// The JSON type is wrong.
    TypeInvalid,
    /// What the value names is not there.
    NotFound,
}

impl Fault {
    /// The `reason` of a cause in `Status.details.causes`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::NotFound => "FieldValueNotFound",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::NotFound => "Not found",
        }
    }
}

/// One fault in one field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// What kind of fault it is.
    pub fault: Fault,
    /// Where: `spec.ports[0].port`, `metadata.labels`.
    pub path: String,
    /// The value that is refused, where showing it helps.
    pub value: Option<Value>,
    /// What would be right.
    pub detail: String,
}

impl FieldError {
    /// The text without the path: what a cause's `message` says.
    pub fn message(&self) -> String {
        let mut text = self.fault.words().to_owned();
        if let Some(value) = &self.value {
            text.push_str(": ");
            text.push_str(&value.to_string());
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }

    /// The element of `Status.details.causes`.
    pub fn cause(&self) -> Value {
        json!({"reason": self.fault.reason(), "message": self.message(), "field": self.path})
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.message())
    }
}

/// More faults than this are not collected: a hostile object shall not make a long answer.
const FAULTS_MAX: usize = 128;

/// Collects the faults of one object.
#[derive(Debug, Default)]
pub struct Errors(Vec<FieldError>);

impl Errors {
    fn push(&mut self, fault: Fault, path: &str, value: Option<Value>, detail: impl Into<String>) {
        if self.0.len() < FAULTS_MAX {
            self.0.push(FieldError { fault, path: path.to_owned(), value, detail: detail.into() });
        }
    }

    /// The field has to be there.
    pub fn required(&mut self, path: &str, detail: &str) {
        self.push(Fault::Required, path, None, detail);
    }

    /// The value is not allowed.
    pub fn invalid(&mut self, path: &str, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(Fault::Invalid, path, Some(value.into()), detail);
    }

    /// The value is none of `supported`.
    pub fn unsupported(&mut self, path: &str, value: impl Into<Value>, supported: &[&str]) {
        let words: Vec<String> = supported.iter().map(|word| format!("{word:?}")).collect();
        let detail = format!("supported values: {}", words.join(", "));
        self.push(Fault::NotSupported, path, Some(value.into()), detail);
    }

    /// The value occurs twice.
    pub fn duplicate(&mut self, path: &str, value: impl Into<Value>) {
        self.push(Fault::Duplicate, path, Some(value.into()), "");
    }

    /// What the value names is not there.
    pub fn not_found(&mut self, path: &str, value: impl Into<Value>) {
        self.push(Fault::NotFound, path, Some(value.into()), "");
    }

    /// The field may not be set or changed.
    pub fn forbidden(&mut self, path: &str, detail: &str) {
        self.push(Fault::Forbidden, path, None, detail);
    }

    /// The text is longer than `limit` bytes.
    pub fn too_long(&mut self, path: &str, limit: usize) {
        self.push(Fault::TooLong, path, None, format!("may not be more than {limit} bytes"));
    }

    /// The list has `count` elements, more than `limit`.
    pub fn too_many(&mut self, path: &str, count: usize, limit: usize) {
        let detail = format!("must have at most {limit} items");
        self.push(Fault::TooMany, path, Some(count.into()), detail);
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was found, in the order of finding.
    pub fn into_vec(self) -> Vec<FieldError> {
        self.0
    }
}
