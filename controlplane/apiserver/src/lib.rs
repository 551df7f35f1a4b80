//! The API server: the Kubernetes API over HTTPS on top of a revisioned store. What kinds are and how objects are
//! prepared comes from `seaway_kinds` (pure); durability and order come from `seaway_store`; here is the way between
//! them and the wire: TLS, who is asking, may they, read, write, watch, and the addresses of Services.
//!
//! The way of a request: `server` (TLS, identity) → `api` (path, verb, permission) → `list` | `watch` | `write` |
//! `delete` | a subresource → `services` for the addresses of Services → the store.

mod allocate;
mod api;
mod auth;
mod binding;
mod body;
mod bootstrap;
pub mod config;
mod delete;
mod documents;
mod events;
mod list;
mod log;
mod metrics;
mod node_client;
mod objects;
mod pending;
pub mod pki;
mod query;
mod response;
mod review;
mod scale;
mod server;
mod services;
mod watch;
mod write;

pub use config::ServerConfig;
pub use pki::{NodeCredentials, Pki, PkiError};
pub use server::{ServerError, run};
