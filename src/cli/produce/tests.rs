use std::io::Write;

use clap::Parser;

use super::*;
use crate::client::{Code, Refusal};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    arguments: Arguments,
}

fn parse(line: &[&str]) -> Result<Arguments, clap::Error> {
    Line::try_parse_from(["produce", "orders"].iter().chain(line)).map(|line| line.arguments)
}

#[test]
fn by_default_lines_of_stdin_are_sent_as_the_topic_says() {
    let arguments = parse(&[]).unwrap();
    assert_eq!(
        arguments.framing().unwrap(),
        Framing::Line { separator: None }
    );
    assert_eq!(arguments.timeout, Duration::from_secs(120));
    assert_eq!((arguments.ack, arguments.file.as_ref()), (None, None));
    assert_eq!(arguments.compression, CompressionName::None);
    assert!(!arguments.receipts);
}

#[test]
fn a_key_separator_is_for_lines() {
    let arguments = parse(&["--key-separator", r"\t"]).unwrap();
    let wanted = Framing::Line {
        separator: Some(b"\t".to_vec()),
    };
    assert_eq!(arguments.framing().unwrap(), wanted);
    for framing in ["length", "json"] {
        let arguments = parse(&["--framing", framing, "--key-separator", ":"]).unwrap();
        assert_eq!(arguments.framing().unwrap_err().exit_code(), 2);
    }
    assert!(parse(&["--key-separator", r"\q"]).is_err());
    assert!(parse(&["--key-separator", ""]).is_err());
}

#[test]
fn headers_are_split_at_the_first_equals_sign_and_keep_their_order() {
    let dress = parse(&["--header", "b=2=x", "--header", "a=", "--tag", "t"])
        .unwrap()
        .dress();
    let wanted =
        [("b", "2=x"), ("a", "")].map(|(name, value)| (Text::from(name), Bytes::from(value)));
    assert_eq!(dress.headers, wanted);
    assert_eq!(dress.tag, Some("t".into()));
    assert!(parse(&["--header", "novalue"]).is_err());
    assert!(parse(&["--header", "=v"]).is_err());
}

#[test]
fn an_input_that_cannot_be_read_is_a_matter_of_usage() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    for path in [directory.path(), &missing] {
        let error = open(Some(path)).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(&path.display().to_string()));
    }
    let mut file = File::create(&missing).unwrap();
    file.write_all(b"abc").unwrap();
    assert_eq!(open(Some(&missing)).unwrap().1, Some(3));
}

#[test]
fn a_refusal_ends_with_its_code_said_once() {
    let refused = SendError::Refused(Refusal {
        code: Code::UnknownTopic,
        message: "there is no such topic".to_owned(),
        after_ms: None,
    });
    let error = failure_of(
        &refused,
        format!("2 records are not acknowledged: {refused}"),
    );
    assert_eq!(error.exit_code(), 4);
    assert_eq!(
        error.to_string(),
        "2 records are not acknowledged: there is no such topic [unknown-topic]"
    );
    let error = failure_of(&SendError::TimedOut(5), "nothing".to_owned());
    assert_eq!(error.exit_code(), 1);
}
