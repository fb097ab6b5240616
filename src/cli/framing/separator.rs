//! The key separator as an argument: text with the escapes `\t`, `\0`, `\xNN` and `\\`.

/// Reads a separator.
///
/// # Errors
/// What to write instead.
pub fn parse_separator(text: &str) -> Result<Vec<u8>, String> {
    let mut separator = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            separator.push(*first);
            continue;
        }
        let (byte, length) = match rest {
            [b't', ..] => (b'\t', 1),
            [b'0', ..] => (0, 1),
            [b'\\', ..] => (b'\\', 1),
            [b'x', high, low, ..] => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, 3),
                _ => return Err(wrong_escape(text)),
            },
            _ => return Err(wrong_escape(text)),
        };
        separator.push(byte);
        rest = rest.get(length..).unwrap_or_default();
    }
    if separator.is_empty() {
        return Err("a key separator has at least one byte; write e.g. '\\t' or ':'".to_owned());
    }
    if separator.contains(&b'\n') {
        return Err(
            "a line ends at its newline, which can therefore not separate the key".to_owned(),
        );
    }
    Ok(separator)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

fn wrong_escape(text: &str) -> String {
    format!(
        "{text:?} has an unknown escape; there are \\t, \\0, \\xNN (two hexadecimal digits) and \\\\"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_stand_for_their_bytes() {
        let cases: [(&str, &[u8]); 8] = [
            (r"\t", b"\t"),
            (r"\0", b"\0"),
            (r"\x1F", b"\x1f"),
            (r"\xff\xFE", b"\xff\xfe"),
            (r"\\", b"\\"),
            (r"\\t", b"\\t"),
            (": ", b": "),
            ("→", "→".as_bytes()),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_separator(text).as_deref(), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_cannot_separate_is_refused() {
        for text in [
            "", "\\", r"\n", r"\x", r"\x1", r"\xg0", r"\x+1", "a\nb", r"\x0a",
        ] {
            assert!(parse_separator(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_separator_can_be_written(bytes in proptest::collection::vec(any::<u8>(), 1..9)) {
            let text: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            let wanted = (!bytes.contains(&b'\n')).then_some(bytes);
            prop_assert_eq!(parse_separator(&text).ok(), wanted);
        }
    }
}
