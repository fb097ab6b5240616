use std::cmp::Ordering;

use proptest::prelude::*;

use super::*;
use crate::domain::batch::{BatchBuilder, BatchStamp, BatchView, Compression, Delivery};
use crate::domain::id::MessageId;
use crate::domain::record::Record;

/// A record the tests ask about.
#[derive(Debug, Clone, Default)]
struct Sample {
    tag: Option<&'static str>,
    key: Option<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
    priority: u8,
    timestamp: i64,
}

/// The slots, bodies and tag summary of one batch made of samples.
fn batch_of(samples: &[Sample]) -> (Vec<(Slot, RecordBody)>, u64) {
    let mut builder = BatchBuilder::new(1 << 20, Compression::None);
    for sample in samples {
        let mut record = Record::new("x").timestamp(WallMs(sample.timestamp));
        record.key = sample.key.map(|key| Bytes::from_static(key.as_bytes()));
        record.tag = sample.tag.map(Text::from);
        for (name, value) in &sample.headers {
            record = record.header(*name, *value);
        }
        builder
            .push_with(
                &record,
                MessageId([1; 16]),
                WallMs(0),
                sample.priority,
                Delivery::Now,
            )
            .unwrap();
    }
    let bytes = builder.finish(BatchStamp::default()).unwrap();
    let view = BatchView::parse(&bytes).unwrap();
    let records = view
        .bodies()
        .unwrap()
        .map(|body| {
            let (index, body) = body.unwrap();
            (
                view.slot(index).unwrap(),
                RecordBody::decode(&body).unwrap(),
            )
        })
        .collect();
    (records, view.facts().tags)
}

fn matches(filter: &str, sample: &Sample) -> bool {
    let filter = Filter::parse(filter).unwrap();
    let (records, summary) = batch_of(std::slice::from_ref(sample));
    let (slot, body) = &records[0];
    let matches = filter.matches(&Subject::new(slot, body));
    // L3 on the way.
    match filter.decide(slot) {
        Verdict::Open => {}
        Verdict::Yes => assert!(matches, "{filter:?}"),
        Verdict::No => assert!(!matches, "{filter:?}"),
    }
    assert!(filter.may_match(summary) || !matches, "{filter:?}");
    matches
}

fn paid() -> Sample {
    Sample {
        tag: Some("paid"),
        key: Some("order-17"),
        headers: vec![
            ("amount", "120"),
            ("region", "EU"),
            ("vip", "True"),
            ("amount", "1"),
            ("o'k", "x"),
        ],
        priority: 3,
        timestamp: 1_795_365_721_000,
    }
}

#[test]
fn conditions_mean_what_sql_says() {
    for (filter, expected) in [
        ("", true),
        ("*", true),
        ("paid", true),
        ("shipped || paid", true),
        ("'paid'||x", true),
        ("shipped", false),
        ("tag = 'paid'", true),
        ("'paid' = tag", true),
        ("tag <> 'paid'", false),
        ("tag IN ('a', 'paid') and priority >= 3", true),
        ("tag NOT IN ('a', 'paid')", false),
        ("amount > 100", true),
        ("amount > 100.5 AND amount < 1.3e2", true),
        ("amount = '120'", true),
        ("amount > '1199'", true),
        ("region > 5", false),
        ("NOT region > 5", false),
        ("region > 5 OR region = 'EU'", true),
        ("nothing = 'x' OR NOT nothing = 'x'", false),
        ("nothing IS NULL AND region IS NOT NULL", true),
        ("nothing <> 'x'", false),
        ("nothing NOT IN ('x')", false),
        ("nothing NOT LIKE 'x'", false),
        ("key LIKE 'order-%' AND key NOT LIKE '%18'", true),
        ("key LIKE 'order-1!_' ESCAPE '!'", false),
        ("vip = TRUE", true),
        ("vip <> false", true),
        ("region = TRUE OR region = FALSE", false),
        ("priority BETWEEN 1 AND 3", true),
        ("priority NOT BETWEEN 1 AND 3", false),
        ("amount BETWEEN 121 AND 200", false),
        ("timestamp >= TIMESTAMP '2026-11-22T16:42:01Z'", true),
        ("timestamp > TIMESTAMP '2026-11-22T16:42:01Z'", false),
        ("\"o'k\" = 'x'", true),
        ("\"tag\" IS NULL", true),
        ("NOT (tag = 'x' OR amount < 5)", true),
        ("TRUE", true),
        ("FALSE", false),
        ("tag = 'x' AND nothing = 1 OR true", true),
        ("1 = 1 AND 'a' < 'b'", true),
        ("amount = region OR region = region", true),
    ] {
        assert_eq!(matches(filter, &paid()), expected, "{filter}");
    }
    assert!(!matches("paid", &Sample::default()));
    assert!(matches("tag IS NULL AND key IS NULL", &Sample::default()));
    assert!(!matches("tag <> 'x'", &Sample::default()));
}

#[test]
fn errors_name_the_place() {
    for (filter, position, words) in [
        ("tag = ", 7, "a field or a value"),
        ("tag == 'a'", 6, "a field or a value"),
        ("tag 'a'", 5, "a comparison"),
        ("a ||", 3, "behind `||`"),
        ("a || || b", 6, "a tag is expected"),
        ("a b || c", 3, "`||` is expected"),
        ("tag = 'a' || tag = 'b'", 5, "write OR"),
        ("tag = 'abc", 7, "never closed"),
        ("\u{e4} = 1 )", 7, "AND, OR or the end"),
        ("(tag = 'a'", 11, "`)`"),
        (
            "priority = 'high'",
            10,
            "a number cannot be compared with a text",
        ),
        ("vip > TRUE", 5, "`=` and `<>` only"),
        ("x IN ()", 7, "a field or a value"),
        ("x IN (y)", 7, "a list holds"),
        ("x LIKE 5", 8, "a pattern"),
        ("x LIKE 'a' ESCAPE 'ab'", 19, "exactly one"),
        ("x LIKE 'a!b' ESCAPE '!'", 8, "escape character"),
        ("priority LIKE '1'", 1, "texts"),
        ("5 IS NULL", 1, "asked of a field"),
        ("x NOT = 5", 7, "BETWEEN, IN or LIKE"),
        ("timestamp > TIMESTAMP 'now'", 23, "is written as"),
        ("a = 1-2", 5, "a field or a value"),
        ("a ; b", 3, "no meaning"),
        ("not 5", 6, "a comparison"),
    ] {
        let error = Filter::parse(filter).expect_err(filter);
        assert_eq!(error.position, position, "{filter}: {error}");
        assert!(error.message.contains(words), "{filter}: {error}");
    }
}

#[test]
fn l2_what_would_be_huge_is_refused() {
    let deep = format!("{}a = 1{}", "(".repeat(DEPTH_MAX), ")".repeat(DEPTH_MAX));
    assert!(Filter::parse(&deep).unwrap_err().message.contains("deep"));
    assert!(Filter::parse(&"NOT ".repeat(900)).is_err());
    let wide = vec!["a=1"; NODES_MAX].join(" OR ");
    assert!(Filter::parse(&wide).unwrap_err().message.contains("large"));
    let tags = vec!["a"; NODES_MAX + 2].join("||");
    assert!(Filter::parse(&tags).is_err());
    let long = "a".repeat(FILTER_BYTES_MAX + 1);
    assert!(Filter::parse(&long).unwrap_err().message.contains("bytes"));
    assert!(Filter::parse(&"a".repeat(FILTER_BYTES_MAX)).is_ok());
}

#[test]
fn l3_a_condition_that_needs_a_tag_skips_batches_without_it() {
    let (_, other) = batch_of(&[Sample {
        tag: Some("other"),
        ..Sample::default()
    }]);
    for (filter, skips) in [
        ("paid", true),
        ("paid || other", false),
        ("tag = 'paid' AND amount > 5", true),
        (
            "tag IN ('paid', 'sent') AND (tag = 'other' OR amount > 5)",
            true,
        ),
        ("tag = 'paid' OR tag IN ('sent')", true),
        ("tag = 'paid' OR amount > 5", false),
        ("NOT tag = 'other'", false),
        ("FALSE", true),
        ("*", false),
    ] {
        let filter = Filter::parse(filter).unwrap();
        assert_eq!(!filter.may_match(other), skips, "{filter:?}");
        assert_eq!(
            !filter.may_match(0),
            skips || filter.text() == "paid || other"
        );
    }
}

/// The generated expressions, apart from anything the parser makes of them.
#[derive(Debug, Clone)]
enum Tree {
    Compare(Leaf, &'static str, Leaf),
    Between(Leaf, bool, Leaf, Leaf),
    In(Leaf, bool, Vec<Leaf>),
    Like(&'static str, bool, String),
    IsNull(&'static str, bool),
    Not(Box<Tree>),
    And(Box<Tree>, Box<Tree>),
    Or(Box<Tree>, Box<Tree>),
}

#[derive(Debug, Clone)]
enum Leaf {
    Field(&'static str),
    Text(&'static str),
    Number(i64),
}

const TAGS: [&str; 4] = ["a", "b", "10", ""];
const VALUES: [&str; 6] = ["a", "ab", "10", "9", "", "b'x"];
const FIELDS: [&str; 6] = ["tag", "key", "h1", "h2", "priority", "timestamp"];

fn leaf_text(leaf: &Leaf) -> String {
    match leaf {
        Leaf::Field(name) => (*name).to_owned(),
        Leaf::Text(text) => format!("'{}'", text.replace('\'', "''")),
        Leaf::Number(number) => number.to_string(),
    }
}

fn text_of(tree: &Tree) -> String {
    let not = |negated: &bool| if *negated { " NOT" } else { "" };
    match tree {
        Tree::Compare(a, op, b) => format!("{} {op} {}", leaf_text(a), leaf_text(b)),
        Tree::Between(x, negated, a, b) => format!(
            "{}{} BETWEEN {} AND {}",
            leaf_text(x),
            not(negated),
            leaf_text(a),
            leaf_text(b)
        ),
        Tree::In(x, negated, list) => format!(
            "{}{} in ({})",
            leaf_text(x),
            not(negated),
            list.iter().map(leaf_text).collect::<Vec<_>>().join(",")
        ),
        Tree::Like(field, negated, pattern) => {
            format!("{field}{} LIKE '{pattern}'", not(negated))
        }
        Tree::IsNull(field, negated) => format!("{field} IS{} NULL", not(negated)),
        Tree::Not(a) => format!("NOT ({})", text_of(a)),
        Tree::And(a, b) => format!("({}) AND ({})", text_of(a), text_of(b)),
        Tree::Or(a, b) => format!("({}) OR ({})", text_of(a), text_of(b)),
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Naive {
    Null,
    Text(String),
    Number(i64),
}

fn naive_value(leaf: &Leaf, sample: &Sample) -> Naive {
    let text = |text: Option<&str>| text.map_or(Naive::Null, |text| Naive::Text(text.to_owned()));
    match leaf {
        Leaf::Text(text) => Naive::Text((*text).to_owned()),
        Leaf::Number(number) => Naive::Number(*number),
        Leaf::Field("tag") => text(sample.tag),
        Leaf::Field("key") => text(sample.key),
        Leaf::Field("priority") => Naive::Number(i64::from(sample.priority)),
        Leaf::Field("timestamp") => Naive::Number(sample.timestamp),
        Leaf::Field(name) => {
            let found = sample.headers.iter().find(|(other, _)| other == name);
            text(found.map(|(_, value)| *value))
        }
    }
}

fn naive_compare(a: &Leaf, b: &Leaf, sample: &Sample) -> Option<Ordering> {
    match (naive_value(a, sample), naive_value(b, sample)) {
        (Naive::Null, _) | (_, Naive::Null) => None,
        (Naive::Text(a), Naive::Text(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
        (Naive::Number(a), Naive::Number(b)) => Some(a.cmp(&b)),
        (Naive::Text(a), Naive::Number(b)) => a.parse::<i64>().ok().map(|a| a.cmp(&b)),
        (Naive::Number(a), Naive::Text(b)) => b.parse::<i64>().ok().map(|b| a.cmp(&b)),
    }
}

fn naive_like(text: &[char], pattern: &[char]) -> bool {
    match (pattern, text) {
        ([], text) => text.is_empty(),
        (['%', rest @ ..], text) => (0..=text.len()).any(|at| naive_like(&text[at..], rest)),
        (['_', rest @ ..], [_, text @ ..]) => naive_like(text, rest),
        ([c, rest @ ..], [d, text @ ..]) => c == d && naive_like(text, rest),
        (_, []) => false,
    }
}

/// NULL as the middle of three values, AND as the least, OR as the greatest.
fn naive(tree: &Tree, sample: &Sample) -> i8 {
    let truth = |known: Option<bool>| match known {
        Some(true) => 1,
        Some(false) => -1,
        None => 0,
    };
    let signed = |negated: &bool, value: i8| if *negated { -value } else { value };
    match tree {
        Tree::Compare(a, op, b) => truth(naive_compare(a, b, sample).map(|order| match *op {
            "=" => order.is_eq(),
            "<>" => order.is_ne(),
            "<" => order.is_lt(),
            "<=" => order.is_le(),
            ">" => order.is_gt(),
            _ => order.is_ge(),
        })),
        Tree::Between(x, negated, a, b) => {
            let low = truth(naive_compare(x, a, sample).map(Ordering::is_ge));
            let high = truth(naive_compare(x, b, sample).map(Ordering::is_le));
            signed(negated, low.min(high))
        }
        Tree::In(x, negated, list) => {
            let any = list
                .iter()
                .map(|item| truth(naive_compare(x, item, sample).map(Ordering::is_eq)));
            signed(negated, any.max().unwrap_or(-1))
        }
        Tree::Like(field, negated, pattern) => {
            let known = match naive_value(&Leaf::Field(field), sample) {
                Naive::Text(text) => Some(naive_like(
                    &text.chars().collect::<Vec<_>>(),
                    &pattern.chars().collect::<Vec<_>>(),
                )),
                Naive::Null | Naive::Number(_) => None,
            };
            signed(negated, truth(known))
        }
        Tree::IsNull(field, negated) => {
            let is = naive_value(&Leaf::Field(field), sample) == Naive::Null;
            signed(negated, truth(Some(is)))
        }
        Tree::Not(a) => -naive(a, sample),
        Tree::And(a, b) => naive(a, sample).min(naive(b, sample)),
        Tree::Or(a, b) => naive(a, sample).max(naive(b, sample)),
    }
}

fn text_field() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&FIELDS[..4])
}

fn text_leaf() -> impl Strategy<Value = Leaf> {
    prop_oneof![
        prop::sample::select(&VALUES[..]).prop_map(Leaf::Text),
        prop::sample::select(&TAGS[..]).prop_map(Leaf::Text),
        text_field().prop_map(Leaf::Field),
    ]
}

fn number_leaf() -> impl Strategy<Value = Leaf> {
    prop_oneof![
        (-2i64..12).prop_map(Leaf::Number),
        prop::sample::select(&FIELDS[..]).prop_map(Leaf::Field),
    ]
}

fn literal(numbers: bool) -> BoxedStrategy<Leaf> {
    if numbers {
        (-2i64..12).prop_map(Leaf::Number).boxed()
    } else {
        prop::sample::select(&VALUES[..])
            .prop_map(Leaf::Text)
            .boxed()
    }
}

fn tree() -> impl Strategy<Value = Tree> {
    let op = || prop::sample::select(&["=", "<>", "<", "<=", ">", ">="][..]);
    let any = any::<bool>;
    let leaf = prop_oneof![
        (text_leaf(), op(), text_leaf()).prop_map(|(a, op, b)| Tree::Compare(a, op, b)),
        (number_leaf(), op(), number_leaf()).prop_map(|(a, op, b)| Tree::Compare(a, op, b)),
        (number_leaf(), any(), number_leaf(), number_leaf())
            .prop_map(|(x, n, a, b)| Tree::Between(x, n, a, b)),
        (
            text_leaf(),
            any(),
            prop::collection::vec(literal(false), 1..4)
        )
            .prop_map(|(x, n, list)| Tree::In(x, n, list)),
        (
            number_leaf(),
            any(),
            prop::collection::vec(literal(true), 1..4)
        )
            .prop_map(|(x, n, list)| Tree::In(x, n, list)),
        (text_field(), any(), "[ab10%_]{0,4}").prop_map(|(x, n, p)| Tree::Like(x, n, p)),
        (prop::sample::select(&FIELDS[..]), any()).prop_map(|(x, n)| Tree::IsNull(x, n)),
    ];
    leaf.prop_recursive(4, 24, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|a| Tree::Not(Box::new(a))),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Tree::And(Box::new(a), Box::new(b))),
            (inner.clone(), inner).prop_map(|(a, b)| Tree::Or(Box::new(a), Box::new(b))),
        ]
    })
}

fn sample() -> impl Strategy<Value = Sample> {
    let value = || prop::sample::select(&VALUES[..]);
    let name = || prop::sample::select(&["h1", "h2", "h3"][..]);
    (
        prop::option::of(prop::sample::select(&TAGS[..])),
        prop::option::of(value()),
        prop::collection::vec((name(), value()), 0..4),
        0u8..12,
        -2i64..12,
    )
        .prop_map(|(tag, key, headers, priority, timestamp)| Sample {
            tag,
            key,
            headers,
            priority,
            timestamp,
        })
}

proptest! {
    #[test]
    fn l3_generated_conditions_agree_with_a_naive_evaluator(tree in tree(), samples in prop::collection::vec(sample(), 1..6)) {
        let text = text_of(&tree);
        let filter = Filter::parse(&text).unwrap();
        let (records, summary) = batch_of(&samples);
        for (sample, (slot, body)) in samples.iter().zip(&records) {
            let expected = naive(&tree, sample) == 1;
            prop_assert_eq!(filter.matches(&Subject::new(slot, body)), expected, "{}", text);
            match filter.decide(slot) {
                Verdict::Open => {}
                Verdict::Yes => prop_assert!(expected, "{}", text),
                Verdict::No => prop_assert!(!expected, "{}", text),
            }
            prop_assert!(!expected || filter.may_match(summary), "{}", text);
        }
    }

    #[test]
    fn l1_parsing_is_total(text in "\\PC{0,60}") {
        let _ = Filter::parse(&text);
    }

    #[test]
    fn l1_parsing_words_of_the_language_in_any_order_is_total(
        words in prop::collection::vec(prop::sample::select(&[
            "tag", "AND", "OR", "NOT", "(", ")", "'a'", "||", "IN", "LIKE", "BETWEEN", "IS", "NULL",
            "=", "<", "5", "ESCAPE", ",", "TRUE", "\"h\"", "TIMESTAMP", "*",
        ][..]), 0..12),
        sample in sample(),
    ) {
        let text = words.join(" ");
        if let Ok(filter) = Filter::parse(&text) {
            let (records, _) = batch_of(&[sample]);
            let (slot, body) = &records[0];
            let matches = filter.matches(&Subject::new(slot, body));
            let wrong = if matches { Verdict::No } else { Verdict::Yes };
            prop_assert_ne!(filter.decide(slot), wrong);
        }
    }
}
