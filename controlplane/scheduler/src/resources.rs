//! What pods ask for and nodes have: quantities as integers (CPU in thousandths).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What an unbounded pod is assumed to need when nodes are compared.
const ASSUMED_CPU_MILLIS: i64 = 100;
const ASSUMED_MEMORY: i64 = 200 * 1024 * 1024;

type Amounts = BTreeMap<String, Quantity>;

/// An amount of each resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    /// Thousandths of a core.
    pub(crate) cpu_millis: i64,
    /// Bytes.
    pub(crate) memory: i64,
    /// Bytes.
    pub(crate) ephemeral_storage: i64,
    /// Everything else that nodes count, by name.
    pub(crate) extended: BTreeMap<String, i64>,
}

impl Resources {
    /// From a map of quantities. `pods` is counted elsewhere.
    pub(crate) fn of(amounts: Option<&Amounts>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in amounts.into_iter().flatten() {
            match name.as_str() {
                "cpu" => resources.cpu_millis = millis(quantity),
                "memory" => resources.memory = units(quantity),
                "ephemeral-storage" => resources.ephemeral_storage = units(quantity),
                "pods" => {}
                _ => drop(resources.extended.insert(name.clone(), units(quantity))),
            }
        }
        resources
    }

    /// What a pod needs: the sum of its containers and sidecars, or what one of its init containers needs beside the
    /// sidecars started before it, whichever is more; and the overhead.
    pub(crate) fn of_pod(spec: &PodSpec) -> Self {
        let mut sidecars = Self::default();
        let mut initial = Self::default();
        for container in spec.init_containers.iter().flatten() {
            let needs = Self::of_container(container);
            if container.restart_policy.as_deref() == Some("Always") {
                sidecars.add(&needs);
                initial.raise(&sidecars);
            } else {
                let mut beside = sidecars.clone();
                beside.add(&needs);
                initial.raise(&beside);
            }
        }
        let mut total = sidecars;
        for container in &spec.containers {
            total.add(&Self::of_container(container));
        }
        total.raise(&initial);
        total.add(&Self::of(spec.overhead.as_ref()));
        total
    }

    fn of_container(container: &Container) -> Self {
        Self::of(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
    }

    /// What a pod counts for when nodes are compared: even a pod that asks for nothing uses something.
    pub(crate) fn at_least_something(mut self) -> Self {
        if self.cpu_millis == 0 {
            self.cpu_millis = ASSUMED_CPU_MILLIS;
        }
        if self.memory == 0 {
            self.memory = ASSUMED_MEMORY;
        }
        self
    }

    /// Adds `other`.
    pub(crate) fn add(&mut self, other: &Self) {
        self.merge(other, i64::saturating_add);
    }

    /// Subtracts `other`.
    pub(crate) fn subtract(&mut self, other: &Self) {
        self.merge(other, i64::saturating_sub);
    }

    fn raise(&mut self, other: &Self) {
        self.merge(other, i64::max);
    }

    fn merge(&mut self, other: &Self, combine: fn(i64, i64) -> i64) {
        self.cpu_millis = combine(self.cpu_millis, other.cpu_millis);
        self.memory = combine(self.memory, other.memory);
        self.ephemeral_storage = combine(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.extended {
            let ours = self.extended.entry(name.clone()).or_default();
            *ours = combine(*ours, *amount);
        }
    }

    /// The names of what does not fit when `used` of `self` is taken and `more` is asked for.
    pub(crate) fn lacking<'a>(&self, used: &Self, more: &'a Self) -> Vec<&'a str> {
        let short = |all: i64, used: i64, more: i64| more > 0 && more > all.saturating_sub(used);
        let mut lacking = Vec::new();
        if short(self.cpu_millis, used.cpu_millis, more.cpu_millis) {
            lacking.push("cpu");
        }
        if short(self.memory, used.memory, more.memory) {
            lacking.push("memory");
        }
        if short(self.ephemeral_storage, used.ephemeral_storage, more.ephemeral_storage) {
            lacking.push("ephemeral-storage");
        }
        for (name, amount) in &more.extended {
            let of = |resources: &Self| resources.extended.get(name).copied().unwrap_or(0);
            if short(of(self), of(used), *amount) {
                lacking.push(name.as_str());
            }
        }
        lacking
    }
}

fn millis(quantity: &Quantity) -> i64 {
    parse(&quantity.0, 1000)
}

/// A quantity as a whole number.
pub(crate) fn units(quantity: &Quantity) -> i64 {
    parse(&quantity.0, 1)
}

/// A quantity times `scale`, rounded up. What does not parse counts as nothing: the API server validates.
fn parse(text: &str, scale: i128) -> i64 {
    scaled(text.trim(), scale)
        .map_or(0, |value| i64::try_from(value).unwrap_or(if value > 0 { i64::MAX } else { i64::MIN }))
}

fn scaled(text: &str, scale: i128) -> Option<i128> {
    let end =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (multiplier, divisor) = factor(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let digits = format!("{}{fraction}", whole.trim_start_matches(['+', '-']));
    let digits: i128 = if digits.is_empty() { return None } else { digits.parse().ok()? };
    let tenths = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let numerator = digits.checked_mul(multiplier)?.checked_mul(scale)?;
    let denominator = tenths.checked_mul(divisor)?;
    let value = (numerator + denominator - 1) / denominator;
    Some(if negative { -value } else { value })
}

/// A suffix as a fraction.
fn factor(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| Some((1024_i128.pow(power), 1));
    let decimal = |power: u32| Some((1000_i128.pow(power), 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "k" => decimal(1),
        "M" => decimal(2),
        "G" => decimal(3),
        "T" => decimal(4),
        "P" => decimal(5),
        "E" => decimal(6),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities() {
        let cases = [
            ("1", 1000),
            ("100m", 100),
            ("0.1", 100),
            ("1.5", 1500),
            ("2k", 2_000_000),
            ("1e3", 1_000_000),
            ("1E-1", 100),
            ("1u", 1),
            ("", 0),
            ("nonsense", 0),
            ("-1", -1000),
        ];
        for (text, expected) in cases {
            assert_eq!(millis(&Quantity(text.into())), expected, "{text}");
        }
        assert_eq!(units(&Quantity("128Mi".into())), 128 << 20);
        assert_eq!(units(&Quantity("1.5Gi".into())), 3 << 29);
        assert_eq!(units(&Quantity("9999999E".into())), i64::MAX);
    }

    #[test]
    fn pods_need_the_most_of_their_phases() {
        let cpu = |amount: &str| json!({"requests": {"cpu": amount}});
        let spec: PodSpec = serde_json::from_value(json!({
            "initContainers": [
                {"name": "a", "resources": cpu("2")},
                {"name": "side", "restartPolicy": "Always", "resources": cpu("500m")},
                {"name": "b", "resources": cpu("1800m")},
            ],
            "containers": [{"name": "x", "resources": cpu("1")}, {"name": "y", "resources": cpu("100m")}],
            "overhead": {"cpu": "10m"},
        }))
        .unwrap();
        // The second init container runs beside the sidecar: 2300 beats 2000 and 1600.
        assert_eq!(Resources::of_pod(&spec).cpu_millis, 2310);
    }
}
