//! The examples do what they say: run as a user would, from outside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Builds an example, which costs nothing where it is built already, and says where it is.
fn example(name: &str) -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--example", name]);
    assert!(build.status().unwrap().success(), "{name} does not build");
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    profile.join("examples").join(name)
}

/// The web service, running.
struct Service {
    child: Child,
    http: String,
    quic: String,
}

impl Service {
    fn start(data: &Path) -> Self {
        let mut child = Command::new(example("embedded_web"))
            .args([data.as_os_str(), "0".as_ref(), "0".as_ref()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        // http [127.0.0.1:34567], quic Some(127.0.0.1:45678)
        let mut addresses = line.split([' ', '[', ']', '(', ')', ',']);
        let mut next = || {
            addresses
                .find(|part| part.starts_with("127.0.0.1:"))
                .unwrap()
                .to_owned()
        };
        let (http, quic) = (next(), next());
        Self { child, http, quic }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        body.to_owned()
    }

    /// Stops it as a service manager would; it ends well.
    fn stop(mut self) {
        let pid = self.child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(killed.unwrap().success());
        let ended = self.child.wait().unwrap();
        assert!(ended.success(), "{ended}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs an example over QUIC and returns what it printed.
fn run(name: &str, service: &Service, data: &Path, input: &str) -> String {
    let mut child = Command::new(example(name))
        .arg(&service.quic)
        .arg(data.join("tls/ca.pem"))
        .arg("orders")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{name}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_web_service_takes_orders_shows_them_both_ways_and_keeps_them() {
    let data = tempfile::tempdir().unwrap();
    let service = Service::start(data.path());
    for n in 0..3 {
        let stored = service.ask("POST", "/orders/anna", &format!("{n} roses"));
        assert!(stored.contains(&format!("offset {n}")), "{stored}");
    }
    let in_order = "anna: 0 roses\nanna: 1 roses\nanna: 2 roses\n";
    assert_eq!(
        service.ask("GET", "/orders", ""),
        in_order,
        "read back in process"
    );
    let read = run("consumer", &service, data.path(), "");
    let values: Vec<&str> = read
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(_, value)| value)
        .collect();
    assert_eq!(values, ["0 roses", "1 roses", "2 roses"], "and over QUIC");
    let sent = run("producer", &service, data.path(), "tulips\nlilies\n");
    assert_eq!(sent.lines().count(), 2, "{sent}");
    service.stop();

    let service = Service::start(data.path());
    let kept = service.ask("GET", "/orders", "");
    // Each partition in order; how they interleave is nobody's promise.
    let annas: String = kept
        .split_inclusive('\n')
        .filter(|line| line.starts_with("anna: "))
        .collect();
    assert_eq!(annas, in_order, "{kept}");
    assert!(
        kept.contains(": tulips\n") && kept.contains(": lilies\n"),
        "{kept}"
    );
    assert!(
        service
            .ask("POST", "/orders/anna", "3 roses")
            .contains("offset 3")
    );
    service.stop();
}

#[test]
fn every_effect_happens_once_however_often_it_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("stock.sqlite");
    let output = Command::new(example("exactly_once"))
        .arg(&database)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    // 1 to 200, each once.
    assert!(said.contains("200 effects, together 20100"), "{said}");
    let deliveries: u64 = said.split(' ').next().unwrap().parse().unwrap();
    assert!(deliveries >= 400, "it delivered again: {said}");
    // And by another look at what the database holds.
    let database = rusqlite::Connection::open(database).unwrap();
    let (total, noted): (i64, i64) = database
        .query_row(
            "SELECT (SELECT sold FROM stock), (SELECT count(*) FROM inbox)",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .unwrap();
    assert_eq!((total, noted), (20_100, 200));
}

#[test]
fn the_pipeline_keeps_every_account_in_order() {
    let output = Command::new(example("ordered_pipeline")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    // The sum of n - 2000 for n from 0 to 4999.
    assert!(said.contains("together 2497500 cents"), "{said}");
}

/// Its output, where it says that all is right and ends so.
fn right(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(said.ends_with("all is right\n"), "{said}");
    said
}

#[test]
fn every_paid_order_earns_its_points_once_though_the_tills_are_killed() {
    let mut points = Command::new(example("order_points"));
    points.env_remove("DATABASE_URL");
    let said = right(points);
    assert!(said.contains("database: SQLite"), "{said}");
    assert_eq!(said.matches(" is killed: committed").count(), 3, "{said}");
    assert_eq!(said.matches(" is killed: executing").count(), 1, "{said}");
    assert!(
        said.contains("check-back: 3 committed, 1 rolled back"),
        "{said}"
    );
    let audit = "24 orders paid for 3000 points; 24 credits of 3000 points; 0 orders wrong";
    assert!(said.contains(audit), "{said}");
    let came = said
        .lines()
        .find_map(|line| line.strip_suffix(" messages came"));
    let came: u32 = came.unwrap().parse().unwrap();
    assert!(came > 24, "some came again: {said}");
}

#[test]
fn what_a_pipeline_passes_on_is_right_though_its_worker_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit.sqlite");
    let mut pipeline = Command::new(example("pipeline"));
    pipeline.arg(&file);
    let said = right(pipeline);
    assert_eq!(said.matches(" is killed after ").count(), 5, "{said}");
    // And by another look at what the database holds.
    let database = rusqlite::Connection::open(file).unwrap();
    let same: i64 = database
        .query_row(
            "SELECT count(*) FROM expected JOIN results USING (number, account, result)",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(same, 4_000);
}
