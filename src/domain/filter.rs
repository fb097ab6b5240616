//! Filters: which records of a topic a subscription wants.
//!
//! What comes in is a text ([`Filter::parse`]), compiled once; then, per batch, the tag summary of the
//! index ([`Filter::may_match`]), per record its row of the directory ([`Filter::decide`]), and where
//! that does not settle it, the record itself ([`Filter::matches`]). So a batch whose tags cannot match
//! is never read, and a body is opened only if it matters.
//!
//! # The language
//!
//! A filter is either a choice of tags or a condition.
//!
//! - `*` or nothing: every record.
//! - `paid || shipped`: records with one of these tags. A tag of other characters than letters, digits and
//!   `_ - . : / @ # +` stands in single quotes: `'on hold' || paid`.
//! - A condition, the SQL-92 subset message brokers use. Words are written in any case.
//!
//! ```text
//! condition  = conjunction { OR conjunction }
//! conjunction= negation { AND negation }
//! negation   = NOT negation | "(" condition ")" | TRUE | FALSE | predicate
//! predicate  = operand ( = | <> | != | < | <= | > | >= ) operand
//!            | operand [NOT] BETWEEN operand AND operand
//!            | operand [NOT] IN "(" literal { "," literal } ")"
//!            | field   [NOT] LIKE 'pattern' [ESCAPE 'c']
//!            | field   IS [NOT] NULL
//! operand    = field | literal
//! field      = tag | key | priority | timestamp | NAME | "NAME"     (NAME: of a header)
//! literal    = 'text' | 12 | -1.5e3 | TRUE | FALSE | TIMESTAMP '2026-01-31T12:00:00Z'
//! ```
//!
//! `tag`, `key`, `priority` and `timestamp` are the record's own; any other name, and any name in double
//! quotes, is that of a header (of several headers of one name the first counts). A quote inside a text
//! or name is written twice. `timestamp` counts Unix milliseconds.
//!
//! Logic is three-valued: what a record does not have is NULL, a comparison with NULL is unknown, and only
//! what is true is delivered. Tags, keys and headers are text, compared byte by byte; where the other side
//! is a number they are read as one, and where it is TRUE or FALSE as such, and the comparison is unknown
//! if they are none. Two fields of text are compared as text. `LIKE` knows `%` (any characters) and `_` (one);
//! a text longer than [`LIKE_BYTES_MAX`] is unknown to it.
//!
//! Invariants: L1, parsing and deciding are total, whatever the text and the record; L2, a filter is bounded
//! ([`FILTER_BYTES_MAX`], [`NODES_MAX`], [`DEPTH_MAX`]), so that nobody's filter is another's problem; L3,
//! the summary and the directory never say no to a record that matches.
//!
//! Survives a crash: the text, with the subscription it belongs to; it is compiled again.

mod evaluate;
mod lexer;
mod like;
mod parser;
mod timestamp;

use bytes::Bytes;

use super::batch::Slot;
use super::key::tag_hash;
use super::record::{RecordBody, Text};
use super::time::WallMs;

/// The longest text of a filter, in bytes.
pub const FILTER_BYTES_MAX: usize = 4096;

/// The most operands, literals and operators of a filter together.
pub const NODES_MAX: usize = 512;

/// How deep parentheses and NOT may nest.
pub const DEPTH_MAX: usize = 32;

/// The longest text `LIKE` looks at, in bytes; a longer one is unknown to it.
pub const LIKE_BYTES_MAX: usize = 4096;

/// Why a text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at character {position}: {message}")]
pub struct FilterError {
    /// Where in the text, in characters from 1.
    pub position: usize,
    /// What is wrong and what would be right.
    pub message: String,
}

/// A compiled filter.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    text: String,
    rule: Rule,
    /// The tags one of which every matching record has; none where no tag is required.
    required: Option<TagSet>,
}

#[derive(Debug, Clone, PartialEq)]
enum Rule {
    Everything,
    /// One of the required tags is all it takes.
    Tags,
    Condition(evaluate::Condition),
}

/// Tags with their hashes, and the bits they set in a summary.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct TagSet {
    /// Ascending by hash.
    tags: Vec<(u32, String)>,
    summary: u64,
}

/// What a record's row of the directory says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It matches, whatever is in its body.
    Yes,
    /// It does not.
    No,
    /// The body has to be looked at.
    Open,
}

/// What a condition looks at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subject<'a> {
    /// The tag, if it has one.
    pub tag: Option<&'a str>,
    /// The key, if it has one.
    pub key: Option<&'a [u8]>,
    /// The headers in the sender's order.
    pub headers: &'a [(Text, Bytes)],
    /// The priority.
    pub priority: u8,
    /// When it happened.
    pub timestamp: WallMs,
}

impl<'a> Subject<'a> {
    /// A record as it lies in a batch.
    #[must_use]
    pub fn new(slot: &Slot, body: &'a RecordBody) -> Self {
        Self {
            tag: body.tag.as_ref().map(Text::as_str),
            key: body.key.as_deref(),
            headers: &body.headers,
            priority: slot.priority,
            timestamp: slot.timestamp,
        }
    }
}

impl Filter {
    /// The filter that wants everything.
    #[must_use]
    pub fn everything() -> Self {
        Self {
            text: String::new(),
            rule: Rule::Everything,
            required: None,
        }
    }

    /// Compiles a text.
    ///
    /// # Errors
    /// [`FilterError`] names the place where the text stops being a filter, or what bound it exceeds.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.len() > FILTER_BYTES_MAX {
            return Err(FilterError {
                position: 1,
                message: format!(
                    "the filter has {} bytes; at most {FILTER_BYTES_MAX} are allowed",
                    text.len()
                ),
            });
        }
        let trimmed = text.trim();
        if trimmed.is_empty() || trimmed == "*" {
            return Ok(Self {
                text: text.to_owned(),
                ..Self::everything()
            });
        }
        let tokens = lexer::tokens(text)?;
        if let Some(tags) = parser::tags(&tokens)? {
            return Ok(Self {
                text: text.to_owned(),
                rule: Rule::Tags,
                required: Some(TagSet::new(tags)),
            });
        }
        let condition = parser::condition(&tokens, text)?;
        Ok(Self {
            text: text.to_owned(),
            required: condition.required_tags().map(TagSet::new),
            rule: Rule::Condition(condition),
        })
    }

    /// The text it was compiled from.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether every record matches.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.rule == Rule::Everything
    }

    /// Whether a batch with this tag summary can hold a record that matches (L3).
    #[must_use]
    pub fn may_match(&self, summary: u64) -> bool {
        self.required
            .as_ref()
            .is_none_or(|tags| tags.summary & summary != 0)
    }

    /// What the directory says about a record (L3). A tag whose hash fits is looked at in the body before
    /// it counts: two tags may share a hash.
    #[must_use]
    pub fn decide(&self, slot: &Slot) -> Verdict {
        if let Some(tags) = &self.required
            && !tags.has_hash(slot.tag_hash)
        {
            return Verdict::No;
        }
        match &self.rule {
            Rule::Everything => Verdict::Yes,
            Rule::Tags => Verdict::Open,
            Rule::Condition(condition) => condition.decide(slot),
        }
    }

    /// Whether a record matches.
    #[must_use]
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        match &self.rule {
            Rule::Everything => true,
            Rule::Tags => {
                let tags = self.required.as_ref();
                tags.zip(subject.tag)
                    .is_some_and(|(tags, tag)| tags.has(tag))
            }
            Rule::Condition(condition) => condition.holds(subject),
        }
    }
}

impl TagSet {
    fn new(names: Vec<String>) -> Self {
        let mut tags: Vec<(u32, String)> = names
            .into_iter()
            .map(|name| (tag_hash(&name), name))
            .collect();
        tags.sort();
        tags.dedup();
        let summary = tags
            .iter()
            .fold(0, |bits, (hash, _)| bits | summary_bit(*hash));
        Self { tags, summary }
    }

    fn has_hash(&self, hash: u32) -> bool {
        self.tags
            .binary_search_by_key(&hash, |(hash, _)| *hash)
            .is_ok()
    }

    fn has(&self, tag: &str) -> bool {
        let hash = tag_hash(tag);
        let from = self.tags.partition_point(|(other, _)| *other < hash);
        self.tags
            .iter()
            .skip(from)
            .take_while(|(other, _)| *other == hash)
            .any(|(_, name)| name == tag)
    }
}

/// The bit a tag's hash sets in the summary of its batch.
fn summary_bit(hash: u32) -> u64 {
    1 << (hash >> 26)
}

#[cfg(test)]
mod tests;
