//! What the API server knows about API objects, as pure functions on JSON values: which kinds there are, how a
//! body becomes an object, what is defaulted, what is refused, how a patch applies, what a selector picks and how a
//! table looks. Nothing here does I/O or reads a clock; time comes in as an argument.
//!
//! The way of a request through this crate:
//!
//! ```text
//! path ──► path::parse ──► Registry::resource ──► Kind
//! body ──► decode::decode (JSON or protobuf, unknown fields) ──► Kind::prepare_create / prepare_update
//! patch ─► patch::apply(current, patch) ─────────────────────► Kind::prepare_update
//! list ──► LabelSelector, FieldSelector ──► table::render or partial::metadata, as negotiate says
//! any failure ──► ApiError ──► ApiError::status (a `Status` object) and its HTTP code
//! ```

pub mod decode;
pub mod discovery;
mod entries;
pub mod error;
pub mod field;
pub mod kind;
pub mod managed;
pub mod names;
pub mod negotiate;
pub mod openapi;
pub mod partial;
pub mod patch;
pub mod path;
pub mod quantity;
pub mod registry;
pub mod scale;
mod schema;
pub mod selector;
mod strategy;
pub mod table;
pub mod time;

pub use decode::{Decoded, FieldValidation};
pub use error::ApiError;
pub use field::FieldError;
pub use kind::{Kind, Subresource};
pub use registry::Registry;
pub use selector::{FieldSelector, LabelSelector};
pub use strategy::CreateContext;
