//! A broker as it is operated: readiness, the service manager, and what keeps it from starting.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use crate::{Said, run};

/// Nothing takes longer; what does fails.
const PATIENCE: Duration = Duration::from_secs(60);

type Log = Arc<(Mutex<String>, Condvar)>;

/// A running `waterwheel serve` whose log is read.
pub(crate) struct Serve {
    child: Child,
    log: Log,
    pub(crate) address: SocketAddr,
}

impl Serve {
    pub(crate) fn start(data: &Path, arguments: &[OsString]) -> Self {
        Self::start_on("127.0.0.1:0", data, arguments)
    }

    pub(crate) fn start_on(listen: &str, data: &Path, arguments: &[OsString]) -> Self {
        let mut command = serve(data);
        command.args(["--listen", listen]).args(arguments);
        Self::started(command)
    }

    pub(crate) fn started(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let log = Log::default();
        let (stderr, written) = (child.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let (text, bell) = &*written;
                let mut text = text.lock().unwrap();
                text.push_str(&line);
                text.push('\n');
                bell.notify_all();
            }
        });
        let stdout = child.stdout.take().unwrap();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("listening on ") {
                    let _ = tell.send(address.parse().unwrap());
                }
            }
        });
        let address = told.recv_timeout(PATIENCE);
        let address =
            address.unwrap_or_else(|_| panic!("it does not listen: {}", log.0.lock().unwrap()));
        Self {
            child,
            log,
            address,
        }
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.0.lock().unwrap().clone()
    }

    /// Waits for a line of the log.
    pub(crate) fn wait_for_log(&self, said: &str) {
        let (text, bell) = &*self.log;
        let text = text.lock().unwrap();
        let (text, late) = bell
            .wait_timeout_while(text, PATIENCE, |text| !text.contains(said))
            .unwrap();
        assert!(!late.timed_out(), "it never said {said:?}: {text}");
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &id])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Stops it in order.
    pub(crate) fn stop(&mut self) {
        self.signal("TERM");
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{}", self.log());
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waterwheel"));
    command
        .args(["serve", "--data"])
        .arg(data)
        .env("RUST_LOG", "info");
    command
}

fn client(data: &Path, line: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waterwheel"));
    command.args(line).arg("--ca").arg(data.join("tls/ca.pem"));
    command
}

/// A command that does not get as far as listening.
fn refused(mut command: Command, code: i32, said: &[&str]) {
    let got: Said = run(&mut command);
    assert_eq!(got.code, code, "{}", got.err);
    assert_eq!(got.out, "", "it did not listen");
    for said in said {
        assert!(got.err.contains(said), "{said:?} is not in {}", got.err);
    }
}

#[test]
fn what_keeps_a_broker_from_starting_is_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut other = Serve::start(&dir.path().join("other"), &[]);

    // a port in use
    let taken = other.address.to_string();
    let mut command = serve(&dir.path().join("second"));
    command.args(["--listen", &taken]);
    refused(command, 2, &[&taken, "--listen", "--server"]);
    assert!(
        !dir.path().join("second").exists(),
        "nothing is made for a broker that cannot listen"
    );

    // a data directory in use
    let mut command = serve(&dir.path().join("other"));
    command.args(["--listen", "127.0.0.1:0"]);
    refused(command, 2, &["in use by another broker", "--data"]);

    // a data directory of another cluster
    other.stop();
    let mut command = serve(&dir.path().join("other"));
    let stranger = "00112233445566778899aabbccddeeff";
    command.args([
        "--listen",
        "127.0.0.1:0",
        "--set",
        &format!("cluster={stranger}"),
    ]);
    refused(
        command,
        2,
        &[
            "belongs to cluster",
            stranger,
            "move it away or use its own data directory",
        ],
    );

    // another cluster's segment in it
    let mut second = Serve::start(&dir.path().join("second"), &[]);
    second.stop();
    let segments = |name: &str| {
        let log = dir.path().join(name).join("log");
        let mut found: Vec<_> = fs::read_dir(log)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        found.sort();
        found
    };
    let foreign = dir.path().join("other/log/0000000000000099.segment");
    let held = segments("second");
    let newest = held.iter().max_by_key(|path| {
        fs::read(path)
            .unwrap()
            .iter()
            .filter(|byte| **byte != 0)
            .count()
    });
    fs::copy(newest.unwrap(), &foreign).unwrap();
    let mut command = serve(&dir.path().join("other"));
    command.args(["--listen", "127.0.0.1:0"]);
    refused(command, 2, &["belongs to cluster", "move it away"]);

    // a file where the directory should be
    fs::write(dir.path().join("file"), "").unwrap();
    let mut command = serve(&dir.path().join("file"));
    command.args(["--listen", "127.0.0.1:0"]);
    refused(command, 2, &["file", "--data"]);
}

#[test]
fn a_directory_without_permission_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    // Root may do anything: who runs this as root starts the broker as nobody.
    let is_root =
        fs::read_to_string("/proc/self/status").is_ok_and(|status| status.contains("Uid:\t0\t"));
    let binary = dir.path().join("waterwheel");
    fs::copy(env!("CARGO_BIN_EXE_waterwheel"), &binary).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o500)).unwrap();
    let mut command = Command::new(&binary);
    if is_root {
        command.uid(65_534).gid(65_534);
    }
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(&data);
    refused(command, 2, &["data", "ermission denied", "--data"]);
}

#[test]
fn a_host_that_drops_udp_is_told_from_one_that_answers() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Serve::start(&dir.path().join("data"), &[]);
    // It takes every datagram and answers none.
    let silent = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let got = run(client(&dir.path().join("data"), &["status"]).args([
        "--patience",
        "500ms",
        "--server",
        &address,
    ]));
    assert_eq!(got.code, 3, "{}", got.err);
    for said in [address.as_str(), "is `waterwheel serve` running", "UDP"] {
        assert!(got.err.contains(said), "{}", got.err);
    }
    broker.stop();
}

#[test]
fn readiness_is_an_exit_code_and_can_be_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // Where nobody listens yet, waiting outlives the start. A port that is free now.
    let port = UdpSocket::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap();
    let address = port.to_string();
    let not_yet = run(client(&data, &["status", "--ready"]).args([
        "--server",
        &address,
        "--patience",
        "300ms",
    ]));
    assert_eq!(not_yet.code, 3, "{}", not_yet.err);
    let waiting = client(&data, &["status", "--ready", "--wait", "60s"])
        .args(["--server", &address, "--patience", "1s"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut broker = Serve::start_on(&address, &data, &[]);
    let ready = crate::ended(waiting);
    assert_eq!(
        (ready.code, ready.out.as_str()),
        (0, "ready\n"),
        "{}",
        ready.err
    );
    let status = run(client(&data, &["status", "--json"]).args(["--server", &address]));
    assert_eq!(status.json()[0]["cluster"].as_str().map(str::len), Some(32));
    broker.stop();
}

#[test]
fn the_service_manager_hears_when_it_is_ready_and_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut heard = [0; 256];
        let length = socket.recv(&mut heard).expect("the manager hears");
        String::from_utf8(heard[..length].to_vec()).unwrap()
    };
    let mut command = serve(&dir.path().join("data"));
    command
        .args(["--listen", "127.0.0.1:0", "--log-format", "json"])
        .env("NOTIFY_SOCKET", dir.path().join("notify"));
    let mut broker = Serve::started(command);
    let heard = hear();
    assert!(
        heard.starts_with("READY=1\n") && heard.contains(&broker.address.to_string()),
        "{heard}"
    );
    broker.stop();
    assert!(hear().starts_with("STOPPING=1"));
    broker.wait_for_log("stopped");
    let log = broker.log();
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
        assert!(line["level"].is_string(), "{line}");
    }
    assert!(log.contains("serving") && log.contains("stopped"), "{log}");
}

#[test]
fn completions_and_manual_pages_are_printed() {
    let say = |line: &[&str]| run(Command::new(env!("CARGO_BIN_EXE_waterwheel")).args(line));
    for shell in ["bash", "zsh", "fish"] {
        let got = say(&["completions", shell]);
        assert!(
            got.code == 0 && got.out.contains("waterwheel"),
            "{}",
            got.err
        );
    }
    let man = say(&["man"]);
    assert!(
        man.code == 0 && man.out.contains(".TH waterwheel 1"),
        "{}",
        man.err
    );
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(say(&["man", "--dir", dir.path().to_str().unwrap()]).code, 0);
    let mut text = String::new();
    let page = fs::File::open(dir.path().join("waterwheel-serve.1"));
    page.unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("memory_bytes"));
}

#[test]
fn a_topic_may_be_there_already_and_may_be_made_on_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut broker = Serve::start(&data, &[]);
    let address = broker.address.to_string();
    let say = |line: &[&str]| {
        run(client(&data, line)
            .args(["--server", &address])
            .stdin(Stdio::null()))
    };
    let make = [
        "topic",
        "create",
        "t",
        "--partitions",
        "2",
        "--if-not-exists",
    ];
    assert!(say(&make).out.starts_with("created t"));
    let again = say(&make);
    assert_eq!(
        (again.code, again.out.starts_with("there is t")),
        (0, true),
        "{}",
        again.err
    );
    let other = say(&[
        "topic",
        "create",
        "t",
        "--partitions",
        "3",
        "--if-not-exists",
    ]);
    assert_eq!(other.code, 1);
    assert!(
        other.err.contains("3 partitions") && other.err.contains("topic alter"),
        "{}",
        other.err
    );
    fs::write(dir.path().join("lines"), "one\n").unwrap();
    let lines = dir.path().join("lines");
    let sent = say(&[
        "produce",
        "new",
        "--create",
        "--partitions",
        "3",
        "--json",
        "--file",
        lines.to_str().unwrap(),
    ]);
    assert_eq!(sent.code, 0, "{}", sent.err);
    assert_eq!(sent.json()[0]["acknowledged"], 1);
    let described = say(&["topic", "describe", "new", "--json"]).json();
    assert_eq!(described[0]["partitions"], 3);
    let sent = say(&[
        "produce",
        "new",
        "--create",
        "--file",
        lines.to_str().unwrap(),
    ]);
    assert_eq!(sent.code, 0, "{}", sent.err);
    assert_eq!(say(&["consume", "new", "--json"]).json().len(), 2);
    let listed = say(&["topic", "list"]);
    assert_eq!(listed.out.lines().count(), 3, "{}", listed.out);
    assert!(listed.out.starts_with("name"), "{}", listed.out);
    broker.stop();
}
