//! The command line from outside: exit codes, JSON fields, streams, and a check that finds what rots.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    dead_code,
    reason = "a test that meets what it did not expect fails there; modules are shared"
)]

#[path = "../crash/child.rs"]
mod child;
mod groups;
mod operating;
mod settings;
mod trust;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use child::{Broker, Launch};
use serde_json::Value;

struct Rig {
    data: tempfile::TempDir,
    broker: Option<Broker>,
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Vec<Value> {
        self.out
            .lines()
            .map(|line| serde_json::from_str(line).expect("a line of JSON"))
            .collect()
    }
}

impl Rig {
    fn new() -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let launch = Launch {
            data: data.path().join("data"),
            settings: Vec::new(),
        };
        let broker = launch.start(0, None);
        Self { data, broker }
    }

    fn dir(&self) -> PathBuf {
        self.data.path().join("data")
    }

    fn stop(&mut self) {
        self.broker.take().expect("it runs").kill();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waterwheel"));
        command
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(broker) = &self.broker {
            command.env("WATERWHEEL_SERVER", broker.address.to_string());
        }
        command.env("WATERWHEEL_CA", self.dir().join("tls/ca.pem"));
        command
    }

    fn say(&self, words: &[&str], input: &[u8]) -> Said {
        let mut child = self.command(words).spawn().expect("the binary starts");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // A command that fails early does not read all of it.
        let _ = stdin.write_all(input);
        drop(stdin);
        ended(child)
    }
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Said {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    ended(child.expect("the binary starts"))
}

fn ended(child: Child) -> Said {
    let output = child.wait_with_output().expect("it ends");
    Said {
        code: output.status.code().expect("an exit code"),
        out: String::from_utf8(output.stdout).expect("text"),
        err: String::from_utf8(output.stderr).expect("text"),
    }
}

#[test]
fn every_way_to_end_has_its_exit_code_and_says_why() {
    let mut rig = Rig::new();
    let cases: [(&[&str], i32, &str); 12] = [
        (&["topic", "create", "t", "--partitions", "2"], 0, ""),
        (
            &["topic", "create", "t", "--partitions", "2"],
            4,
            "[topic-exists]",
        ),
        (
            &["topic", "create", "a b", "--partitions", "2"],
            4,
            "[invalid-name]",
        ),
        (
            &["topic", "describe", "none"],
            4,
            "waterwheel topic list [unknown-topic]",
        ),
        (
            &["produce", "none"],
            4,
            "waterwheel topic create none --partitions",
        ),
        (&["topic", "delete", "T"], 4, "did you mean t?"),
        (&["topic", "alter", "t"], 2, "--retention"),
        (
            &[
                "topic",
                "create",
                "v",
                "--partitions",
                "1",
                "--retention",
                "7",
            ],
            2,
            "7d",
        ),
        (
            &["consume", "t", "--partition", "7"],
            4,
            "[partition-out-of-range]",
        ),
        (&["consume", "t", "--from", "yesterday"], 2, "yesterday"),
        (&["topic", "create", "u"], 2, "--partitions"),
        (&["status", "--ca", "nowhere.pem"], 3, "nowhere.pem"),
    ];
    for (words, code, said) in cases {
        let got = rig.say(words, b"");
        assert_eq!(got.code, code, "{words:?}: {}", got.err);
        assert!(got.err.contains(said), "{words:?}: {}", got.err);
    }
    rig.stop();
    let gone = rig.say(&["status", "--server", "127.0.0.1:9"], b"");
    assert_eq!(gone.code, 3, "{}", gone.err);
}

#[test]
fn what_is_printed_as_json_has_these_fields() {
    let rig = Rig::new();
    let made = rig.say(
        &[
            "topic",
            "create",
            "t",
            "--partitions",
            "2",
            "--retention",
            "7d",
            "--json",
        ],
        b"",
    );
    let made = &made.json()[0];
    assert_eq!(
        (&made["name"], &made["partitions"]),
        (&"t".into(), &2.into())
    );
    assert_eq!(
        (&made["keyed"], &made["flush"]),
        (&true.into(), &"sync".into())
    );
    assert_eq!(
        (&made["retention_ms"], &made["retention_bytes"]),
        (&604_800_000.into(), &Value::Null)
    );
    let receipts = rig.say(
        &["produce", "t", "--key-separator", "=", "--receipts"],
        b"a=1\nb=2\r\na=3",
    );
    assert_eq!(receipts.code, 0, "{}", receipts.err);
    let receipts = receipts.json();
    assert_eq!(receipts.len(), 3);
    for (index, receipt) in receipts.iter().enumerate() {
        assert_eq!(receipt["line"], index + 1);
        assert_eq!(
            (&receipt["topic"], &receipt["status"]),
            (&"t".into(), &"SEND_OK".into())
        );
        assert!(
            receipt["partition"].is_u64()
                && receipt["offset"].is_u64()
                && receipt["time_ms"].is_i64()
        );
    }
    assert_eq!(receipts[0]["partition"], receipts[2]["partition"]);
    let read = rig.say(&["consume", "t", "--format", "json"], b"").json();
    let of_b = read
        .iter()
        .find(|record| record["key"] == "b")
        .expect("it is there");
    assert_eq!(of_b["value"], "2\r");
    let status = rig.say(&["status", "--actors", "--json"], b"").json();
    assert_eq!(
        (&status[0]["ready"], &status[0]["sealed"]),
        (&true.into(), &Value::Null)
    );
    let partitions: Vec<_> = status
        .iter()
        .filter(|line| line["kind"] == "partition")
        .collect();
    assert_eq!(partitions.len(), 2);
    assert!(
        partitions
            .iter()
            .all(|actor| actor["mailbox_capacity"].as_u64() > Some(0))
    );
    let described = rig.say(&["topic", "describe", "t", "--json"], b"").json();
    let ends = described[0]["details"].as_array().expect("partitions");
    let records: u64 = ends
        .iter()
        .filter_map(|end| end["high_watermark"].as_u64())
        .sum();
    assert_eq!(records, 3);
}

#[test]
fn what_one_topic_prints_another_takes_back_byte_for_byte() {
    let rig = Rig::new();
    for topic in ["from", "json", "length"] {
        rig.say(&["topic", "create", topic, "--partitions", "1"], b"");
    }
    let mut input = Vec::new();
    for (key, value) in [
        (Some(&b"k\xff"[..]), &b"v\x00\nx"[..]),
        (None, b""),
        (Some(b"plain"), "Wasserrad ☸".as_bytes()),
    ] {
        match key {
            None => input.extend_from_slice(&u32::MAX.to_be_bytes()),
            Some(key) => {
                input.extend_from_slice(&u32::try_from(key.len()).unwrap().to_be_bytes());
                input.extend_from_slice(key);
            }
        }
        input.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
        input.extend_from_slice(value);
    }
    assert_eq!(
        rig.say(&["produce", "from", "--framing", "length"], &input)
            .code,
        0
    );
    let read = |topic: &str, format: &str| {
        let child = rig
            .command(&["consume", topic, "--format", format])
            .spawn()
            .expect("it starts");
        child.wait_with_output().expect("it ends").stdout
    };
    assert_eq!(read("from", "length"), input);
    let json = read("from", "json");
    assert_eq!(
        rig.say(&["produce", "json", "--framing", "json"], &json)
            .code,
        0
    );
    assert_eq!(read("json", "length"), input);
}

#[test]
fn a_closed_pipe_ends_a_reader_quietly() {
    let rig = Rig::new();
    rig.say(&["topic", "create", "t", "--partitions", "1"], b"");
    let lines = "a line that is long enough to fill a pipe a few times over\n".repeat(20_000);
    assert_eq!(rig.say(&["produce", "t"], lines.as_bytes()).code, 0);
    let mut child = rig
        .command(&["consume", "t", "--follow"])
        .spawn()
        .expect("it starts");
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let mut first = [0; 100];
    stdout.read_exact(&mut first).expect("there are lines");
    drop(stdout);
    let said = ended(child);
    assert_eq!((said.code, said.err.as_str()), (0, ""));
}

#[test]
fn check_keeps_out_of_a_running_broker_and_names_what_rots() {
    let mut rig = Rig::new();
    let dir = rig.dir();
    let dir = dir.to_str().expect("text");
    rig.say(&["topic", "create", "t", "--partitions", "1"], b"");
    for _ in 0..3 {
        assert_eq!(
            rig.say(&["produce", "t"], b"one\ntwo\nneedle in a haystack\n")
                .code,
            0
        );
    }
    let busy = rig.say(&["check", dir], b"");
    assert_eq!(busy.code, 2, "{}", busy.err);
    rig.stop();
    let whole = rig.say(&["check", dir, "--views"], b"");
    assert_eq!(whole.code, 0, "{}{}", whole.out, whole.err);
    flip(&rig.dir().join("log"), b"needle");
    let rotten = rig.say(&["check", dir, "--json"], b"");
    assert_eq!(rotten.code, 1);
    let damages: Vec<_> = rotten
        .json()
        .into_iter()
        .filter_map(|line| line.get("damage").cloned())
        .collect();
    assert_eq!(damages.len(), 1, "{damages:?}");
    // The needle is the record at offset 2; its batch is what is lost.
    let first = damages[0]["first_offset"].as_u64().expect("a number");
    let count = damages[0]["offsets"].as_u64().expect("a number");
    assert!(
        (first..first + count).contains(&2) && first + count == 3,
        "{damages:?}"
    );
    assert!(
        damages[0]["file"]
            .as_str()
            .is_some_and(|file| file.contains("segment"))
    );
    let no_data = rig.say(&["check", "/proc"], b"");
    assert_eq!(no_data.code, 2);
}

/// Flips a bit of the first occurrence of `text` in the log.
fn flip(log: &Path, text: &[u8]) {
    let mut segments: Vec<_> = fs::read_dir(log)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    segments.sort();
    for segment in segments {
        let mut bytes = fs::read(&segment).unwrap();
        if let Some(at) = bytes.windows(text.len()).position(|window| window == text) {
            bytes[at] ^= 1;
            fs::write(&segment, bytes).unwrap();
            return;
        }
    }
    panic!("it is not in the log");
}

#[test]
fn the_demo_says_that_everything_is_there_in_words_and_in_json() {
    let demo = |form: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_waterwheel"))
            .arg("demo")
            .args(form)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts")
    };
    let (words, json) = (demo(&[]), demo(&["--json"]));
    let said = ended(words);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(
        said.out.contains("200200 records: each there once"),
        "{}",
        said.out
    );
    let said = ended(json);
    assert_eq!(said.code, 0, "{}", said.err);
    let scenes: Vec<serde_json::Value> = said
        .out
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object per line"))
        .collect();
    let names: Vec<_> = scenes.iter().map(|scene| &scene["scene"]).collect();
    let all = [
        "start",
        "topic",
        "one-by-one",
        "batches",
        "read",
        "timers",
        "transactions",
        "groups",
        "restart",
        "read-again",
        "end",
    ];
    assert_eq!(names, all);
    assert!(
        scenes.iter().all(|scene| scene["ok"] != false),
        "{}",
        said.out
    );
    let end = scenes.last().expect("there are scenes");
    assert_eq!(
        (&end["records"], &end["ok"]),
        (&200_200.into(), &true.into())
    );
}

#[test]
fn a_signal_stops_a_broker_in_order_and_a_second_broker_is_kept_out() {
    let data = tempfile::tempdir().expect("a directory");
    let serve = || {
        Command::new(env!("CARGO_BIN_EXE_waterwheel"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts")
    };
    let mut broker = serve();
    let mut listening = [0; 13];
    let stdout = broker.stdout.as_mut().expect("stdout is piped");
    stdout.read_exact(&mut listening).expect("it says where");
    assert_eq!(&listening, b"listening on ");
    let second = ended(serve());
    assert_eq!(second.code, 2, "{}", second.err);
    assert!(
        second.err.contains("in use by another broker"),
        "{}",
        second.err
    );
    let began = std::time::Instant::now();
    let pid = broker.id().to_string();
    let sent = Command::new("kill")
        .args(["-TERM", &pid])
        .status()
        .expect("kill is there");
    assert!(sent.success());
    assert_eq!(ended(broker).code, 0);
    assert!(began.elapsed() < std::time::Duration::from_secs(5));
}

#[test]
fn a_delayed_record_has_its_handle_in_its_receipt_at_level_memory_too() {
    let rig = Rig::new();
    rig.say(&["topic", "create", "t", "--partitions", "1"], b"");
    for (ack, has_handle) in [("durable", true), ("memory", true), ("none", false)] {
        let words = ["produce", "t", "--delay", "1h", "--receipts", "--ack", ack];
        let sent = rig.say(&words, b"tea\n");
        assert_eq!(sent.code, 0, "{}", sent.err);
        let receipt = sent.json().remove(0);
        let Some(handle) = receipt["timer"].as_str() else {
            assert!(!has_handle, "{receipt}");
            continue;
        };
        assert!(has_handle, "{receipt}");
        let cancelled = rig.say(&["timer", "cancel", handle], b"");
        assert_eq!((cancelled.code, cancelled.out.trim()), (0, "cancelled"));
    }
}
