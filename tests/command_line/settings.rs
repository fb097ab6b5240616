//! The settings from outside: where each comes from, and what is refused.

use std::fs;
use std::process::Command;

use crate::{Said, run};

struct Place(tempfile::TempDir);

impl Place {
    fn new(file: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("waterwheel.toml"), file).unwrap();
        Self(dir)
    }

    fn say(&self, environment: &[(&str, &str)], line: &[&str]) -> Said {
        run(Command::new(env!("CARGO_BIN_EXE_waterwheel"))
            .current_dir(self.0.path())
            .env_remove("RUST_LOG")
            .envs(environment.iter().copied())
            .args(["serve", "--config", "waterwheel.toml"])
            .args(line))
    }
}

#[test]
fn the_settings_in_force_are_shown_with_their_origins() {
    let place = Place::new("data = \"from-file\"\narbiters = 3\nmemory_bytes = \"1GiB\"\n");
    let environment = [
        ("WATERWHEEL_ARBITERS", "4"),
        ("WATERWHEEL_CHECKPOINT_MS", "2s"),
    ];
    let line = [
        "--print-config",
        "--set",
        "arbiters=5",
        "--listen",
        "127.0.0.1:1",
    ];
    let shown = place.say(&environment, &line);
    assert_eq!(shown.code, 0, "{}", shown.err);
    for expected in [
        "data = \"from-file\" # waterwheel.toml:1",
        "arbiters = 5 # --set arbiters",
        "memory_bytes = 1073741824 # 1 GiB; waterwheel.toml:3",
        "checkpoint_ms = 2000 # 2s; WATERWHEEL_CHECKPOINT_MS",
        "listen = \"127.0.0.1:1\" # --listen",
        "connections_max = 10000 # default",
        "# client_ca is unset",
        "log_format = \"text\" # default",
    ] {
        assert!(
            shown.out.lines().any(|line| line == expected),
            "{expected}: {}",
            shown.out
        );
    }
    assert!(
        !place.0.path().join("from-file").exists(),
        "nothing is started"
    );
    // What was printed is a file that says the same.
    let again = Place::new(&shown.out);
    let again = again.say(&[], &["--print-config", "--json"]).json();
    let arbiters = again
        .iter()
        .find(|line| line["name"] == "arbiters")
        .unwrap();
    assert_eq!(arbiters["value"], "5");
    assert!(
        arbiters["origin"]
            .as_str()
            .unwrap()
            .starts_with("waterwheel.toml:")
    );
}

#[test]
fn what_makes_no_sense_is_refused_with_what_to_write_instead() {
    type Words<'a> = &'a [&'a str];
    let cases: [(&str, &[(&str, &str)], Words<'_>, Words<'_>); 9] = [
        (
            "arbitres = 3\n",
            &[],
            &[],
            &["waterwheel.toml:1", "did you mean arbiters?"],
        ),
        ("arbiters = three\n", &[], &[], &["waterwheel.toml:1"]),
        (
            "\narbiters = 1000\n",
            &[],
            &[],
            &["waterwheel.toml:2", "between 0 and 64"],
        ),
        (
            "",
            &[("WATERWHEEL_MEMORY_BYTES", "much")],
            &[],
            &["WATERWHEEL_MEMORY_BYTES: memory_bytes", "64KiB"],
        ),
        (
            "",
            &[],
            &["--set", "checkpoint_ms=2d"],
            &["--set checkpoint_ms", "1h (3600000)"],
        ),
        (
            "",
            &[],
            &["--listen", "localhost"],
            &["--listen", "127.0.0.1:7411"],
        ),
        ("", &[], &["--log-format", "xml"], &["text or json"]),
        // contradictory limits
        (
            "flush_bytes_max = \"1MiB\"\n",
            &[],
            &[],
            &[
                "flush_bytes_max must hold the largest batch",
                "at least 1114112",
            ],
        ),
        (
            "admission_bytes = \"1GiB\"\n",
            &[],
            &[],
            &["memory_bytes of at least"],
        ),
    ];
    for (file, environment, line, said) in cases {
        let got = Place::new(file).say(environment, line);
        assert_eq!(got.code, 2, "{file}{line:?}: {}", got.err);
        for said in said {
            assert!(got.err.contains(said), "{said:?} is not in {}", got.err);
        }
    }
    let absent = run(Command::new(env!("CARGO_BIN_EXE_waterwheel")).args([
        "serve",
        "--config",
        "/nowhere.toml",
    ]));
    assert_eq!(absent.code, 2);
    assert!(absent.err.contains("/nowhere.toml"), "{}", absent.err);
}

#[test]
fn a_variable_nobody_knows_is_told_of() {
    let place = Place::new("");
    let shown = place.say(&[("WATERWHEEL_MEMORY", "1GiB")], &["--print-config"]);
    assert_eq!(shown.code, 0);
    assert!(
        shown.err.contains("WATERWHEEL_MEMORY is not taken") && shown.err.contains("memory_bytes"),
        "{}",
        shown.err
    );
}
