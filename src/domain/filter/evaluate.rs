//! Conditions, decided in three-valued logic, from the directory's row alone as far as it goes.

use std::cmp::Ordering;

use super::like::Pattern;
use super::{Subject, Verdict};
use crate::domain::batch::Slot;
use crate::domain::key::tag_hash;

/// True, false, or unknown.
type Truth = Option<bool>;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Condition {
    Constant(bool),
    Compare(Operand, Comparison, Operand),
    In(Operand, Vec<Literal>),
    Like(Field, Pattern),
    IsNull(Field),
    Not(Box<Condition>),
    And(Vec<Condition>),
    Or(Vec<Condition>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    Field(Field),
    Literal(Literal),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Field {
    Tag,
    Key,
    Header(String),
    Priority,
    Timestamp,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Literal {
    Text(String),
    Number(Number),
    Bool(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Whole numbers are compared as such, others as floating ones; never infinite, never NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Number {
    Whole(i64),
    Floating(f64),
}

impl Number {
    /// The number a text writes, if it writes one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Ok(whole) = text.parse() {
            return Some(Self::Whole(whole));
        }
        // Not "inf" or "nan".
        let sound = text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
        let number = sound.then(|| text.parse::<f64>().ok()).flatten()?;
        number.is_finite().then_some(Self::Floating(number))
    }

    fn float(self) -> f64 {
        match self {
            Self::Whole(number) => number as f64,
            Self::Floating(number) => number,
        }
    }

    fn compare(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => Some(a.cmp(&b)),
            (a, b) => a.float().partial_cmp(&b.float()),
        }
    }
}

impl Comparison {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::Unequal => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
        }
    }
}

/// What an operand stands for in one record.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Value<'a> {
    Null,
    Text(&'a [u8]),
    Number(Number),
    Bool(bool),
}

impl<'a> Value<'a> {
    fn of(literal: &'a Literal) -> Self {
        match literal {
            Literal::Text(text) => Self::Text(text.as_bytes()),
            Literal::Number(number) => Self::Number(*number),
            Literal::Bool(value) => Self::Bool(*value),
        }
    }

    fn number(self) -> Option<Number> {
        match self {
            Self::Number(number) => Some(number),
            Self::Text(text) => Number::parse(std::str::from_utf8(text).ok()?),
            Self::Null | Self::Bool(_) => None,
        }
    }

    fn bool(self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(value),
            Self::Text(text) if text.eq_ignore_ascii_case(b"true") => Some(true),
            Self::Text(text) if text.eq_ignore_ascii_case(b"false") => Some(false),
            Self::Text(_) | Self::Null | Self::Number(_) => None,
        }
    }

    /// How two values compare; unknown where one is missing or cannot be read as the other's type.
    fn compare(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Null, _) | (_, Self::Null) => None,
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            (Self::Bool(_), _) | (_, Self::Bool(_)) => Some(self.bool()?.cmp(&other.bool()?)),
            (Self::Number(_), _) | (_, Self::Number(_)) => self.number()?.compare(other.number()?),
        }
    }
}

/// Where fields are read: a whole record, or its row of the directory, which does not say everything.
trait Source {
    /// A field's value; nothing where it takes the body to tell.
    fn value(&self, field: &Field) -> Option<Value<'_>>;
    /// Whether the record lacks a field; nothing where it takes the body to tell.
    fn lacks(&self, field: &Field) -> Option<bool>;
    /// Whether it is certain that the record has a tag and that it is not this one.
    fn has_other_tag(&self, tag: &str) -> bool;
}

impl Source for Subject<'_> {
    fn value(&self, field: &Field) -> Option<Value<'_>> {
        let text = |text: Option<_>| text.map_or(Value::Null, Value::Text);
        Some(match field {
            Field::Tag => text(self.tag.map(str::as_bytes)),
            Field::Key => text(self.key),
            Field::Header(name) => {
                let header = self
                    .headers
                    .iter()
                    .find(|(other, _)| other == name.as_str());
                text(header.map(|(_, value)| &value[..]))
            }
            Field::Priority => Value::Number(Number::Whole(i64::from(self.priority))),
            Field::Timestamp => Value::Number(Number::Whole(self.timestamp.0)),
        })
    }

    fn lacks(&self, field: &Field) -> Option<bool> {
        self.value(field).map(|value| value == Value::Null)
    }

    fn has_other_tag(&self, tag: &str) -> bool {
        self.tag.is_some_and(|own| own != tag)
    }
}

impl Source for Slot {
    fn value(&self, field: &Field) -> Option<Value<'_>> {
        match field {
            Field::Tag => (self.tag_hash == 0).then_some(Value::Null),
            Field::Key => (self.key_hash == 0).then_some(Value::Null),
            Field::Header(_) => None,
            Field::Priority => Some(Value::Number(Number::Whole(i64::from(self.priority)))),
            Field::Timestamp => Some(Value::Number(Number::Whole(self.timestamp.0))),
        }
    }

    fn lacks(&self, field: &Field) -> Option<bool> {
        match field {
            Field::Tag => Some(self.tag_hash == 0),
            Field::Key => Some(self.key_hash == 0),
            Field::Header(_) => None,
            Field::Priority | Field::Timestamp => Some(false),
        }
    }

    fn has_other_tag(&self, tag: &str) -> bool {
        self.tag_hash != 0 && self.tag_hash != tag_hash(tag)
    }
}

impl Condition {
    pub(super) fn holds(&self, subject: &Subject<'_>) -> bool {
        self.truth(subject) == Some(Some(true))
    }

    pub(super) fn decide(&self, slot: &Slot) -> Verdict {
        match self.truth(slot) {
            None => Verdict::Open,
            Some(Some(true)) => Verdict::Yes,
            Some(Some(false) | None) => Verdict::No,
        }
    }

    /// What the source says; nothing where it does not say enough.
    fn truth(&self, source: &impl Source) -> Option<Truth> {
        match self {
            Self::Constant(value) => Some(Some(*value)),
            Self::Compare(left, comparison, right) => compare(source, left, *comparison, right),
            Self::In(operand, list) => {
                let mut outcome = Some(Some(false));
                for literal in list {
                    outcome = either(outcome, equals(source, operand, literal), true);
                }
                outcome
            }
            Self::Like(field, pattern) => Some(match source.value(field)? {
                Value::Text(text) => pattern.matches(text),
                Value::Null | Value::Number(_) | Value::Bool(_) => None,
            }),
            Self::IsNull(field) => source.lacks(field).map(Some),
            Self::Not(inner) => inner.truth(source).map(|truth| truth.map(|value| !value)),
            Self::And(list) => all(source, list, false),
            Self::Or(list) => all(source, list, true),
        }
    }

    /// The tags one of which a record needs for the condition to hold; nothing where it may hold without.
    pub(super) fn required_tags(&self) -> Option<Vec<String>> {
        match self {
            Self::Constant(true) | Self::Like(..) | Self::IsNull(_) | Self::Not(_) => None,
            Self::Constant(false) => Some(Vec::new()),
            Self::Compare(left, Comparison::Equal, right) => match (left, right) {
                (Operand::Field(Field::Tag), Operand::Literal(Literal::Text(tag)))
                | (Operand::Literal(Literal::Text(tag)), Operand::Field(Field::Tag)) => {
                    Some(vec![tag.clone()])
                }
                _ => None,
            },
            Self::Compare(..) => None,
            Self::In(Operand::Field(Field::Tag), list) => list
                .iter()
                .map(|literal| match literal {
                    Literal::Text(tag) => Some(tag.clone()),
                    Literal::Number(_) | Literal::Bool(_) => None,
                })
                .collect(),
            Self::In(..) => None,
            Self::And(list) => list
                .iter()
                .filter_map(Self::required_tags)
                .min_by_key(Vec::len),
            Self::Or(list) => {
                let each: Option<Vec<_>> = list.iter().map(Self::required_tags).collect();
                each.map(|tags| tags.concat())
            }
        }
    }
}

fn equals(source: &impl Source, operand: &Operand, literal: &Literal) -> Option<Truth> {
    if let (Operand::Field(Field::Tag), Literal::Text(tag)) = (operand, literal)
        && source.has_other_tag(tag)
    {
        return Some(Some(false));
    }
    match value(source, operand)? {
        Value::Null => Some(None),
        value @ (Value::Text(_) | Value::Number(_) | Value::Bool(_)) => {
            Some(value.compare(Value::of(literal)).map(Ordering::is_eq))
        }
    }
}

fn compare(
    source: &impl Source,
    left: &Operand,
    comparison: Comparison,
    right: &Operand,
) -> Option<Truth> {
    match (left, comparison, right) {
        (left, Comparison::Equal, Operand::Literal(literal))
        | (Operand::Literal(literal), Comparison::Equal, left) => {
            return equals(source, left, literal);
        }
        (left, Comparison::Unequal, Operand::Literal(literal))
        | (Operand::Literal(literal), Comparison::Unequal, left) => {
            return equals(source, left, literal).map(|truth| truth.map(|equal| !equal));
        }
        _ => {}
    }
    let (left, right) = (value(source, left), value(source, right));
    // What is missing makes it unknown, whatever the other side is.
    if left == Some(Value::Null) || right == Some(Value::Null) {
        return Some(None);
    }
    let ordering = left?.compare(right?);
    Some(ordering.map(|ordering| comparison.holds(ordering)))
}

fn value<'a>(source: &'a impl Source, operand: &'a Operand) -> Option<Value<'a>> {
    match operand {
        Operand::Field(field) => source.value(field),
        Operand::Literal(literal) => Some(Value::of(literal)),
    }
}

/// AND (`decisive` false) or OR (true) of a list: one decisive member settles it.
fn all(source: &impl Source, list: &[Condition], decisive: bool) -> Option<Truth> {
    let mut outcome = Some(Some(!decisive));
    for condition in list {
        outcome = either(outcome, condition.truth(source), decisive);
        if outcome == Some(Some(decisive)) {
            break;
        }
    }
    outcome
}

fn either(a: Option<Truth>, b: Option<Truth>, decisive: bool) -> Option<Truth> {
    let settled = Some(Some(decisive));
    if a == settled || b == settled {
        return settled;
    }
    let (a, b) = (a?, b?);
    Some(if a.is_none() || b.is_none() {
        None
    } else {
        Some(!decisive)
    })
}
