//! Selectors: which objects a list, a watch or a workload means.

mod field;
mod label;

pub use field::FieldSelector;
pub use label::{LabelSelector, Requirement};
