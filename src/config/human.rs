//! Sizes and spans as people write and read them.
//!
//! Written: `64KiB`, `1.5GiB`, `10MB` (`KiB` is 1024, `kB` 1000); `250ms`, `120s`, `5m`, `2h`, `7d`. A
//! bare number is bytes; of a span it is whatever the place it stands in says.

use std::time::Duration;

const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];
const BINARY_UNITS: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];
const SPAN_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Reads a number of bytes.
///
/// # Errors
/// What to write instead.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "{text:?} is no size; write a number of bytes, or e.g. 64KiB, 1.5GiB (units of 1024) or 10MB (units of 1000)"
        )
    };
    let plain = text.trim().replace('_', "");
    let digits = plain
        .bytes()
        .take_while(|byte| byte.is_ascii_digit() || *byte == b'.')
        .count();
    let (number, unit) = plain.split_at_checked(digits).ok_or_else(wrong)?;
    let unit = unit.trim_start();
    let factor = SIZE_UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .map(|(_, factor)| *factor)
        .or(unit.is_empty().then_some(1))
        .ok_or_else(wrong)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let bytes = whole.checked_mul(factor).ok_or_else(wrong)?;
    if fraction.is_empty() {
        return match number.ends_with('.') {
            true => Err(wrong()),
            false => Ok(bytes),
        };
    }
    let scale = u32::try_from(fraction.len())
        .ok()
        .and_then(|digits| 10_u64.checked_pow(digits))
        .ok_or_else(wrong)?;
    let part: u64 = fraction.parse().map_err(|_| wrong())?;
    let part = u128::from(part) * u128::from(factor) / u128::from(scale);
    let part = u64::try_from(part).map_err(|_| wrong())?;
    bytes.checked_add(part).ok_or_else(wrong)
}

/// Reads a span of time whose bare numbers are counted in units of `bare_ms` milliseconds.
///
/// # Errors
/// What to write instead.
pub fn parse_span(text: &str, bare_ms: u64) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no span of time; write e.g. 250ms, 120s, 5m, 2h or 7d");
    let plain = text.replace('_', "");
    let digits = plain.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = plain.split_at_checked(digits).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit_ms = match unit {
        "" => bare_ms,
        unit => SPAN_UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, ms)| *ms)
            .ok_or_else(wrong)?,
    };
    let ms = number.checked_mul(unit_ms).ok_or_else(wrong)?;
    Ok(Duration::from_millis(ms))
}

/// A number of bytes exactly, in the unit that divides it into the fewest: `64 KiB`, `10 GB`, `1001 B`.
#[must_use]
pub fn exact_bytes(bytes: u64) -> String {
    let unit = SIZE_UNITS
        .iter()
        .filter(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
        .max_by_key(|(_, factor)| *factor);
    match unit {
        Some((name, factor)) => format!("{} {name}", bytes / factor),
        None => format!("{bytes} B"),
    }
}

/// A number of bytes to read at a glance, rounded to a tenth: `192.0 MiB`, `781 B`.
#[must_use]
pub fn rough_bytes(bytes: u64) -> String {
    match BINARY_UNITS.iter().find(|(_, factor)| bytes >= *factor) {
        None => format!("{bytes} B"),
        Some((name, factor)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*factor);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
    }
}

/// A span exactly, in the largest unit that divides it: `7d`, `90s`, `1500ms`.
#[must_use]
pub fn exact_span(ms: u64) -> String {
    let unit = SPAN_UNITS
        .iter()
        .find(|(_, factor)| ms >= *factor && ms.is_multiple_of(*factor));
    match unit {
        Some((name, factor)) => format!("{}{name}", ms / factor),
        None => format!("{ms}ms"),
    }
}

/// A span to read at a glance, in its two largest units: `3d 4h`, `1m 5s`, `1.689s`.
#[must_use]
pub fn rough_span(ms: u64) -> String {
    let (first, second) = match ms {
        0..60_000 => return format!("{}.{:03}s", ms / 1000, ms % 1000),
        60_000..3_600_000 => ((60_000, "m"), (1000, "s")),
        3_600_000..86_400_000 => ((3_600_000, "h"), (60_000, "m")),
        86_400_000.. => ((86_400_000, "d"), (3_600_000, "h")),
    };
    match ms % first.0 / second.0 {
        0 => format!("{}{}", ms / first.0, first.1),
        rest => format!("{}{} {rest}{}", ms / first.0, first.1, second.1),
    }
}

/// How much alike two names must be for one to be what the other meant, from 0 to 1 (Jaro-Winkler).
const ALIKE_MIN: f64 = 0.8;

/// The one among known names that is most like what was written, whatever its case; none where none is like it.
#[must_use]
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_lowercase();
    let likeness = |known: &str| strsim::jaro_winkler(&written, &known.to_lowercase());
    known
        .into_iter()
        .map(|known| (likeness(known), known))
        .filter(|(alike, _)| *alike >= ALIKE_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_in_units_of_1000_and_of_1024() {
        let cases = [
            ("0", 0),
            ("1_000", 1000),
            ("64KiB", 65_536),
            ("64 kib", 65_536),
            ("10MB", 10_000_000),
            ("1.5GiB", 3 << 29),
            ("0.5kB", 500),
            ("12 B", 12),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "much",
            "-1",
            "1G",
            "1.GiB",
            ".5GiB",
            "1.2.3MB",
            "99999999TiB",
            "1.99999999999999999999MB",
        ] {
            let said = parse_bytes(text).unwrap_err();
            assert!(said.contains("64KiB"), "{text}: {said}");
        }
    }

    #[test]
    fn bare_spans_count_in_the_unit_of_their_place() {
        assert_eq!(parse_span("5", 1000), Ok(Duration::from_secs(5)));
        assert_eq!(parse_span("5_000", 1), Ok(Duration::from_secs(5)));
        assert_eq!(parse_span("5m", 1), Ok(Duration::from_secs(300)));
        assert!(parse_span("5w", 1).unwrap_err().contains("7d"));
    }

    #[test]
    fn what_is_read_at_a_glance() {
        assert_eq!(exact_bytes(10_000_000_000), "10 GB");
        assert_eq!(exact_bytes(1_073_741_824), "1 GiB");
        assert_eq!(exact_bytes(0), "0 B");
        assert_eq!(rough_bytes(1023), "1023 B");
        assert_eq!(rough_bytes(201_326_592), "192.0 MiB");
        assert_eq!(rough_bytes(u64::MAX), "16777215.9 TiB");
        assert_eq!(rough_span(1689), "1.689s");
        assert_eq!(rough_span(65_005), "1m 5s");
        assert_eq!(rough_span(3_600_000), "1h");
        assert_eq!(rough_span(90_000_000), "1d 1h");
    }

    proptest! {
        #[test]
        fn what_is_written_exactly_is_read_back(bytes in any::<u64>(), shift in 0..50_u32, ms in 0..(1_u64 << 50)) {
            for bytes in [bytes, bytes >> shift << shift] {
                prop_assert_eq!(parse_bytes(&exact_bytes(bytes)), Ok(bytes));
            }
            prop_assert_eq!(parse_span(&exact_span(ms), 1), Ok(Duration::from_millis(ms)));
            prop_assert_eq!(parse_span(&exact_span(ms / 60_000 * 60_000), 1), Ok(Duration::from_millis(ms / 60_000 * 60_000)));
        }

        #[test]
        fn nothing_that_is_written_breaks_the_reading(text in ".{0,24}") {
            let _ = parse_bytes(&text);
            let _ = parse_span(&text, 1);
        }
    }
}
