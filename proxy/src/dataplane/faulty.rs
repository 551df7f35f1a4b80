//! A data plane that fails now and then: it wraps another one and refuses steps with a seeded probability, so that
//! tests can show that the loop converges whatever goes wrong on the way.

use super::{Applied, Dataplane, DataplaneError, Failure, Subject};
use crate::plan::{Actual, Plan};
use crate::stale::{Forgotten, Targets};
use crate::status::DropCount;

/// A data plane that fails.
#[derive(Debug)]
pub struct Faulty<D> {
    inner: D,
    /// Of 100 steps, how many fail.
    percent: u64,
    state: u64,
    step: u64,
}

impl<D: Dataplane> Faulty<D> {
    /// Wraps `inner`; of 100 steps about `percent` fail. The same seed fails the same steps.
    pub fn new(inner: D, percent: u8, seed: u64) -> Self {
        Self { inner, percent: u64::from(percent), state: seed | 1, step: 0 }
    }

    /// The wrapped data plane.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    fn fault(&mut self) -> Option<DataplaneError> {
        // Marsaglia's xorshift64: enough for choosing, and the same everywhere.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.step += 1;
        (self.state % 100 < self.percent).then_some(DataplaneError::Injected { step: self.step })
    }
}

impl<D: Dataplane> Dataplane for Faulty<D> {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn offers_dsr(&self) -> bool {
        self.inner.offers_dsr()
    }

    fn rule_counts(&self) -> Vec<crate::status::RuleCount> {
        self.inner.rule_counts()
    }

    fn offers_masquerade_all(&self) -> bool {
        self.inner.offers_masquerade_all()
    }

    fn offers_maglev(&self) -> bool {
        self.inner.offers_maglev()
    }

    fn read(&mut self) -> Result<Actual, DataplaneError> {
        match self.fault() {
            Some(error) => Err(error),
            None => self.inner.read(),
        }
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, DataplaneError> {
        let mut passed = Plan::default();
        let mut failed = Vec::new();
        let mut fails = |faulty: &mut Self, subject| match faulty.fault() {
            Some(error) => {
                failed.push(Failure { subject, error });
                true
            }
            None => false,
        };
        if plan.host.is_some() && !fails(self, Subject::Host) {
            passed.host.clone_from(&plan.host);
        }
        for (key, frontend) in &plan.upserts {
            if !fails(self, Subject::Frontend(*key)) {
                passed.upserts.push((*key, frontend.clone()));
            }
        }
        for key in &plan.removals {
            if !fails(self, Subject::Frontend(*key)) {
                passed.removals.push(*key);
            }
        }
        passed.sweep = plan.sweep && !fails(self, Subject::Sweep);
        let mut applied = self.inner.apply(&passed)?;
        applied.failed.extend(failed);
        match self.fault() {
            // The worst kind: the work is done, and nobody is told.
            Some(error) => Err(error),
            None => Ok(applied),
        }
    }

    fn forget_udp(&mut self, serving: &Targets) -> Result<Forgotten, DataplaneError> {
        match self.fault() {
            Some(error) => Err(error),
            None => self.inner.forget_udp(serving),
        }
    }

    fn localhost_node_ports(&self) -> Option<u64> {
        self.inner.localhost_node_ports()
    }

    fn drops(&self) -> Vec<DropCount> {
        self.inner.drops()
    }
}
