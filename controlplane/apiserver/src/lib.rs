//! The API server: the Kubernetes API over HTTPS on top of a revisioned store. What kinds are and how objects are
//! prepared comes from `seaway_kinds` (pure); durability and order come from `seaway_store`; here is the way between
//! them and the wire: TLS, who is asking, may they, read, write, watch, and the addresses of Services.

pub mod config;
pub mod pki;

mod server;

pub use config::ServerConfig;
pub use pki::{NodeCredentials, Pki, PkiError};
pub use server::{ServerError, run};
