//! Mutual TLS with exactly the files `waterwheel certs` makes, and every misuse of them.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::QuicServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use waterwheel::net::authority::{self, Wanted};
use waterwheel::net::tls::provider;

use crate::operating::Serve;
use crate::{Said, run};

/// Directories of certificates, and a broker that asks for them.
struct House {
    dir: tempfile::TempDir,
    broker: Serve,
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        expired(&dir.path().join("certs"), "late");
        for certs in ["certs", "other"] {
            let made = run(Command::new(env!("CARGO_BIN_EXE_waterwheel"))
                .current_dir(dir.path())
                .args(["certs", certs, "--host", "broker.example"]));
            assert_eq!(made.code, 0, "{}", made.err);
        }
        let path = |name: &str| dir.path().join("certs").join(name);
        let broker = Serve::start(
            &dir.path().join("data"),
            &[
                "--cert".into(),
                path("server.pem").into(),
                "--key".into(),
                path("server.key").into(),
                "--client-ca".into(),
                path("ca.pem").into(),
            ],
        );
        Self { dir, broker }
    }

    /// Runs a client's command; files are named from the house's directory.
    fn say(&self, line: &[&str]) -> Said {
        let address = self.broker.address.to_string();
        run(Command::new(env!("CARGO_BIN_EXE_waterwheel"))
            .current_dir(self.dir.path())
            .args(line)
            .args(["--server", &address]))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

const OURS: [&str; 6] = [
    "--ca",
    "certs/ca.pem",
    "--cert",
    "certs/client.pem",
    "--key",
    "certs/client.key",
];

fn ours<'a>(line: &[&'a str]) -> Vec<&'a str> {
    [line, &OURS].concat()
}

#[test]
fn both_ends_trust_exactly_the_files_that_were_made() {
    let mut house = House::new();
    fs::write(house.path("lines"), "one\ntwo\n").unwrap();
    let sent = house.say(&ours(&["produce", "t", "--create", "--file", "lines"]));
    assert_eq!(sent.code, 0, "{}", sent.err);
    let read = house.say(&ours(&["consume", "t"]));
    assert_eq!(
        (read.code, read.out.as_str()),
        (0, "one\ntwo\n"),
        "{}",
        read.err
    );
    let by_name = house.say(&ours(&[
        "status",
        "--ready",
        "--server-name",
        "broker.example",
    ]));
    assert_eq!(
        (by_name.code, by_name.out.as_str()),
        (0, "ready\n"),
        "{}",
        by_name.err
    );

    for key in ["certs/ca.key", "certs/server.key", "certs/client.key"] {
        let mode = fs::metadata(house.path(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    let ignored = fs::read_to_string(house.path("certs/.gitignore")).unwrap();
    assert!(ignored.lines().any(|line| line == "*"), "{ignored}");
    house.broker.stop();
}

#[test]
fn what_was_made_is_shown_and_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let certs = |line: &[&str]| {
        run(Command::new(env!("CARGO_BIN_EXE_waterwheel"))
            .current_dir(dir.path())
            .arg("certs")
            .args(line))
    };
    let none = certs(&["--show"]);
    assert_eq!(none.code, 2);
    assert!(none.err.contains("waterwheel certs"), "{}", none.err);
    let made = certs(&["--host", "10.0.0.7", "--days", "30"]);
    assert_eq!(made.code, 0, "{}", made.err);
    assert_eq!(
        made.out
            .lines()
            .filter(|line| line.starts_with("made "))
            .count(),
        6,
        "{}",
        made.out
    );
    assert!(
        made.err.contains("--client-ca certs/ca.pem"),
        "{}",
        made.err
    );
    let before = fs::read(dir.path().join("certs/server.key")).unwrap();
    let again = certs(&["--json"]);
    assert_eq!(again.code, 0);
    assert!(
        again.json().iter().all(|line| line["made"] == false),
        "{}",
        again.out
    );
    assert_eq!(
        fs::read(dir.path().join("certs/server.key")).unwrap(),
        before
    );
    let other_host = certs(&["--host", "elsewhere"]);
    assert_eq!(other_host.code, 1);
    assert!(
        other_host.err.contains("nothing is overwritten"),
        "{}",
        other_host.err
    );
    assert_eq!(certs(&["--days", "826"]).code, 2);
    assert_eq!(certs(&["--host", "a b"]).code, 2);

    let shown = certs(&["--show", "--json"]).json();
    let of = |file: &str| {
        shown
            .iter()
            .find(|line| line["file"] == format!("certs/{file}"))
            .unwrap()
    };
    assert_eq!(of("ca.pem")["what"], "authority");
    assert_eq!(of("ca.pem")["key"], "private");
    assert_eq!(of("server.pem")["what"], "server");
    let left = of("server.pem")["days_left"].as_i64();
    assert!(matches!(left, Some(29 | 30)), "{left:?}");
    assert!(
        of("server.pem")["names"]
            .as_array()
            .unwrap()
            .contains(&"10.0.0.7".into())
    );
    assert_eq!(of("client.pem")["what"], "client");
    let table = certs(&["--show"]);
    assert!(
        table.out.starts_with("file") && table.out.contains("certs/server.pem"),
        "{}",
        table.out
    );

    expired(&dir.path().join("late"), "late");
    let late = certs(&["late", "--show"]);
    assert_eq!(late.code, 1);
    assert!(late.err.contains("late.pem has expired"), "{}", late.err);
}

/// Begins a directory days ago: an authority, and a client's pair whose time is over.
fn expired(dir: &Path, name: &str) {
    let wanted = Wanted {
        hosts: Vec::new(),
        clients: vec![name.to_owned()],
        days: 1,
        now: SystemTime::now() - Duration::from_secs(3 * 86_400),
    };
    authority::make(dir, &wanted).unwrap();
    for name in ["server.pem", "server.key"] {
        fs::rename(dir.join(name), dir.join(format!("late-{name}"))).unwrap();
    }
}

#[test]
fn each_misuse_is_refused_with_the_file_and_the_mend() {
    let mut house = House::new();
    let cases: [(&[&str], i32, &[&str]); 11] = [
        // the wrong authority
        (
            &[
                "--ca",
                "other/ca.pem",
                "--cert",
                "certs/client.pem",
                "--key",
                "certs/client.key",
            ],
            3,
            &["other/ca.pem does not vouch", "give --ca"],
        ),
        // the wrong name
        (
            &[
                "--ca",
                "certs/ca.pem",
                "--cert",
                "certs/client.pem",
                "--key",
                "certs/client.key",
                "--server-name",
                "elsewhere",
            ],
            3,
            &[
                "does not name elsewhere",
                "broker.example",
                "waterwheel certs --host elsewhere",
            ],
        ),
        // none
        (
            &["--ca", "certs/ca.pem"],
            3,
            &["none was given", "--cert client.pem --key client.key"],
        ),
        (
            &["--ca", "nowhere.pem"],
            3,
            &["nowhere.pem", "DATA/tls/ca.pem"],
        ),
        (
            &["--ca", "certs/ca.pem", "--cert", "certs/client.pem"],
            2,
            &["--key"],
        ),
        (
            &[
                "--ca",
                "certs/ca.pem",
                "--cert",
                "certs/client.pem",
                "--key",
                "certs/absent.key",
            ],
            3,
            &["certs/absent.key"],
        ),
        // swapped
        (
            &[
                "--ca",
                "certs/ca.pem",
                "--cert",
                "certs/client.key",
                "--key",
                "certs/client.pem",
            ],
            3,
            &["certs/client.key: it holds a private key", "--cert takes"],
        ),
        // another certificate's key
        (
            &[
                "--ca",
                "certs/ca.pem",
                "--cert",
                "certs/client.pem",
                "--key",
                "certs/server.key",
            ],
            3,
            &["certs/server.key: it is not the key of certs/client.pem"],
        ),
        // another authority's
        (
            &[
                "--ca",
                "certs/ca.pem",
                "--cert",
                "other/client.pem",
                "--key",
                "other/client.key",
            ],
            3,
            &["vouches for other/client.pem", "--client-ca"],
        ),
        // expired
        (
            &[
                "--ca",
                "certs/ca.pem",
                "--cert",
                "certs/late.pem",
                "--key",
                "certs/late.key",
            ],
            3,
            &["certs/late.pem has expired", "waterwheel certs"],
        ),
        // the wrong kind
        (
            &[
                "--ca",
                "certs/ca.pem",
                "--cert",
                "certs/server.pem",
                "--key",
                "certs/server.key",
            ],
            3,
            &["certs/server.pem: it is not one for clients", "client.pem"],
        ),
    ];
    for (files, code, said) in cases {
        let line = [&["status"][..], files].concat();
        let got = house.say(&line);
        assert_eq!(got.code, code, "{files:?}: {}", got.err);
        for said in said {
            assert!(got.err.contains(said), "{files:?}: {}", got.err);
        }
    }
    let fine = house.say(&ours(&["status"]));
    assert_eq!(fine.code, 0, "{}", fine.err);
    house.broker.stop();
    let log = house.broker.log();
    for said in [
        "the client showed no certificate",
        "is from another authority than",
        "does not trust this broker",
    ] {
        assert!(log.contains(said), "{said}: {log}");
    }
}

/// The broker itself would not start with such a certificate: somebody else's does.
#[test]
fn a_broker_whose_certificate_has_expired_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    expired(dir.path(), "client");
    let path = |name: &str| dir.path().join(name);
    let chain = vec![CertificateDer::from_pem_file(path("late-server.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(path("late-server.key")).unwrap();
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![waterwheel::wire::ALPN.to_vec()];
    let config =
        quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let endpoint =
                quinn::Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
            tell.send(endpoint.local_addr().unwrap()).unwrap();
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(async move { incoming.await.map(drop) });
            }
        });
    });
    let address = told.recv().unwrap().to_string();
    let ca = path("ca.pem");
    let said = run(Command::new(env!("CARGO_BIN_EXE_waterwheel"))
        .args(["status", "--server", &address, "--ca"])
        .arg(ca));
    assert_eq!(said.code, 3, "{}", said.err);
    assert!(
        said.err.contains("the broker's certificate has expired")
            && said.err.contains("server.key"),
        "{}",
        said.err
    );

    // And this is why: a broker does not start with it.
    let started = run(Command::new(env!("CARGO_BIN_EXE_waterwheel"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(path("data"))
        .arg("--cert")
        .arg(path("late-server.pem"))
        .arg("--key")
        .arg(path("late-server.key")));
    assert_eq!(started.code, 2, "{}", started.err);
    assert!(
        started.err.contains("late-server.pem: it expired 2d"),
        "{}",
        started.err
    );
}

#[test]
fn new_certificates_are_taken_without_a_restart() {
    let mut house = House::new();
    let put = |from: &str| {
        for name in ["server.pem", "server.key", "ca.pem"] {
            fs::copy(house.path(from).join(name), house.path("certs").join(name)).unwrap();
        }
    };
    let before = house.say(&ours(&["status"]));
    assert_eq!(before.code, 0, "{}", before.err);
    let theirs = [
        "status",
        "--ca",
        "other/ca.pem",
        "--cert",
        "other/client.pem",
        "--key",
        "other/client.key",
    ];
    assert_eq!(house.say(&theirs).code, 3);

    // What cannot be used changes nothing.
    let kept = fs::read(house.path("certs/server.key")).unwrap();
    let authority = fs::read(house.path("certs/ca.pem")).unwrap();
    fs::write(house.path("certs/server.key"), "no key").unwrap();
    house.broker.signal("HUP");
    house.broker.wait_for_log("the ones before stay in force");
    assert_eq!(house.say(&ours(&["status"])).code, 0);
    fs::write(house.path("certs/server.key"), kept).unwrap();

    put("other");
    house.broker.signal("HUP");
    house.broker.wait_for_log("the certificates were read anew");
    let after = house.say(&theirs);
    assert_eq!(after.code, 0, "{}", after.err);
    fs::write(house.path("old-ca.pem"), authority).unwrap();
    let old = house.say(&[
        "status",
        "--ca",
        "old-ca.pem",
        "--cert",
        "certs/client.pem",
        "--key",
        "certs/client.key",
    ]);
    assert_eq!(old.code, 3, "{}", old.err);

    // Without a signal too, soon after somebody comes.
    let again = run(Command::new(env!("CARGO_BIN_EXE_waterwheel"))
        .current_dir(house.dir.path())
        .args(["certs", "third"]));
    assert_eq!(again.code, 0, "{}", again.err);
    put("third");
    let third = [
        "status",
        "--ca",
        "third/ca.pem",
        "--cert",
        "third/client.pem",
        "--key",
        "third/client.key",
    ];
    let began = std::time::Instant::now();
    while house.say(&third).code != 0 {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{}",
            house.broker.log()
        );
    }
    house.broker.stop();
}

#[test]
fn whoever_can_be_reached_must_ask_who_comes() {
    let dir = tempfile::tempdir().unwrap();
    let refused = run(Command::new(env!("CARGO_BIN_EXE_waterwheel"))
        .args(["serve", "--listen", "0.0.0.0:0", "--data"])
        .arg(dir.path()));
    assert_eq!(refused.code, 2);
    for said in ["--client-ca", "waterwheel certs", "--insecure-open"] {
        assert!(refused.err.contains(said), "{}", refused.err);
    }
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "nothing was begun"
    );
    let mut open = Serve::start_on(
        "0.0.0.0:0",
        &dir.path().join("data"),
        &["--insecure-open".into()],
    );
    open.stop();
}
