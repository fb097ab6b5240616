//! Consuming as a member of a group from outside: what a person at a terminal meets.

use std::io::{BufRead, BufReader};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{Rig, ended};

fn with_a_topic() -> Rig {
    let rig = Rig::new();
    let made = rig.say(&["topic", "create", "t", "--partitions", "1"], b"");
    assert_eq!(made.code, 0, "{}", made.err);
    rig
}

#[test]
fn a_member_that_is_interrupted_leaves_so_that_the_next_is_given_everything_at_once() {
    let rig = with_a_topic();
    for signal in ["-INT", "-TERM"] {
        let mut follower = rig
            .command(&["consume", "t", "--group", "g", "--follow"])
            .spawn()
            .expect("it starts");
        // It is a member once it has printed something.
        assert_eq!(rig.say(&["produce", "t"], b"first\n").code, 0);
        let mut lines = BufReader::new(follower.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("a line");
        assert_eq!(line, "first\n");
        let sent = Command::new("kill")
            .args([signal, &follower.id().to_string()])
            .status();
        assert!(sent.expect("kill is there").success());
        let said = ended(follower);
        assert_eq!((said.code, said.err.as_str()), (0, ""), "{signal}");
        assert_eq!(rig.say(&["produce", "t"], b"second\n").code, 0);
        let next = rig.say(&["consume", "t", "--group", "g", "--max", "1"], b"");
        assert_eq!((next.code, next.out.as_str()), (0, "second\n"), "{signal}");
        let members = rig.say(&["group", "describe", "g", "--json"], b"").json();
        assert_eq!(
            members[0]["members"].as_array().map(Vec::len),
            Some(0),
            "{}",
            members[0]
        );
    }
}

#[test]
fn what_is_with_another_member_is_said_at_the_end_of_the_wait() {
    let rig = with_a_topic();
    assert_eq!(rig.say(&["produce", "t"], b"one\n").code, 0);
    // It has printed the record and waits for a verdict.
    let mut holder = rig
        .command(&["consume", "t", "--group", "g", "--ack", "manual"])
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(holder.stdout.take().expect("stdout is piped"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("a line");
    let words = ["consume", "t", "--group", "g", "--wait", "200ms"];
    let other = rig.say(&words, b"");
    assert_eq!((other.code, other.out.as_str()), (0, ""), "{}", other.err);
    assert_eq!(
        other.err.trim(),
        "1 record of t not consumed yet: 1 with other members"
    );
    // The end of stdin settles nothing, ends it at once, and gives the record back.
    drop(holder.stdin.take());
    let said = ended(holder);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.err.contains("1 record not settled"), "{}", said.err);
    let began = Instant::now();
    let taken = rig.say(&["consume", "t", "--group", "g", "--max", "1"], b"");
    assert_eq!(taken.out, "one\n");
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_member_prints_json_where_it_is_asked_to() {
    let rig = with_a_topic();
    assert_eq!(rig.say(&["produce", "t", "--tag", "red"], b"one\n").code, 0);
    for (group, form) in [("a", ["--json", "--follow"]), ("b", ["--format", "json"])] {
        let mut words = vec!["consume", "t", "--group", group, "--max", "1"];
        words.extend(form);
        let printed = rig.say(&words, b"").json();
        assert_eq!(
            (&printed[0]["value"], &printed[0]["tag"]),
            (&"one".into(), &"red".into())
        );
    }
}

#[test]
fn what_a_member_cannot_be_asked_is_refused_or_said() {
    let rig = with_a_topic();
    let refused: [&[&str]; 4] = [
        &["consume", "t", "--group", "g", "--partition", "0"],
        &["consume", "t", "--ack", "manual"],
        &["consume", "t", "--wait", "1s"],
        &["consume", "t", "--mode", "shared"],
    ];
    for words in refused {
        let said = rig.say(words, b"");
        assert_eq!(said.code, 2, "{words:?}: {}", said.err);
        assert!(said.err.contains("--group"), "{words:?}: {}", said.err);
    }
    let words = [
        "consume", "t", "--group", "g", "--from", "earliest", "--wait", "10ms",
    ];
    let first = rig.say(&words, b"");
    assert_eq!((first.code, first.err.as_str()), (0, ""));
    let again = rig.say(&words, b"");
    assert_eq!(again.code, 0);
    assert!(
        again.err.contains("waterwheel group reset g --topic t"),
        "{}",
        again.err
    );
}

#[test]
fn what_json_says_of_a_subscription_is_what_its_flags_take() {
    let rig = with_a_topic();
    let words = [
        "subscription",
        "create",
        "g",
        "t",
        "--mode",
        "key-ordered",
        "--retry",
        "linear:250ms..2s",
        "--json",
    ];
    let made = rig.say(&words, b"").json().remove(0);
    assert_eq!(made["mode"], "key-ordered");
    assert_eq!(made["retry"]["backoff"], "linear:250ms..2s");
    assert_eq!(made["retry"]["poison"], "block");
    assert_eq!(made["start"], "earliest");
    let group = rig.say(&["group", "describe", "g", "--json"], b"").json();
    assert_eq!(group[0]["group"], "g");
    assert_eq!(group[0]["subscriptions"][0], made);
    let nothing = rig.say(&["subscription", "alter", "g", "t"], b"");
    assert_eq!(nothing.code, 2, "{}", nothing.err);
    assert!(nothing.err.contains("--lease"), "{}", nothing.err);
    let removed = rig.say(&["subscription", "remove", "g", "t", "--json"], b"");
    assert_eq!(removed.json()[0]["removed"], true);
    let deleted = rig.say(&["group", "delete", "g", "--json"], b"");
    assert_eq!(deleted.json()[0]["group"], "g");
    let gone = rig.say(&["group", "describe", "g"], b"");
    assert_eq!(gone.code, 4);
    assert!(gone.err.contains("waterwheel group list"), "{}", gone.err);
}

#[test]
fn where_there_is_nothing_it_is_said_on_stderr() {
    let rig = with_a_topic();
    let made = rig.say(&["subscription", "create", "g", "t"], b"");
    assert_eq!(made.code, 0, "{}", made.err);
    let silent: [(&[&str], &str); 5] = [
        (
            &["dead-letter", "list", "--group", "g"],
            "no open dead letters",
        ),
        (
            &["dead-letter", "redrive", "--group", "g"],
            "no open dead letters",
        ),
        (&["transaction", "list"], "no open transactions"),
        (&["timer", "list", "t"], "no delayed records"),
        (&["certs", "--show", "."], "waterwheel certs ."),
    ];
    for (words, said) in silent {
        let got = rig.say(words, b"");
        assert_eq!((got.code, got.out.as_str()), (0, ""), "{words:?}");
        assert!(got.err.contains(said), "{words:?}: {}", got.err);
    }
}

#[test]
fn nothing_is_cleared_by_a_slip_of_the_name() {
    let rig = with_a_topic();
    assert_eq!(rig.say(&["produce", "t"], b"one\n").code, 0);
    let refused = rig.say(&["dead-letter", "purge", "t"], b"");
    assert_eq!((refused.code, refused.out.as_str()), (2, ""));
    assert!(refused.err.contains("--all"), "{}", refused.err);
    let whose = rig.say(&["dead-letter", "list"], b"");
    assert_eq!(whose.code, 2);
    assert!(whose.err.contains("--group"), "{}", whose.err);
}

#[test]
fn priorities_are_shown_wherever_a_topic_is() {
    let rig = Rig::new();
    let words = [
        "topic",
        "create",
        "p",
        "--partitions",
        "1",
        "--priorities",
        "3",
    ];
    let made = rig.say(&words, b"");
    assert!(made.out.contains("3 priorities"), "{}", made.out);
    assert_eq!(
        rig.say(&["topic", "list", "--json"], b"").json()[0]["priorities"],
        3
    );
    let described = rig.say(&["topic", "describe", "p", "--json"], b"").json();
    let lanes: Vec<_> = described[0]["details"]
        .as_array()
        .expect("partitions")
        .iter()
        .map(|place| place["lane"].as_u64())
        .collect();
    assert_eq!(lanes, [Some(0), Some(1), Some(2)]);
    let shown = rig.say(&["topic", "describe", "p"], b"");
    assert!(shown.out.contains("priority"), "{}", shown.out);
}

#[test]
fn connection_flags_may_come_first_and_an_action_alone_is_answered() {
    let rig = with_a_topic();
    let server = rig.broker.as_ref().expect("it runs").address.to_string();
    let listed = rig.say(&["--server", &server, "topic", "list", "--json"], b"");
    assert_eq!(listed.json()[0]["name"], "t", "{}", listed.err);
    let alone = rig.say(&["redrive"], b"");
    assert_eq!(alone.code, 2);
    assert!(
        alone.err.contains("waterwheel dead-letter redrive"),
        "{}",
        alone.err
    );
}

#[test]
fn waiting_for_a_broker_takes_no_longer_than_it_was_told_to() {
    let mut rig = with_a_topic();
    rig.stop();
    let began = Instant::now();
    let words = [
        "status",
        "--ready",
        "--wait",
        "1500ms",
        "--server",
        "127.0.0.1:9",
    ];
    let said = rig.say(&words, b"");
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    assert!(
        said.err.contains("nobody answers at 127.0.0.1:9 yet"),
        "{}",
        said.err
    );
}

#[test]
fn a_producer_says_no_more_than_there_is_to_say() {
    let rig = with_a_topic();
    let headers = br#"{"value":"v","headers":[["a","b"]]}"#;
    let said = rig.say(&["produce", "t", "--framing", "json"], headers);
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(
        said.err.contains(r#"{"name":...,"value":...}"#),
        "{}",
        said.err
    );
    assert!(!said.err.contains("acknowledgement p50"), "{}", said.err);
    let made = rig.say(
        &["topic", "create", "u", "--partitions", "1", "--unkeyed"],
        b"",
    );
    assert_eq!(made.code, 0, "{}", made.err);
    let keyed = rig.say(&["produce", "u", "--key-separator", "="], b"a=1\n");
    assert_eq!(keyed.code, 0, "{}", keyed.err);
    assert!(keyed.err.contains("u is unkeyed"), "{}", keyed.err);
}
