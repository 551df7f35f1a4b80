//! Amounts of resources (`500m`, `1Gi`, `2e3`) and their canonical form.

/// A text that is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with a known suffix.
    #[error(
        "{0:?} is not a quantity: a number with one of the suffixes n, u, m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei or an exponent"
    )]
    Format(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Decimal,
    Exponent,
    Binary,
}

/// An exact amount, down to a billionth.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    style: Style,
}

const NANO: i128 = 1_000_000_000;
/// The largest amount; anything above counts as this much, as in Kubernetes.
const NANOS_MAX: i128 = (i64::MAX as i128) * NANO;
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl Quantity {
    /// Reads a quantity.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let wrong = || QuantityError::Format(text.chars().take(64).collect());
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(wrong());
        }
        let (factor, exponent, style) = scale(suffix).ok_or_else(wrong)?;
        let nanos = magnitude(whole, fraction, factor, exponent);
        let nanos = if text.starts_with('-') { -nanos } else { nanos };
        Ok(Self { nanos, style })
    }

    /// The amount in thousandths, rounded up.
    pub fn milli(&self) -> i128 {
        self.nanos.div_euclid(1_000_000) + i128::from(self.nanos.rem_euclid(1_000_000) != 0)
    }

    /// Whether the amount is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether the amount is a whole number.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }
}

/// Factor, decimal exponent and style of a suffix.
fn scale(suffix: &str) -> Option<(i128, i32, Style)> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(known, _)| *known == suffix) {
        return Some((1, *exponent, Style::Decimal));
    }
    if let Some(at) = BINARY.iter().position(|known| *known == suffix) {
        return Some((1_i128 << (10 * (at + 1)), 0, Style::Binary));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if digits.is_empty() || digits.len() > 4 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((1, exponent.parse().ok()?, Style::Exponent))
}

/// The amount in billionths, rounded up, at most [`NANOS_MAX`].
fn magnitude(whole: &str, fraction: &str, factor: i128, exponent: i32) -> i128 {
    // Digits that can matter: more would overflow on the left, or only round up on the right.
    let digits: String = whole.trim_start_matches('0').chars().chain(fraction.chars()).collect();
    let point = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let significant = digits.trim_start_matches('0');
    if significant.is_empty() {
        return 0;
    }
    // value = significant * 10^-point * 10^exponent * factor, in units of 10^-9
    let kept: String = significant.chars().take(if factor == 1 { 29 } else { 20 }).collect();
    let dropped = i32::try_from(significant.len() - kept.len()).unwrap_or(i32::MAX);
    let lost = significant[kept.len()..].bytes().any(|b| b != b'0');
    let power = exponent.saturating_sub(point).saturating_add(dropped).saturating_add(9);
    let base = kept.parse::<i128>().unwrap_or(NANOS_MAX).saturating_mul(factor);
    if power >= 0 {
        let scaled = u32::try_from(power)
            .ok()
            .and_then(|power| 10_i128.checked_pow(power))
            .and_then(|power| base.checked_mul(power));
        return scaled.map_or(NANOS_MAX, |scaled| scaled.min(NANOS_MAX));
    }
    let Some(divisor) = 10_i128.checked_pow(power.unsigned_abs()) else { return 1 };
    let rest = base % divisor != 0 || lost;
    (base / divisor + i128::from(rest)).min(NANOS_MAX)
}

impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.style == Style::Binary && self.is_whole() && self.nanos.abs() >= 1024 * NANO {
            let mut value = self.nanos / NANO;
            let mut suffix = "";
            for next in BINARY {
                if value % 1024 != 0 {
                    break;
                }
                value /= 1024;
                suffix = next;
            }
            return write!(f, "{value}{suffix}");
        }
        let mut value = self.nanos;
        let mut exponent = -9;
        while value % 1000 == 0 && exponent < 18 {
            value /= 1000;
            exponent += 3;
        }
        if self.style == Style::Exponent && exponent != 0 {
            return write!(f, "{value}e{exponent}");
        }
        let suffix = DECIMAL.iter().find(|(_, known)| *known == exponent).map_or("", |(suffix, _)| suffix);
        write!(f, "{value}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_forms() {
        let table = [
            ("0", "0"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("100000", "100k"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("512", "512"),
            ("0.5Ki", "512"),
            ("1Ki", "1Ki"),
            ("100Ki", "100Ki"),
            ("2e3", "2e3"),
            ("2E3", "2e3"),
            ("1e2", "100"),
            ("-1.5", "-1500m"),
            ("+5", "5"),
            (".5", "500m"),
            ("5.", "5"),
            ("0.0000000001", "1n"),
            ("1E", "1E"),
            ("1e20", "9223372036854775807"),
            ("99999999999999999999999999", "9223372036854775807"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("123Mi", "123Mi"),
        ];
        for (text, wanted) in table {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), wanted, "{text}");
        }
        for bad in ["", ".", "1.2.3", "m", "1mm", "1e", "1e99999", "1 Gi", "--1", "1Kii", "0x10", "é"] {
            assert!(Quantity::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn canonical_form_is_stable_and_nothing_panics(text in "[+-]?[0-9.]{0,30}([eE][+-]?[0-9]{0,4}|[numkMGTPE]?i?)") {
            if let Ok(quantity) = Quantity::parse(&text) {
                let canonical = quantity.to_string();
                let again = Quantity::parse(&canonical).unwrap();
                prop_assert_eq!(again.to_string(), canonical);
                prop_assert_eq!(again.nanos, quantity.nanos);
            }
        }
    }
}
