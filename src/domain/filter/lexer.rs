//! The words of a filter, each with its place.

use super::FilterError;

/// One word.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    /// Where it starts, in characters from 1.
    pub(super) position: usize,
    /// What it is.
    pub(super) kind: TokenKind,
}

/// What a word is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum TokenKind {
    /// Letters, digits and `_ - . : / @ # +`: a name, a keyword, a tag or a number.
    Word(String),
    /// `'...'`.
    Text(String),
    /// `"..."`.
    Quoted(String),
    /// An operator or a parenthesis.
    Symbol(&'static str),
}

impl TokenKind {
    /// As it is shown in an error.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Word(word) => format!("`{word}`"),
            Self::Text(text) => format!("'{text}'"),
            Self::Quoted(name) => format!("\"{name}\""),
            Self::Symbol(symbol) => format!("`{symbol}`"),
        }
    }
}

/// Longer ones first.
const SYMBOLS: [&str; 12] = [
    "||", "<>", "!=", "<=", ">=", "=", "<", ">", "(", ")", ",", "*",
];

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || "_-.:/@#+".contains(c)
}

pub(super) fn tokens(text: &str) -> Result<Vec<Token>, FilterError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut position = 1;
    while let Some(first) = rest.chars().next() {
        let (kind, taken) = if first.is_whitespace() {
            position += 1;
            rest = rest.get(first.len_utf8()..).unwrap_or_default();
            continue;
        } else if first == '\'' || first == '"' {
            let (inner, taken) = quoted(rest, first).ok_or_else(|| FilterError {
                position,
                message: format!("the {first} opened here is never closed"),
            })?;
            let kind = if first == '"' {
                TokenKind::Quoted(inner)
            } else {
                TokenKind::Text(inner)
            };
            (kind, taken)
        } else if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            (TokenKind::Symbol(symbol), symbol.len())
        } else if is_word(first) {
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let word = rest.get(..end).unwrap_or_default();
            (TokenKind::Word(word.to_owned()), end)
        } else {
            return Err(FilterError {
                position,
                message: format!(
                    "`{first}` has no meaning here; names of headers with other characters stand in double quotes, texts in single ones"
                ),
            });
        };
        tokens.push(Token { position, kind });
        position += rest.get(..taken).unwrap_or_default().chars().count();
        rest = rest.get(taken..).unwrap_or_default();
    }
    Ok(tokens)
}

/// What stands between quotes at the start of `text`, a doubled one standing for itself, and how many bytes
/// it takes with them.
fn quoted(text: &str, quote: char) -> Option<(String, usize)> {
    let mut inner = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c != quote {
            inner.push(c);
        } else if chars.next_if(|(_, next)| *next == quote).is_some() {
            inner.push(quote);
        } else {
            return Some((inner, at + 1));
        }
    }
    None
}
