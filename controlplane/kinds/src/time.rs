//! Times as the API writes them, and ages as kubectl prints them.

use jiff::Timestamp;

/// Reads RFC 3339.
pub fn parse(text: &str) -> Result<Timestamp, String> {
    // A date with a space instead of the T parses elsewhere, but not in Kubernetes.
    if text.as_bytes().get(10).is_none_or(|b| *b != b'T') {
        return Err(format!("{text:?} is not a time as in \"2006-01-02T15:04:05Z\""));
    }
    text.parse().map_err(|_| format!("{text:?} is not a time as in \"2006-01-02T15:04:05Z\""))
}

/// Whole seconds: `2006-01-02T15:04:05Z`.
pub fn seconds(time: Timestamp) -> String {
    format!("{time:.0}")
}

/// Microseconds: `2006-01-02T15:04:05.000000Z`.
pub fn micros(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// How long ago, in the words of kubectl: `7s`, `3m12s`, `5h`, `2d4h`, `1y20d`.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    duration(now.as_second() - since.as_second())
}

/// A number of seconds in the words of kubectl.
pub fn duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    let pair = |large: i64, large_unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{large}{large_unit}")
        } else {
            format!("{large}{large_unit}{small}{small_unit}")
        }
    };
    match seconds {
        ..=-2 => "<invalid>".to_owned(),
        -1..=0 => "0s".to_owned(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => pair(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => pair(s / HOUR, "h", s / MINUTE % 60, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => pair(s / DAY, "d", s / HOUR % 24, "h"),
        s if s < 2 * 365 * DAY => format!("{}d", s / DAY),
        s if s < 8 * 365 * DAY => pair(s / DAY / 365, "y", s / DAY % 365, "d"),
        s => format!("{}y", s / DAY / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        let time = parse("2026-11-21T09:00:00.123456789+02:00").unwrap();
        assert_eq!(seconds(time), "2026-11-21T07:00:00Z");
        assert_eq!(micros(time), "2026-11-21T07:00:00.123456Z");
        assert_eq!(micros(parse("2026-11-21T07:00:00Z").unwrap()), "2026-11-21T07:00:00.000000Z");
        for bad in ["", "now", "2026-11-21", "2026-11-21 07:00:00Z", "2026-13-21T07:00:00Z"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ages() {
        let table = [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (192, "3m12s"),
            (3600, "60m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 300, "3h5m"),
            (10 * 3600, "10h"),
            (3 * 86400 + 7200, "3d2h"),
            (8 * 86400 + 7200, "8d"),
            (800 * 86400, "2y70d"),
            (3650 * 86400, "10y"),
        ];
        for (seconds, wanted) in table {
            assert_eq!(duration(seconds), wanted);
        }
    }
}
