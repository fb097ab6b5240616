//! Spans of time as arguments: `250ms`, `120s`, `5m`, `2h`, `7d`; a bare number is seconds.

use std::time::Duration;

/// Reads a span.
///
/// # Errors
/// What to write instead.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    crate::config::human::parse_span(text, 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_understood() {
        let cases = [
            ("250ms", 250),
            ("120s", 120_000),
            ("120", 120_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("7d", 604_800_000),
        ];
        for (text, ms) in cases {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(ms)),
                "{text}"
            );
        }
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        for text in [
            "",
            "s",
            "-1s",
            "1.5s",
            "1 s",
            "1w",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            let said = parse_duration(text).unwrap_err();
            assert!(said.contains("120s"), "{text}: {said}");
        }
    }
}
