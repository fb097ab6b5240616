//! A real text file through the command line, with the broker killed while `produce` is unfinished.
//!
//! The text is this repository's own sources, line by line, keyed by file, as often as it takes;
//! `WATERWHEEL_TEXT` names another file of lines with a key before the first tab. What comes out is
//! compared byte for byte: everything once, in order per key. `WATERWHEEL_TEST=full` takes a million
//! lines, twice: the second time the views are deleted before each restart.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it did"
)]

#[path = "../crash/child.rs"]
#[allow(dead_code, reason = "the crash test needs more of it")]
mod child;

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use child::{Launch, delete_views};

const TOPIC: &str = "text";
const KILLS: usize = 5;

fn full() -> bool {
    std::env::var("WATERWHEEL_TEST").is_ok_and(|tier| tier == "full")
}

fn lines_wanted() -> usize {
    if full() { 1_000_000 } else { 60_000 }
}

/// The sources of this repository, found without asking git.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Lines `key TAB text`, no two of a key alike.
fn write_text(path: &Path) -> Vec<u8> {
    if let Ok(given) = std::env::var("WATERWHEEL_TEXT") {
        let text = std::fs::read(given).expect("the text named can be read");
        std::fs::write(path, &text).expect("it can be copied");
        return text;
    }
    let mut files = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut files,
    );
    let mut text = Vec::new();
    let mut lines = 0;
    for round in 0.. {
        for file in &files {
            let name = file
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let source = std::fs::read_to_string(file).expect("a source is text");
            for line in source.lines() {
                writeln!(text, "{name}-{round}\t{lines} {line}").expect("memory takes it");
                lines += 1;
                if lines == lines_wanted() {
                    std::fs::write(path, &text).expect("it can be written");
                    return text;
                }
            }
        }
    }
    unreachable!("there are sources to read")
}

fn waterwheel(data: &Path, address: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waterwheel"));
    command
        .args(arguments)
        .args(["--server", address, "--ca"])
        .arg(data.join("tls/ca.pem"))
        .stdin(Stdio::null());
    command
}

fn launch(data: &Path) -> Launch {
    let small: [(&str, u32); 4] = [
        ("WATERWHEEL_SEGMENT_BYTES", 8 << 20),
        ("WATERWHEEL_FLUSH_BYTES_MAX", 2 << 20),
        ("WATERWHEEL_BATCH_BYTES_MAX", 1 << 20),
        ("WATERWHEEL_CHECKPOINT_MS", 200),
    ];
    let settings = small
        .map(|(name, value)| (name, value.to_string()))
        .to_vec();
    Launch {
        data: data.to_path_buf(),
        settings,
    }
}

/// Reads the text of values by key from `consume --format length`.
fn by_key(mut framed: impl Read) -> HashMap<Vec<u8>, Vec<u8>> {
    let mut found: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    let mut field = move || -> Option<Vec<u8>> {
        let mut length = [0; 4];
        framed.read_exact(&mut length).ok()?;
        let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
        framed.read_exact(&mut bytes).expect("a frame is whole");
        Some(bytes)
    };
    while let Some(key) = field() {
        let value = field().expect("a key has a value");
        let lines = found.entry(key).or_default();
        lines.extend_from_slice(&value);
        lines.push(b'\n');
    }
    found
}

fn expected(text: &[u8]) -> HashMap<Vec<u8>, Vec<u8>> {
    let mut expected: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let at = line
            .iter()
            .position(|byte| *byte == b'\t')
            .expect("every line has a key");
        let lines = expected.entry(line[..at].to_vec()).or_default();
        lines.extend_from_slice(&line[at + 1..]);
        if line.last() != Some(&b'\n') {
            lines.push(b'\n');
        }
    }
    expected
}

/// Cuts a text behind newlines into parts of about equal length.
fn parts(text: &[u8], count: usize) -> Vec<&[u8]> {
    let mut rest = text;
    let mut parts = Vec::new();
    for left in (1..=count).rev() {
        let at = rest.len() / left;
        let end = rest.iter().skip(at).position(|byte| *byte == b'\n');
        let (part, after) = rest.split_at(end.map_or(rest.len(), |end| at + end + 1));
        parts.push(part);
        rest = after;
    }
    parts
}

/// Counts the receipts `produce` has printed so far, without waiting for more.
struct Receipts {
    counted: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    reader: std::thread::JoinHandle<()>,
}

impl Receipts {
    fn of(child: &mut Child) -> Self {
        use std::io::BufRead;
        let stdout = child.stdout.take().expect("stdout is piped");
        let counted = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = std::sync::Arc::clone(&counted);
        let reader = std::thread::spawn(move || {
            for (at, line) in BufReader::new(stdout).lines().enumerate() {
                let line = line.expect("receipts are text");
                assert!(
                    line.contains(&format!("\"line\":{},", at + 1)),
                    "in order: {line}"
                );
                counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        });
        Self { counted, reader }
    }

    fn count(&self) -> usize {
        self.counted.load(std::sync::atomic::Ordering::SeqCst)
    }
}

fn through_kills(views_deleted: bool) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("text.tsv");
    let data = dir.path().join("data");
    let text = write_text(&file);
    let lines = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .count();
    let launch = launch(&data);
    let mut broker = launch.start(0, None).expect("it starts");
    let address = broker.address.to_string();
    let created = waterwheel(
        &data,
        &address,
        &["topic", "create", TOPIC, "--partitions", "8"],
    )
    .output();
    assert!(
        created.expect("it runs").status.success(),
        "the topic is made"
    );
    let mut produce = waterwheel(
        &data,
        &address,
        &["produce", TOPIC, "--key-separator", "\\t", "--receipts"],
    )
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .spawn()
    .expect("produce starts");
    let receipts = Receipts::of(&mut produce);
    let mut input = produce.stdin.take().expect("stdin is piped");
    // Produce is fast: it is given the file in parts, so that every kill finds it unfinished.
    let mut parts = parts(&text, KILLS + 1).into_iter();
    let mut given = 0;
    for part in parts.by_ref().take(KILLS) {
        let before = given;
        input.write_all(part).expect("produce reads");
        given += part.iter().filter(|byte| **byte == b'\n').count();
        while receipts.count() <= before {
            assert_eq!(
                produce.try_wait().expect("it can be asked"),
                None,
                "produce runs"
            );
            std::thread::park_timeout(Duration::from_millis(1));
        }
        broker.kill();
        if views_deleted {
            delete_views(&data);
        }
        let port = address
            .parse::<std::net::SocketAddr>()
            .expect("an address")
            .port();
        broker = launch.start(port, None).expect("it starts again");
    }
    for part in parts {
        input.write_all(part).expect("produce reads");
    }
    drop(input);
    assert!(
        produce.wait().expect("produce ends").success(),
        "every line is acknowledged"
    );
    let counted = std::sync::Arc::clone(&receipts.counted);
    receipts.reader.join().expect("receipts come in order");
    assert_eq!(
        counted.load(std::sync::atomic::Ordering::SeqCst),
        lines,
        "a receipt per line"
    );
    let mut consume = waterwheel(&data, &address, &["consume", TOPIC, "--format", "length"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("consume starts");
    let found = by_key(BufReader::new(
        consume.stdout.take().expect("stdout is piped"),
    ));
    assert!(consume.wait().expect("consume ends").success());
    let expected = expected(&text);
    assert_eq!(found.len(), expected.len(), "every key");
    for (key, lines) in &expected {
        let name = String::from_utf8_lossy(key);
        assert!(found.get(key) == Some(lines), "the lines of {name} differ");
    }
    println!("{lines} lines, {KILLS} kills, views deleted: {views_deleted}");
}

#[test]
fn a_real_file_comes_back_whole_through_kills() {
    through_kills(false);
}

#[test]
fn a_real_file_comes_back_whole_through_kills_and_lost_views() {
    through_kills(true);
}
