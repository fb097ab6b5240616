//! Where settings come from: defaults, a TOML file, the environment, flags, the later stronger; and
//! where each that is in force came from.
//!
//! A file holds `name = value` lines without tables: a value is a whole number, a string, or true or
//! false. `listen = "127.0.0.1:7411"`, `memory_bytes = "512MiB"`, `checkpoint_ms = 1_000`.
//!
//! - K3: a name nobody knows is refused, in a file and as a flag alike. In the environment it is only
//!   told: platforms put variables of their own beside ours (`WATERWHEEL_SERVICE_HOST` where a service
//!   has our name).
//! - K4: an empty variable is one that is not set.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Spanned, Value};

use super::knob::{Knob, KnobKind, Unit};
use super::{Config, ConfigError};

/// What every variable of the environment begins with.
const PREFIX: &str = "WATERWHEEL_";

/// Variables that are not the broker's settings: the command line's, and the tests'.
const OTHER_VARIABLES: [&str; 10] = [
    "WATERWHEEL_CONFIG",
    "WATERWHEEL_SERVER",
    "WATERWHEEL_SERVER_NAME",
    "WATERWHEEL_CA",
    "WATERWHEEL_CLIENT_CERT",
    "WATERWHEEL_CLIENT_KEY",
    "WATERWHEEL_CRASH_AT",
    "WATERWHEEL_TEST",
    "WATERWHEEL_SEED",
    "WATERWHEEL_BLESS",
];

const LOG_FORMAT: Knob = Knob {
    name: "log_format",
    doc: &["How `serve` logs to stderr; `RUST_LOG` says how much."],
    kind: KnobKind::Text {
        wanted: "text or json",
        default: Some("text"),
    },
};

/// How the broker's log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Where a setting was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Nowhere.
    Default,
    /// In a file.
    File {
        /// Which.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// In the environment.
    Environment(String),
    /// On the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(variable) => f.write_str(variable),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A setting in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// Its documentation.
    pub knob: Knob,
    /// Its value; none where it is unset.
    pub value: Option<String>,
    /// Where it was written.
    pub origin: Origin,
}

impl InForce {
    /// The setting as a line of a configuration file, its origin as a comment.
    #[must_use]
    pub fn toml(&self) -> String {
        let Some(value) = &self.value else {
            return format!("# {} is unset", self.knob.name);
        };
        match self.knob.kind {
            KnobKind::Number { .. } => {
                let people = value
                    .parse()
                    .map(|value| Unit::of(self.knob.name).exact(value));
                let people = match people {
                    Ok(people) if people != *value => format!("{people}; "),
                    _ => String::new(),
                };
                format!("{} = {value} # {people}{}", self.knob.name, self.origin)
            }
            KnobKind::Text { .. } => {
                let value = match value.as_str() {
                    "true" | "false" => value.clone(),
                    text => Value::String(text.to_owned()).to_string(),
                };
                format!("{} = {value} # {}", self.knob.name, self.origin)
            }
        }
    }
}

/// The settings of `waterwheel serve` while they are gathered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// The broker's.
    pub config: Config,
    /// How to log.
    pub log_format: LogFormat,
    origins: BTreeMap<&'static str, Origin>,
}

impl Settings {
    /// Every setting, as it is documented.
    pub fn knobs() -> impl Iterator<Item = &'static Knob> {
        Config::knobs().chain(std::iter::once(&LOG_FORMAT))
    }

    /// Sets one by its name.
    ///
    /// # Errors
    /// What [`Config::set`] refuses, and where it was written.
    pub fn set(&mut self, name: &str, value: &str, origin: Origin) -> Result<(), ConfigError> {
        let known = Self::knobs().find(|knob| knob.name == name);
        let outcome = match known {
            None => Err(ConfigError::unknown(name, Self::knobs())),
            Some(knob) if *knob == LOG_FORMAT => self.set_log_format(value),
            Some(_) => self.config.set(name, value),
        };
        if let Err(error) = outcome {
            let error = Box::new(error);
            return Err(ConfigError::At { origin, error });
        }
        if let Some(knob) = known {
            self.origins.insert(knob.name, origin);
        }
        Ok(())
    }

    fn set_log_format(&mut self, value: &str) -> Result<(), ConfigError> {
        self.log_format = match value {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            _ => {
                return Err(ConfigError::Value {
                    name: LOG_FORMAT.name,
                    wanted: "text or json".to_owned(),
                    value: value.to_owned(),
                });
            }
        };
        Ok(())
    }

    /// Reads a TOML file.
    ///
    /// # Errors
    /// A file that cannot be read or is not TOML, an unknown name, or what [`Config::set`] refuses, each
    /// with its line.
    pub fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|why| ConfigError::File {
            path: path.to_path_buf(),
            why: why.to_string(),
        })?;
        let line_of = |at: usize| {
            let before = text.bytes().take(at);
            before.filter(|byte| *byte == b'\n').count() + 1
        };
        type Table = BTreeMap<Spanned<String>, Spanned<Value>>;
        let table: Table = toml::from_str(&text).map_err(|fault| ConfigError::Syntax {
            path: path.to_path_buf(),
            line: line_of(fault.span().map_or(0, |span| span.start)),
            why: format!(
                "{}; write e.g. listen = \"127.0.0.1:7411\"",
                fault.message()
            ),
        })?;
        for (name, value) in &table {
            let line = line_of(name.span().start);
            let origin = Origin::File {
                path: path.to_path_buf(),
                line,
            };
            let written = written(value.get_ref()).ok_or_else(|| ConfigError::Syntax {
                path: path.to_path_buf(),
                line,
                why: format!(
                    "{} must be a whole number, a string, or true or false; settings are not grouped in tables",
                    name.get_ref()
                ),
            })?;
            self.set(name.get_ref(), &written, origin)?;
        }
        Ok(())
    }

    /// Takes `WATERWHEEL_<NAME>` for every setting, and `WATERWHEEL_CRASH_AT`. Answers what is to be said
    /// about variables that begin like ours and are nobody's.
    ///
    /// # Errors
    /// What [`Config::set`] refuses, with the variable's name.
    pub fn read_environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Vec<String>, ConfigError> {
        let mut strangers = Vec::new();
        for (variable, value) in variables {
            let Some(name) = variable.strip_prefix(PREFIX) else {
                continue;
            };
            let name = name.to_lowercase();
            if value.is_empty() {
                continue;
            } else if variable == "WATERWHEEL_CRASH_AT" {
                self.config.crash_at = Some(value);
            } else if Self::knobs().any(|knob| knob.name == name) {
                self.set(&name, &value, Origin::Environment(variable))?;
            } else if !OTHER_VARIABLES.contains(&variable.as_str()) {
                let unknown = ConfigError::unknown(&name, Self::knobs());
                strangers.push(format!("{variable} is not taken: {unknown}"));
            }
        }
        Ok(strangers)
    }

    /// What is in force, in the order of the documentation.
    pub fn in_force(&self) -> impl Iterator<Item = InForce> + '_ {
        Self::knobs().map(|knob| InForce {
            knob: *knob,
            value: match knob.kind {
                KnobKind::Number { .. } => {
                    self.config.number(knob.name).map(|value| value.to_string())
                }
                KnobKind::Text { .. } if *knob == LOG_FORMAT => Some(match self.log_format {
                    LogFormat::Text => "text".to_owned(),
                    LogFormat::Json => "json".to_owned(),
                }),
                KnobKind::Text { .. } => self.config.text(knob.name),
            },
            origin: self
                .origins
                .get(knob.name)
                .cloned()
                .unwrap_or(Origin::Default),
        })
    }
}

/// A value as [`Config::set`] takes it; none where it is of a kind no setting takes.
fn written(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Boolean(switch) => Some(switch.to_string()),
        Value::Float(_) | Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}
