use super::*;

#[test]
fn the_defaults_agree_with_each_other() {
    Config::default().check().unwrap();
    let batch_bytes_max = Config::default().batch_bytes_max as usize;
    assert_eq!(
        batch_bytes_max,
        crate::domain::batch::BATCH_BYTES_MAX_DEFAULT
    );
    assert!(Config::default().arbiters_effective() >= 1);
}

/// A run that is too large is refused, and a partition that cannot restate holds its segments.
#[test]
fn a_partitions_snapshot_fits_one_flush_whatever_is_configured() {
    use crate::domain::commit::ENTRY_OVERHEAD_BYTES;
    use crate::domain::id::{Offset, ProducerEpoch, ProducerId, ProducerSequence, RecordNumber};
    use crate::domain::partition::Head;
    use crate::domain::partition::producers::{
        ProducerRow, ProducerTable, StoredBatch, WINDOW_BATCHES,
    };
    use crate::domain::partition::rows::snapshot_drafts;
    use crate::domain::time::WallMs;

    let config = Config {
        flush_bytes_max: 512 << 10,
        producers_per_partition_max: 1_000_000,
        ..Config::default()
    };
    let batch = StoredBatch {
        first_sequence: ProducerSequence(u64::MAX),
        count: u32::MAX,
        first_offset: Offset(u64::MAX),
        first_number: RecordNumber(u64::MAX),
        appended: WallMs(i64::MIN),
    };
    let row = ProducerRow {
        epoch: ProducerEpoch(u32::MAX),
        next_sequence: ProducerSequence(u64::MAX),
        last_used: WallMs(i64::MIN),
        window: std::iter::repeat_n(batch, WINDOW_BATCHES).collect(),
    };
    let mut table = ProducerTable::default();
    for id in 0..u64::from(config.producers_per_partition_effective()) {
        table.restore(ProducerId(u64::MAX - id), row.clone());
    }
    let bytes: u64 = snapshot_drafts(&Head::default(), &table)
        .iter()
        .map(|draft| draft.body.len() as u64 + ENTRY_OVERHEAD_BYTES)
        .sum();
    assert!(bytes < u64::from(config.flush_bytes_max) - 1024, "{bytes}");
    let asked = Config::default().producers_per_partition_max;
    assert_eq!(Config::default().producers_per_partition_effective(), asked);
}

#[test]
fn every_number_can_be_set_and_is_bounded() {
    for knob in Config::NUMBERS {
        let mut config = Config::default();
        let refused = config.set(knob.name, "18446744073709551615").unwrap_err();
        assert!(matches!(refused, ConfigError::Bounds { .. }), "{refused}");
        assert!(refused.to_string().contains(knob.name));
        let refused = config.set(knob.name, "much").unwrap_err();
        assert!(refused.to_string().contains("whole number"), "{refused}");
        assert_eq!(config, Config::default());
        let KnobKind::Number { default, min, max } = knob.kind else {
            panic!("{knob:?}");
        };
        assert_eq!(config.number(knob.name), Some(default));
        for bound in [min, max] {
            config.set(knob.name, &bound.to_string()).unwrap();
            assert_eq!(config.number(knob.name), Some(bound));
        }
    }
}

#[test]
fn every_text_can_be_set_and_is_shown_as_it_was_written() {
    let values = [
        ("data", "d"),
        ("listen", "[::1]:9"),
        ("cluster", "00112233445566778899aabbccddeeff"),
        ("cert", "a.pem"),
        ("key", "a.key"),
        ("client_ca", "ca.pem"),
        ("insecure_open", "true"),
    ];
    assert_eq!(values.len(), knob::TEXTS.len());
    let mut config = Config::default();
    for knob in knob::TEXTS {
        let KnobKind::Text { default, .. } = knob.kind else {
            panic!("{knob:?}");
        };
        assert_eq!(config.text(knob.name).as_deref(), default, "{}", knob.name);
        let (_, value) = values.iter().find(|(name, _)| *name == knob.name).unwrap();
        config.set(knob.name, value).unwrap();
        assert_eq!(config.text(knob.name).as_deref(), Some(*value));
        assert!(config.set(knob.name, "").is_err(), "{}", knob.name);
    }
    for (name, value) in [
        ("listen", "localhost"),
        ("cluster", "+0112233445566778899aabbccddeeff"),
        ("insecure_open", "yes"),
    ] {
        let refused = config.set(name, value).unwrap_err().to_string();
        assert!(
            refused.contains(name) && refused.contains(value),
            "{refused}"
        );
    }
}

#[test]
fn sizes_and_spans_are_taken_with_their_units() {
    let mut config = Config::default();
    config.set("memory_bytes", "1.5GiB").unwrap();
    config.set("checkpoint_ms", "90s").unwrap();
    config.set("connections_max", "1_000").unwrap();
    assert_eq!(
        (
            config.memory_bytes,
            config.checkpoint_ms,
            config.connections_max
        ),
        (3 << 29, 90_000, 1000)
    );
    let refused = config.set("checkpoint_ms", "2d").unwrap_err();
    assert_eq!(
        refused.to_string(),
        "checkpoint_ms must be between 10ms (10) and 1h (3600000), not 2d (172800000)"
    );
}

#[test]
fn an_unknown_name_is_answered_with_the_one_it_is_like() {
    let refused = Config::default().set("segment-size", "1").unwrap_err();
    assert_eq!(
        refused.to_string(),
        "there is no setting segment-size; did you mean segment_bytes?"
    );
    let refused = Config::default().set("zzz", "1").unwrap_err();
    assert!(refused.to_string().contains("serve --help"), "{refused}");
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("waterwheel.toml");
    std::fs::write(
        &path,
        "# small\ncheckpoint_ms = 2_000 # often\n\narbiters=3\nmemory_bytes = \"1GiB\"\nlog_format = \"json\"\ninsecure_open = true\n",
    )
    .unwrap();
    let mut settings = Settings::default();
    settings.read_file(&path).unwrap();
    let config = &settings.config;
    assert_eq!(
        (
            config.checkpoint_ms,
            config.arbiters_effective(),
            config.memory_bytes
        ),
        (2000, 3, 1 << 30)
    );
    assert_eq!(
        (config.insecure_open, settings.log_format),
        (true, LogFormat::Json)
    );
    let environment = [
        ("WATERWHEEL_CHECKPOINT_MS", "100"),
        ("WATERWHEEL_CRASH_AT", "mid-flush:3"),
        ("WATERWHEEL_ARBITERS", ""),
        ("WATERWHEEL_SERVER", "127.0.0.1:7411"),
        ("WATERWHEEL_SEGMENT_SIZE", "1"),
        ("PATH", "/bin"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let told = settings.read_environment(environment).unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("WATERWHEEL_SEGMENT_SIZE is not taken"),
        "{told:?}"
    );
    settings
        .set("arbiters", "5", Origin::Flag("--set arbiters".to_owned()))
        .unwrap();
    let config = &settings.config;
    assert_eq!((config.checkpoint_ms, config.arbiters), (100, 5));
    assert_eq!(config.crash_at.as_deref(), Some("mid-flush:3"));
    let line = |name: &str| {
        let found = settings.in_force().find(|line| line.knob.name == name);
        found.unwrap().toml()
    };
    assert_eq!(line("arbiters"), "arbiters = 5 # --set arbiters");
    assert_eq!(
        line("checkpoint_ms"),
        "checkpoint_ms = 100 # 100ms; WATERWHEEL_CHECKPOINT_MS"
    );
    assert_eq!(
        line("memory_bytes"),
        format!("memory_bytes = 1073741824 # 1 GiB; {}:5", path.display())
    );
    assert_eq!(line("data"), "data = \"waterwheel-data\" # default");
    assert_eq!(line("cert"), "# cert is unset");
}

#[test]
fn what_is_in_force_is_a_file_that_puts_it_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("waterwheel.toml");
    let mut settings = Settings::default();
    for (name, value) in [
        ("data", "a \"quoted\"\\ name"),
        ("memory_bytes", "1GiB"),
        ("client_ca", "ca.pem"),
        ("log_format", "json"),
    ] {
        settings.set(name, value, Origin::Default).unwrap();
    }
    let lines: Vec<_> = settings.in_force().map(|line| line.toml()).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    let mut again = Settings::default();
    again.read_file(&path).unwrap();
    assert_eq!(again.config, settings.config);
    assert_eq!(again.log_format, settings.log_format);
}

#[test]
fn what_is_wrong_in_a_file_is_named_by_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("waterwheel.toml");
    let cases = [
        ("arbiters = 3\nnonsense\n", ":2: "),
        (
            "arbiters = 3\nchekpoint_ms = 1\n",
            ":2: there is no setting chekpoint_ms; did you mean checkpoint_ms?",
        ),
        (
            "[broker]\narbiters = 3\n",
            ":1: broker must be a whole number, a string, or true or false",
        ),
        (
            "\n\narbiters = 65\n",
            ":3: arbiters must be between 0 and 64, not 65",
        ),
        ("arbiters = 1.5\n", ":1: arbiters must be a whole number"),
        (
            "arbiters = -1\n",
            ":1: arbiters must be a whole number, not \"-1\"",
        ),
        ("arbiters = 1\narbiters = 2\n", ":2: "),
        (
            "listen = 7411\n",
            ":1: listen must be an IP address and a port, e.g. 127.0.0.1:7411",
        ),
    ];
    for (text, expected) in cases {
        std::fs::write(&path, text).unwrap();
        let refused = Settings::default()
            .read_file(&path)
            .unwrap_err()
            .to_string();
        let expected = format!("{}{expected}", path.display());
        assert!(refused.starts_with(&expected), "{text}: {refused}");
    }
    let absent = Settings::default()
        .read_file(&dir.path().join("absent"))
        .unwrap_err();
    assert!(matches!(absent, ConfigError::File { .. }), "{absent}");
}

#[test]
fn whoever_can_be_reached_asks_who_comes() {
    let open = Config {
        listen: Some(([0, 0, 0, 0], 7411).into()),
        ..Config::default()
    };
    let refused = open.check().unwrap_err().to_string();
    assert!(
        refused.contains("--client-ca") && refused.contains("--insecure-open"),
        "{refused}"
    );
    let asking = Config {
        client_ca: Some("ca.pem".into()),
        ..open.clone()
    };
    let warned = Config {
        insecure_open: true,
        ..open
    };
    let local = Config {
        listen: Some("[::ffff:127.0.0.1]:0".parse().unwrap()),
        ..Config::default()
    };
    for config in [asking, warned, local] {
        config.check().unwrap();
    }
}

/// The README's table is the code's: `WATERWHEEL_BLESS=1 cargo test --lib the_readme` writes it.
#[test]
fn the_readme_has_every_setting_as_it_is() {
    const BEGIN: &str = "<!-- settings: written by a test -->\n";
    const END: &str = "<!-- end of settings -->";
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme
        .split_once(BEGIN)
        .expect("the README has a table of settings");
    let (table, after) = rest.split_once(END).expect("the table of settings ends");
    let rows: Vec<_> = Settings::knobs().map(Knob::markdown).collect();
    let wanted = format!(
        "| setting | default | bounds | what |\n|---|---|---|---|\n{}\n",
        rows.join("\n")
    );
    if std::env::var_os("WATERWHEEL_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
        return;
    }
    assert!(
        table == wanted,
        "the README's table of settings is old: WATERWHEEL_BLESS=1 cargo test --lib the_readme"
    );
}

/// One contradiction at a time, each answered with the number that would do.
#[test]
fn contradictions_say_what_to_write_instead() {
    type Bend = fn(&mut Config);
    let cases: [(Bend, &str); 6] = [
        (|config| config.cert = Some("server.pem".into()), "--key"),
        (
            |config| config.flush_bytes_max = 1 << 20,
            "at least 1114112",
        ),
        (
            |config| config.segment_bytes = 16 << 20,
            "at least 25264128",
        ),
        (|config| config.segment_bytes += 1, "a multiple of 4096"),
        (
            |config| config.admission_bytes = 4096,
            "admission_bytes must let",
        ),
        (
            |config| config.admission_bytes = 1 << 30,
            "memory_bytes of at least 1632982360",
        ),
    ];
    for (bend, expected) in cases {
        let mut config = Config::default();
        bend(&mut config);
        let refused = config.check().unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
    }
    let bent = Config {
        connections_max: 0,
        ..Config::default()
    };
    assert!(matches!(bent.check(), Err(ConfigError::Bounds { .. })));
}
