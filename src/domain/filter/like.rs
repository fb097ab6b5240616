//! `LIKE`: patterns of characters, `_` for any one and `%` for any number.
//!
//! A character is one as UTF-8 has it; a byte that belongs to none counts as one. Matching goes back to the
//! last `%` only, so it takes at most the product of both lengths.

use super::LIKE_BYTES_MAX;

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Char(Vec<u8>),
    One,
    Any,
}

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn compile(text: &str, escape: Option<char>) -> Result<Self, &'static str> {
        let mut pieces = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let piece = if Some(c) == escape {
                let escaped = chars
                    .next()
                    .filter(|c| matches!(c, '%' | '_') || Some(*c) == escape)
                    .ok_or("the escape character stands before `%`, `_` or itself")?;
                Piece::Char(escaped.to_string().into_bytes())
            } else if c == '%' {
                Piece::Any
            } else if c == '_' {
                Piece::One
            } else {
                Piece::Char(c.to_string().into_bytes())
            };
            if piece != Piece::Any || pieces.last() != Some(&Piece::Any) {
                pieces.push(piece);
            }
        }
        Ok(Self(pieces))
    }

    /// Whether a text fits; unknown where it is too long to be looked at.
    pub(super) fn matches(&self, text: &[u8]) -> Option<bool> {
        if text.len() > LIKE_BYTES_MAX {
            return None;
        }
        let (mut rest, mut pieces) = (text, self.0.as_slice());
        // Where to go on after the last `%` once it has taken one character more.
        let mut again: Option<(&[u8], &[Piece])> = None;
        loop {
            match pieces.split_first() {
                Some((Piece::Any, after)) => {
                    pieces = after;
                    again = Some((rest, after));
                    continue;
                }
                Some((Piece::One, after)) if !rest.is_empty() => {
                    rest = behind_one(rest);
                    pieces = after;
                    continue;
                }
                Some((Piece::Char(c), after)) if rest.starts_with(c) => {
                    rest = rest.get(c.len()..).unwrap_or_default();
                    pieces = after;
                    continue;
                }
                None if rest.is_empty() => return Some(true),
                Some(_) | None => {}
            }
            match again {
                Some((from, after)) if !from.is_empty() => {
                    rest = behind_one(from);
                    pieces = after;
                    again = Some((rest, after));
                }
                Some(_) | None => return Some(false),
            }
        }
    }
}

/// What follows the first character.
fn behind_one(text: &[u8]) -> &[u8] {
    let width = match text.first() {
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        Some(_) | None => 1,
    };
    let is_char = text
        .get(..width)
        .is_some_and(|first| std::str::from_utf8(first).is_ok());
    let width = if is_char { width } else { 1 };
    text.get(width..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(pattern: &str, text: &[u8]) -> bool {
        Pattern::compile(pattern, Some('!'))
            .unwrap()
            .matches(text)
            .unwrap()
    }

    #[test]
    fn patterns_match_as_sql_says() {
        for (pattern, text, expected) in [
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("a%", "abcd", true),
            ("%d", "abcd", true),
            ("%b%d", "abcbd", true),
            ("a_c", "abc", true),
            ("a_c", "ac", false),
            ("_", "\u{e4}", true),
            ("__", "\u{e4}", false),
            ("%", "", true),
            ("", "", true),
            ("", "a", false),
            ("100!%", "100%", true),
            ("100!%", "1000", false),
            ("a!_b", "axb", false),
            ("a!!b", "a!b", true),
            ("%%%", "x", true),
            ("%aab", "aaaab", true),
        ] {
            assert_eq!(fits(pattern, text.as_bytes()), expected, "{pattern} {text}");
        }
        assert!(fits("_x", &[0xff, b'x']), "a stray byte counts as one");
        assert!(Pattern::compile("a!", Some('!')).is_err());
        assert!(Pattern::compile("a!b", Some('!')).is_err());
    }

    #[test]
    fn a_text_that_is_too_long_is_unknown() {
        let pattern = Pattern::compile("%a", None).unwrap();
        assert_eq!(pattern.matches(&[b'a'; LIKE_BYTES_MAX]), Some(true));
        assert_eq!(pattern.matches(&[b'a'; LIKE_BYTES_MAX + 1]), None);
    }
}
