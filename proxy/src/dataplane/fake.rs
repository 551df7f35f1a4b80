//! A data plane in memory: what it holds is exactly what it was told. Tests look into it, and a node without any
//! privilege can show what it would do.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Applied, Dataplane, DataplaneError};
use crate::frontend::{Frontend, FrontendKey};
use crate::plan::{Actual, Host, Plan};

/// A data plane in memory. Clones share what it holds, as two processes share a kernel.
#[derive(Debug, Clone, Default)]
pub struct Fake {
    held: Arc<Mutex<Actual>>,
}

impl Fake {
    /// What it holds.
    pub fn held(&self) -> Actual {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    Host(Host),
    Put(FrontendKey, Arc<Frontend>),
    Remove(FrontendKey),
    Sweep,
}

fn compile(plan: &Plan) -> Vec<Op> {
    let host = plan.host.iter().cloned().map(Op::Host);
    let puts = plan.upserts.iter().map(|(key, frontend)| Op::Put(*key, Arc::clone(frontend)));
    let removals = plan.removals.iter().copied().map(Op::Remove);
    let sweep = plan.sweep.then_some(Op::Sweep);
    host.chain(puts).chain(removals).chain(sweep).collect()
}

impl Dataplane for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn offers_dsr(&self) -> bool {
        true
    }

    fn offers_maglev(&self) -> bool {
        true
    }

    fn offers_masquerade_all(&self) -> bool {
        true
    }

    fn read(&mut self) -> Result<Actual, DataplaneError> {
        Ok(self.held())
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, DataplaneError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let ops = compile(plan);
        let done = ops.len();
        for op in ops {
            match op {
                Op::Host(host) => held.host = host,
                Op::Put(key, frontend) => {
                    held.frontends.insert(key, frontend);
                }
                Op::Remove(key) => {
                    held.frontends.remove(&key);
                }
                Op::Sweep => held.stale = 0,
            }
        }
        Ok(Applied { done, failed: Vec::new() })
    }
}
