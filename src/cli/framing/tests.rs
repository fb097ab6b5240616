use bytes::Bytes;
use proptest::prelude::*;

use super::length::write_lengths;
use super::line::write_value;
use super::*;
use crate::cli::json::tests::{any_record, delivery};
use crate::cli::json::write_delivery;

const LIMIT: usize = 100;

fn splitter(framing: &Framing) -> Splitter {
    Splitter::new(framing.clone(), LIMIT)
}

fn lines(separator: Option<&[u8]>) -> Framing {
    Framing::Line {
        separator: separator.map(<[u8]>::to_vec),
    }
}

/// Everything the input holds, cut into reads of these lengths over and over.
fn split(
    framing: &Framing,
    input: &[u8],
    cuts: &[usize],
) -> (Vec<Input>, Result<(), FramingError>) {
    let mut splitter = splitter(framing);
    let mut records = Vec::new();
    let mut rest = input;
    for cut in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (read, after) = rest.split_at((*cut).clamp(1, rest.len()));
        rest = after;
        if let Err(error) = splitter.feed(read, &mut records) {
            return (records, Err(error));
        }
    }
    let end = splitter.finish(&mut records);
    (records, end)
}

fn whole(framing: &Framing, input: &[u8]) -> (Vec<Record>, Result<(), FramingError>) {
    let (records, end) = split(framing, input, &[usize::MAX]);
    for (index, input) in records.iter().enumerate() {
        assert!(input.number > index as u64);
    }
    (records.into_iter().map(|input| input.record).collect(), end)
}

fn fault(framing: &Framing, input: &[u8]) -> (usize, String) {
    let (records, end) = whole(framing, input);
    (records.len(), end.unwrap_err().to_string())
}

#[test]
fn a_line_keeps_its_carriage_return_and_the_last_may_lack_its_newline() {
    let (records, end) = whole(&lines(None), b"one\r\n\ntwo\0\nthree");
    assert_eq!(end, Ok(()));
    let wanted = [&b"one\r"[..], b"", b"two\0", b"three"];
    assert_eq!(records, wanted.map(Record::new));
    assert_eq!(whole(&lines(None), b""), (vec![], Ok(())));
    assert_eq!(whole(&lines(None), b"\n"), (vec![Record::new("")], Ok(())));
}

#[test]
fn the_key_ends_at_the_first_separator() {
    let (records, end) = whole(&lines(Some(b"\t")), b"k\tv\tw\n\t\nkey\t");
    assert_eq!(end, Ok(()));
    let wanted = [("k", "v\tw"), ("", ""), ("key", "")];
    assert_eq!(
        records,
        wanted.map(|(key, value)| Record::new(value).key(key))
    );
    let (records, _) = whole(&lines(Some(b"::")), b"a:b::c");
    assert_eq!(records, [Record::new("c").key("a:b")]);
}

#[test]
fn f3_a_line_without_separator_stops_with_its_number() {
    let (before, said) = fault(&lines(Some(b"\t")), b"a\t1\nb\t2\nc\nd\t4\n");
    assert_eq!(before, 2);
    assert_eq!(said, "line 3 has no key separator");
    assert_eq!(
        fault(&lines(Some(b"::")), b"a").1,
        "line 1 has no key separator"
    );
}

#[test]
fn lengths_are_big_endian_and_a_missing_key_is_all_ones() {
    let input = b"\0\0\0\x01k\0\0\0\x02vv\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0\0\x01w";
    let (records, end) = whole(&Framing::Length, input);
    assert_eq!(end, Ok(()));
    let wanted = [
        Record::new("vv").key("k"),
        Record::new(""),
        Record::new("w").key(""),
    ];
    assert_eq!(records, wanted);
    let mut written = Vec::new();
    for record in &wanted {
        write_lengths(&delivery(record), &mut written);
    }
    assert_eq!(written, input);
}

#[test]
fn a_record_cut_off_by_the_end_is_named() {
    let input = b"\0\0\0\x01k\0\0\0\x02vv";
    for length in 1..input.len() {
        let (before, said) = fault(&Framing::Length, &input[..length]);
        assert_eq!(before, 0);
        assert_eq!(said, "record 1 is cut off by the end of the input");
    }
}

#[test]
fn json_lines_are_counted_with_the_blank_ones() {
    let input = b"{\"value\":\"a\"}\n\n  \r\n{\"value\":\"b\"}";
    let (records, end) = split(&Framing::Json, input, &[3]);
    assert_eq!(end, Ok(()));
    let numbers: Vec<_> = records.iter().map(|input| input.number).collect();
    assert_eq!(numbers, [1, 4]);
    let (before, said) = fault(&Framing::Json, b"\n{\"value\":\"a\"}\n{}\n");
    assert_eq!(before, 1);
    assert!(
        said.starts_with("line 3 is no JSON record: it has neither"),
        "{said}"
    );
}

#[test]
fn f2_what_is_too_large_is_refused_with_its_number() {
    let long = "x".repeat(LIMIT);
    let fits = |framing: &Framing, input: String| {
        assert_eq!(whole(framing, input.as_bytes()).1, Ok(()), "{framing:?}");
    };
    let said = "is larger than the broker's batch limit of 100 bytes";
    fits(&lines(None), format!("a\n{long}\n"));
    assert_eq!(
        fault(&lines(None), format!("a\n{long}x\n").as_bytes()),
        (1, format!("line 2 {said}"))
    );
    fits(&lines(Some(b"=>")), format!("=>{long}\n"));
    let input = format!("=>{long}x\n");
    assert_eq!(
        fault(&lines(Some(b"=>")), input.as_bytes()).1,
        format!("line 1 {said}")
    );
    fits(&Framing::Json, format!("{{\"value\":\"{long}\"}}"));
    let input = format!("{{\"value\":\"{long}x\"}}");
    assert_eq!(
        fault(&Framing::Json, input.as_bytes()).1,
        format!("line 1 {said}")
    );
    for input in [
        &b"\0\0\0\x65"[..],
        b"\0\0\0\x01k\0\0\0\x64",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        assert_eq!(fault(&Framing::Length, input).1, format!("record 1 {said}"));
    }
}

#[test]
fn f2_an_endless_line_is_not_gathered() {
    for framing in [lines(None), Framing::Json] {
        let mut splitter = splitter(&framing);
        let fed = (0..10_000).find(|_| splitter.feed(&[b' '; 1000], &mut Vec::new()).is_err());
        let fed = fed.expect("it is refused") * 1000;
        assert!(fed <= 6 * LIMIT + 70_000, "{framing:?}: {fed}");
    }
}

fn naive_lines(input: &[u8], separator: &[u8]) -> Vec<Record> {
    let mut pieces: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
    if pieces.last().is_some_and(|last| last.is_empty()) {
        pieces.pop();
    }
    let record = |line: &[u8]| {
        let at = line
            .windows(separator.len())
            .position(|found| found == separator)?;
        let value = Bytes::copy_from_slice(&line[at + separator.len()..]);
        Some(Record::new(value).key(Bytes::copy_from_slice(&line[..at])))
    };
    pieces.into_iter().map_while(record).collect()
}

/// Bytes in which newlines and separators are frequent.
fn text() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        Just(b'\n'),
        Just(b':'),
        Just(b'\r'),
        Just(b'a'),
        any::<u8>()
    ];
    proptest::collection::vec(byte, 0..80)
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(1..12usize, 1..8)
}

proptest! {
    #[test]
    fn lines_are_what_a_naive_splitter_finds(input in text(), cuts in cuts()) {
        for separator in [&b":"[..], b"::"] {
            let (records, _) = split(&lines(Some(separator)), &input, &cuts);
            let records: Vec<_> = records.into_iter().map(|input| input.record).collect();
            prop_assert_eq!(records, naive_lines(&input, separator));
        }
    }

    #[test]
    fn f1_how_the_input_is_cut_into_reads_changes_nothing(input in text(), cuts in cuts()) {
        for framing in [lines(None), lines(Some(b":")), Framing::Length, Framing::Json] {
            let (wanted, wanted_end) = split(&framing, &input, &[usize::MAX]);
            let (found, end) = split(&framing, &input, &cuts);
            prop_assert_eq!(&found, &wanted);
            prop_assert_eq!(end, wanted_end);
        }
    }

    #[test]
    fn what_is_written_is_read_back(
        records in proptest::collection::vec(any_record(), 0..6),
        cuts in cuts(),
    ) {
        let bytes = |record: &Record| record.value.len() + record.key.as_ref().map_or(0, Bytes::len);
        prop_assume!(records.iter().all(|record| bytes(record) <= LIMIT));
        let (mut lengths, mut objects, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for record in &records {
            write_lengths(&delivery(record), &mut lengths);
            write_delivery(&delivery(record), &mut objects);
            write_value(&delivery(record), &mut values);
        }
        let (found, end) = split(&Framing::Json, &objects, &cuts);
        prop_assert_eq!(end, Ok(()));
        prop_assert_eq!(&found.into_iter().map(|i| i.record).collect::<Vec<_>>(), &records);
        let (found, end) = split(&Framing::Length, &lengths, &cuts);
        prop_assert_eq!(end, Ok(()));
        let pairs = |record: &Record| (record.key.clone(), record.value.clone());
        prop_assert_eq!(
            found.iter().map(|i| pairs(&i.record)).collect::<Vec<_>>(),
            records.iter().map(pairs).collect::<Vec<_>>()
        );
        if records.iter().all(|record| !record.value.contains(&b'\n')) {
            let (found, _) = split(&lines(None), &values, &cuts);
            prop_assert_eq!(
                found.into_iter().map(|i| i.record.value).collect::<Vec<_>>(),
                records.iter().map(|record| record.value.clone()).collect::<Vec<_>>()
            );
        }
    }
}
