//! What tests with real packets have in common. Each needs some of it.
#![allow(dead_code, reason = "other tests need the rest")]

pub(crate) mod kernel;
pub(crate) mod net;
pub(crate) mod services;
