//! Being built.
use std::sync::Arc;
use tokio::task::JoinSet;
use crate::context::Context;
pub(crate) fn start(_context: &Arc<Context>, _tasks: &mut JoinSet<()>) {}
