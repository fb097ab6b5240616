//! The settings as they are documented, and those that are not numbers.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::human::{exact_bytes, exact_span, parse_bytes, parse_span};
use super::{Config, ConfigError};
use crate::domain::id::ClusterId;

/// A setting as it is documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knob {
    /// Its name in a file; in the environment `WATERWHEEL_` and the name in capitals.
    pub name: &'static str,
    /// What it means, in lines.
    pub(super) doc: &'static [&'static str],
    /// What it takes.
    pub kind: KnobKind,
}

/// What a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnobKind {
    /// A whole number in the unit of the name.
    Number {
        /// If nothing is said.
        default: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// Anything else.
    Text {
        /// What it takes.
        wanted: &'static str,
        /// If nothing is said; none where it is then unset.
        default: Option<&'static str>,
    },
}

impl Knob {
    /// What it means, on one line.
    #[must_use]
    pub fn doc(&self) -> String {
        self.doc.concat().trim().to_owned()
    }

    /// The variable of the environment.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("WATERWHEEL_{}", self.name.to_uppercase())
    }

    /// The default and the bounds for people, or what it takes.
    #[must_use]
    pub fn default_and_bounds(&self) -> (String, String) {
        match self.kind {
            KnobKind::Number { default, min, max } => {
                let unit = Unit::of(self.name);
                let bounds = format!("{} to {}", unit.exact(min), unit.exact(max));
                (unit.exact(default), bounds)
            }
            KnobKind::Text { wanted, default } => {
                (default.unwrap_or("unset").to_owned(), wanted.to_owned())
            }
        }
    }

    /// Its row of the table in the README.
    #[must_use]
    pub fn markdown(&self) -> String {
        let (default, bounds) = self.default_and_bounds();
        format!(
            "| `{}` | {default} | {bounds} | {} |",
            self.name,
            self.doc()
        )
    }
}

/// What a number counts: its name says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// `..._bytes...`
    Bytes,
    /// `..._ms...`
    Milliseconds,
    /// Anything else.
    Count,
}

impl Unit {
    /// The unit of a setting.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let has = |unit: &str| name.split('_').any(|part| part == unit);
        match (has("bytes"), has("ms")) {
            (true, _) => Self::Bytes,
            (false, true) => Self::Milliseconds,
            (false, false) => Self::Count,
        }
    }

    /// A number in this unit, exactly, for people.
    #[must_use]
    pub fn exact(self, value: u64) -> String {
        match self {
            Self::Bytes => exact_bytes(value),
            Self::Milliseconds => exact_span(value),
            Self::Count => value.to_string(),
        }
    }
}

/// Reads a number in the unit of the setting's name.
pub(super) fn parse_number(name: &'static str, value: &str) -> Result<u64, ConfigError> {
    let value = value.trim();
    let wrong = |wanted: &str| ConfigError::Value {
        name,
        wanted: wanted.to_owned(),
        value: value.to_owned(),
    };
    match Unit::of(name) {
        Unit::Bytes => parse_bytes(value).map_err(|_| {
            wrong("a whole number of bytes, or a size such as 64KiB (1024) or 10MB (1000)")
        }),
        Unit::Milliseconds => parse_span(value, 1)
            .ok()
            .and_then(|span| u64::try_from(span.as_millis()).ok())
            .ok_or_else(|| {
                wrong("a whole number of milliseconds, or a span such as 250ms, 5s, 2h or 7d")
            }),
        Unit::Count => value
            .replace('_', "")
            .parse()
            .map_err(|_| wrong("a whole number")),
    }
}

const DIRECTORY: &str = "a directory";
const FILE: &str = "a PEM file";

/// The settings that are not numbers.
pub(super) const TEXTS: &[Knob] = &[
    Knob {
        name: "data",
        doc: &["The data directory; made if it is not there."],
        kind: KnobKind::Text {
            wanted: DIRECTORY,
            default: Some("waterwheel-data"),
        },
    },
    Knob {
        name: "listen",
        doc: &["Where to listen for QUIC (UDP); port 0 takes a free one."],
        kind: KnobKind::Text {
            wanted: "an IP address and a port",
            default: Some("127.0.0.1:7411"),
        },
    },
    Knob {
        name: "cluster",
        doc: &[
            "The cluster the data directory must belong to, as `waterwheel status` prints it: a wrong",
            " volume is refused. A new directory is given it. Unset: whichever it belongs to.",
        ],
        kind: KnobKind::Text {
            wanted: "32 hexadecimal digits",
            default: None,
        },
    },
    Knob {
        name: "cert",
        doc: &[
            "The server's certificate, followed by its intermediates. Unset: a development certificate",
            " is made in the data directory.",
        ],
        kind: KnobKind::Text {
            wanted: FILE,
            default: None,
        },
    },
    Knob {
        name: "key",
        doc: &["The certificate's private key; given together with `cert`."],
        kind: KnobKind::Text {
            wanted: FILE,
            default: None,
        },
    },
    Knob {
        name: "client_ca",
        doc: &[
            "The authority that vouches for clients: whoever shows no certificate of its is refused.",
            " Unset: nobody is asked for one.",
        ],
        kind: KnobKind::Text {
            wanted: FILE,
            default: None,
        },
    },
    Knob {
        name: "insecure_open",
        doc: &[
            "Listen on an address that is not loopback without `client_ca`: whoever reaches it may read",
            " and write everything.",
        ],
        kind: KnobKind::Text {
            wanted: "true or false",
            default: Some("false"),
        },
    },
];

impl Config {
    /// Sets one of [`TEXTS`]; whether there is one of that name.
    pub(super) fn set_text(&mut self, name: &str, value: &str) -> Result<bool, ConfigError> {
        let Some(knob) = TEXTS.iter().find(|knob| knob.name == name) else {
            return Ok(false);
        };
        let value = value.trim();
        let wrong = |wanted: &str| ConfigError::Value {
            name: knob.name,
            wanted: wanted.to_owned(),
            value: value.to_owned(),
        };
        let path = |what: &str| match value.is_empty() {
            true => Err(wrong(what)),
            false => Ok(PathBuf::from(value)),
        };
        match knob.name {
            "data" => self.data = path(DIRECTORY)?,
            "listen" => {
                let address: SocketAddr = value.parse().map_err(|_| {
                    wrong("an IP address and a port, e.g. 127.0.0.1:7411 or [::1]:7411")
                })?;
                self.listen = Some(address);
            }
            "cluster" => {
                self.cluster = Some(parse_cluster(value).ok_or_else(|| {
                    wrong("32 hexadecimal digits, as `waterwheel status` prints them")
                })?);
            }
            "cert" => self.cert = Some(path(FILE)?),
            "key" => self.key = Some(path(FILE)?),
            "client_ca" => self.client_ca = Some(path(FILE)?),
            "insecure_open" => {
                self.insecure_open = parse_switch(value).ok_or_else(|| wrong("true or false"))?
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What is in force of a setting that is no number; none where it is unset.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        match name {
            "data" => Some(self.data.display().to_string()),
            "listen" => self.listen.map(|listen| listen.to_string()),
            "cluster" => self.cluster.map(|cluster| cluster.to_string()),
            "cert" => path(&self.cert),
            "key" => path(&self.key),
            "client_ca" => path(&self.client_ca),
            "insecure_open" => Some(self.insecure_open.to_string()),
            _ => None,
        }
    }
}

fn parse_switch(value: &str) -> Option<bool> {
    match value {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

fn parse_cluster(value: &str) -> Option<ClusterId> {
    let is_hex = value.len() == 32 && value.bytes().all(|digit| digit.is_ascii_hexdigit());
    let number = u128::from_str_radix(value, 16).ok().filter(|_| is_hex)?;
    Some(ClusterId(number.to_be_bytes()))
}
