//! From words to a choice of tags or a condition.

use super::evaluate::{Comparison, Condition, Field, Literal, Number, Operand};
use super::lexer::{Token, TokenKind};
use super::like::Pattern;
use super::{DEPTH_MAX, FilterError, NODES_MAX, timestamp};

/// The tags of a choice of tags; nothing where the words are something else.
pub(super) fn tags(tokens: &[Token]) -> Result<Option<Vec<String>>, FilterError> {
    let is_or = |token: &Token| token.kind == TokenKind::Symbol("||");
    let is_choice = match tokens {
        [one] => match &one.kind {
            TokenKind::Word(word) => truth(word).is_none(),
            TokenKind::Text(_) => true,
            TokenKind::Quoted(_) | TokenKind::Symbol(_) => false,
        },
        several => several.iter().any(is_or),
    };
    if !is_choice {
        return Ok(None);
    }
    let mut tags = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        let wanted = match &token.kind {
            TokenKind::Word(tag) | TokenKind::Text(tag) if index % 2 == 0 => {
                tags.push(tag.clone());
                None
            }
            TokenKind::Symbol("||") if index % 2 == 1 => None,
            TokenKind::Word(_)
            | TokenKind::Text(_)
            | TokenKind::Quoted(_)
            | TokenKind::Symbol(_) => Some(if index % 2 == 0 { "a tag" } else { "`||`" }),
        };
        if let Some(wanted) = wanted {
            return Err(FilterError {
                position: token.position,
                message: format!(
                    "{wanted} is expected here, not {}; in a condition write OR instead of `||`",
                    token.kind.shown()
                ),
            });
        }
        if tags.len() > NODES_MAX {
            return Err(too_many(token.position));
        }
    }
    match tokens.last() {
        Some(last) if is_or(last) => Err(FilterError {
            position: last.position,
            message: "a tag is expected behind `||`".to_owned(),
        }),
        Some(_) | None => Ok(Some(tags)),
    }
}

/// The condition the words write.
pub(super) fn condition(tokens: &[Token], text: &str) -> Result<Condition, FilterError> {
    let mut parser = Parser {
        tokens,
        end: text.chars().count() + 1,
        nodes: 0,
        depth: 0,
    };
    let condition = parser.condition()?;
    match parser.tokens.first() {
        None => Ok(condition),
        Some(_) => Err(parser.expected("AND, OR or the end of the filter")),
    }
}

fn too_many(position: usize) -> FilterError {
    FilterError {
        position,
        message: format!("the filter is too large: at most {NODES_MAX} operands and operators"),
    }
}

/// The words with a meaning of their own; a header of such a name stands in double quotes.
const KEYWORDS: [&str; 12] = [
    "and",
    "or",
    "not",
    "in",
    "between",
    "like",
    "escape",
    "is",
    "null",
    "true",
    "false",
    "timestamp",
];

fn truth(word: &str) -> Option<bool> {
    if word.eq_ignore_ascii_case("true") {
        Some(true)
    } else if word.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

/// What can be said of an operand before there is a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Text that is read as whatever it is compared with.
    Field,
    Text,
    Number,
    Bool,
}

impl Kind {
    fn of(operand: &Operand) -> Self {
        match operand {
            Operand::Field(Field::Tag | Field::Key | Field::Header(_)) => Self::Field,
            Operand::Field(Field::Priority | Field::Timestamp)
            | Operand::Literal(Literal::Number(_)) => Self::Number,
            Operand::Literal(Literal::Text(_)) => Self::Text,
            Operand::Literal(Literal::Bool(_)) => Self::Bool,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Field | Self::Text => "a text",
            Self::Number => "a number",
            Self::Bool => "TRUE or FALSE",
        }
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    /// The place behind the last word.
    end: usize,
    nodes: usize,
    depth: usize,
}

impl Parser<'_> {
    fn position(&self) -> usize {
        self.tokens.first().map_or(self.end, |token| token.position)
    }

    fn expected(&self, wanted: &str) -> FilterError {
        let found = self
            .tokens
            .first()
            .map_or_else(|| "the end".to_owned(), |token| token.kind.shown());
        FilterError {
            position: self.position(),
            message: format!("{wanted} is expected here, not {found}"),
        }
    }

    fn count(&mut self) -> Result<(), FilterError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(too_many(self.position()));
        }
        Ok(())
    }

    /// Takes the next word if it is this keyword.
    fn takes(&mut self, keyword: &str) -> bool {
        let is_it = self.tokens.first().is_some_and(|token| match &token.kind {
            TokenKind::Word(word) => word.eq_ignore_ascii_case(keyword),
            TokenKind::Text(_) | TokenKind::Quoted(_) | TokenKind::Symbol(_) => false,
        });
        self.tokens = self.tokens.get(usize::from(is_it)..).unwrap_or_default();
        is_it
    }

    fn takes_symbol(&mut self, symbol: &str) -> bool {
        let is_it = self
            .tokens
            .first()
            .is_some_and(|token| matches!(token.kind, TokenKind::Symbol(found) if found == symbol));
        self.tokens = self.tokens.get(usize::from(is_it)..).unwrap_or_default();
        is_it
    }

    fn condition(&mut self) -> Result<Condition, FilterError> {
        let mut list = vec![self.conjunction()?];
        while self.takes("or") {
            self.count()?;
            list.push(self.conjunction()?);
        }
        Ok(only(list, Condition::Or))
    }

    fn conjunction(&mut self) -> Result<Condition, FilterError> {
        let mut list = vec![self.negation()?];
        while self.takes("and") {
            self.count()?;
            list.push(self.negation()?);
        }
        Ok(only(list, Condition::And))
    }

    fn negation(&mut self) -> Result<Condition, FilterError> {
        self.count()?;
        if self.depth >= DEPTH_MAX {
            return Err(FilterError {
                position: self.position(),
                message: format!("parentheses and NOT nest at most {DEPTH_MAX} deep"),
            });
        }
        self.depth += 1;
        let inner = if self.takes("not") {
            Condition::Not(Box::new(self.negation()?))
        } else if self.takes_symbol("(") {
            let inner = self.condition()?;
            if !self.takes_symbol(")") {
                return Err(self.expected("AND, OR or `)`"));
            }
            inner
        } else {
            self.predicate()?
        };
        self.depth -= 1;
        Ok(inner)
    }

    fn predicate(&mut self) -> Result<Condition, FilterError> {
        let start = self.position();
        let left = self.operand()?;
        let at = self.position();
        if let Some(comparison) = self.comparison() {
            let right = self.operand()?;
            check(&left, comparison, &right, at)?;
            return Ok(Condition::Compare(left, comparison, right));
        }
        if self.takes("is") {
            let negated = self.takes("not");
            if !self.takes("null") {
                return Err(self.expected("NULL"));
            }
            let field = field_only(left, start, "IS NULL")?;
            return Ok(negate(negated, Condition::IsNull(field)));
        }
        let negated = self.takes("not");
        let inner = if self.takes("between") {
            self.between(left, at)?
        } else if self.takes("in") {
            self.list(left, at)?
        } else if self.takes("like") {
            self.like(left, start)?
        } else if negated {
            return Err(self.expected("BETWEEN, IN or LIKE"));
        } else {
            return match left {
                Operand::Literal(Literal::Bool(value)) => Ok(Condition::Constant(value)),
                Operand::Literal(_) | Operand::Field(_) => {
                    Err(self.expected("a comparison, BETWEEN, IN, LIKE or IS"))
                }
            };
        };
        Ok(negate(negated, inner))
    }

    fn comparison(&mut self) -> Option<Comparison> {
        let comparisons = [
            ("=", Comparison::Equal),
            ("<>", Comparison::Unequal),
            ("!=", Comparison::Unequal),
            ("<=", Comparison::LessOrEqual),
            ("<", Comparison::Less),
            (">=", Comparison::GreaterOrEqual),
            (">", Comparison::Greater),
        ];
        comparisons
            .into_iter()
            .find(|(symbol, _)| self.takes_symbol(symbol))
            .map(|(_, comparison)| comparison)
    }

    fn between(&mut self, left: Operand, at: usize) -> Result<Condition, FilterError> {
        let low = self.operand()?;
        if !self.takes("and") {
            return Err(self.expected("AND"));
        }
        let high = self.operand()?;
        check(&left, Comparison::GreaterOrEqual, &low, at)?;
        check(&left, Comparison::LessOrEqual, &high, at)?;
        Ok(Condition::And(vec![
            Condition::Compare(left.clone(), Comparison::GreaterOrEqual, low),
            Condition::Compare(left, Comparison::LessOrEqual, high),
        ]))
    }

    fn list(&mut self, left: Operand, at: usize) -> Result<Condition, FilterError> {
        if !self.takes_symbol("(") {
            return Err(self.expected("`(`"));
        }
        let mut list = Vec::new();
        loop {
            let position = self.position();
            let operand = self.operand()?;
            check(&left, Comparison::Equal, &operand, at)?;
            let Operand::Literal(literal) = operand else {
                return Err(FilterError {
                    position,
                    message:
                        "a list holds texts, numbers, TRUE and FALSE only; compare fields with `=`"
                            .to_owned(),
                });
            };
            list.push(literal);
            if self.takes_symbol(")") {
                return Ok(Condition::In(left, list));
            }
            if !self.takes_symbol(",") {
                return Err(self.expected("`,` or `)`"));
            }
        }
    }

    fn like(&mut self, left: Operand, start: usize) -> Result<Condition, FilterError> {
        let field = field_only(left, start, "LIKE")?;
        if matches!(field, Field::Priority | Field::Timestamp) {
            return Err(FilterError {
                position: start,
                message: "LIKE looks at texts; priority and timestamp are numbers".to_owned(),
            });
        }
        let position = self.position();
        let pattern = self.text("a pattern in single quotes")?;
        let mut escape = None;
        if self.takes("escape") {
            let at = self.position();
            let text = self.text("a character in single quotes")?;
            let mut chars = text.chars();
            escape = chars.next().filter(|_| chars.next().is_none());
            if escape.is_none() {
                return Err(FilterError {
                    position: at,
                    message: "ESCAPE takes exactly one character".to_owned(),
                });
            }
        }
        let pattern = Pattern::compile(&pattern, escape).map_err(|why| FilterError {
            position,
            message: why.to_owned(),
        })?;
        Ok(Condition::Like(field, pattern))
    }

    fn text(&mut self, wanted: &str) -> Result<String, FilterError> {
        match self.tokens.split_first() {
            Some((
                Token {
                    kind: TokenKind::Text(text),
                    ..
                },
                rest,
            )) => {
                self.tokens = rest;
                Ok(text.clone())
            }
            Some(_) | None => Err(self.expected(wanted)),
        }
    }

    fn operand(&mut self) -> Result<Operand, FilterError> {
        self.count()?;
        let wrong = self.expected("a field or a value");
        let (token, rest) = self.tokens.split_first().ok_or_else(|| wrong.clone())?;
        let operand = match &token.kind {
            TokenKind::Text(text) => Operand::Literal(Literal::Text(text.clone())),
            TokenKind::Quoted(name) => Operand::Field(Field::Header(name.clone())),
            TokenKind::Word(word) => {
                if let Some((
                    Token {
                        kind: TokenKind::Text(text),
                        position,
                    },
                    rest,
                )) = rest.split_first()
                    && word.eq_ignore_ascii_case("timestamp")
                {
                    let moment = timestamp::parse(text).ok_or_else(|| FilterError {
                        position: *position,
                        message: "a timestamp is written as '2026-01-31T12:00:00Z'".to_owned(),
                    })?;
                    self.tokens = rest;
                    return Ok(Operand::Literal(Literal::Number(Number::Whole(moment))));
                }
                word_operand(word).ok_or(wrong)?
            }
            TokenKind::Symbol(_) => return Err(wrong),
        };
        self.tokens = rest;
        Ok(operand)
    }
}

fn word_operand(word: &str) -> Option<Operand> {
    let is = |name: &str| word.eq_ignore_ascii_case(name);
    if let Some(value) = truth(word) {
        return Some(Operand::Literal(Literal::Bool(value)));
    }
    if let Some(number) = Number::parse(word) {
        return Some(Operand::Literal(Literal::Number(number)));
    }
    let field = if is("tag") {
        Field::Tag
    } else if is("key") {
        Field::Key
    } else if is("priority") {
        Field::Priority
    } else if is("timestamp") {
        Field::Timestamp
    } else {
        let is_name = word.starts_with(|c: char| c.is_alphabetic() || c == '_');
        if !is_name || KEYWORDS.iter().any(|keyword| is(keyword)) {
            return None;
        }
        Field::Header(word.to_owned())
    };
    Some(Operand::Field(field))
}

fn only(mut list: Vec<Condition>, several: fn(Vec<Condition>) -> Condition) -> Condition {
    match (list.len(), list.pop()) {
        (1, Some(one)) => one,
        (_, last) => {
            list.extend(last);
            several(list)
        }
    }
}

fn negate(negated: bool, condition: Condition) -> Condition {
    if negated {
        Condition::Not(Box::new(condition))
    } else {
        condition
    }
}

fn field_only(operand: Operand, position: usize, what: &str) -> Result<Field, FilterError> {
    match operand {
        Operand::Field(field) => Ok(field),
        Operand::Literal(_) => Err(FilterError {
            position,
            message: format!("{what} is asked of a field, not of a value"),
        }),
    }
}

/// Whether two operands can be compared at all.
fn check(
    left: &Operand,
    comparison: Comparison,
    right: &Operand,
    position: usize,
) -> Result<(), FilterError> {
    let (a, b) = (Kind::of(left), Kind::of(right));
    let ordered = !matches!(comparison, Comparison::Equal | Comparison::Unequal);
    let message = if a != b && a != Kind::Field && b != Kind::Field {
        format!("{} cannot be compared with {}", a.name(), b.name())
    } else if ordered && (a == Kind::Bool || b == Kind::Bool) {
        "TRUE and FALSE are compared with `=` and `<>` only".to_owned()
    } else {
        return Ok(());
    };
    Err(FilterError { position, message })
}
