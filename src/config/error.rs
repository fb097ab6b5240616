//! Why a configuration is refused: each says what to write instead.

use std::path::PathBuf;

use super::human::nearest;
use super::knob::{Knob, Unit};
use super::settings::Origin;

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Nothing is called that.
    #[error("there is no setting {name}; {}", did_you_mean(*.near))]
    Unknown {
        /// What was written.
        name: String,
        /// The setting it is most like.
        near: Option<&'static str>,
    },
    /// Not what the setting takes.
    #[error("{name} must be {wanted}, not {value:?}")]
    Value {
        /// The setting.
        name: &'static str,
        /// What it takes.
        wanted: String,
        /// What was written.
        value: String,
    },
    /// Outside its bounds.
    #[error("{name} must be between {} and {}, not {}", shown(.name, *.min), shown(.name, *.max), shown(.name, *.value))]
    Bounds {
        /// The setting.
        name: &'static str,
        /// What was written.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// It contradicts another.
    #[error("{0}")]
    Relation(String),
    /// The file is not TOML.
    #[error("{}:{line}: {why}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// The file cannot be read.
    #[error("{}: {why}; name a file with --config or WATERWHEEL_CONFIG, for one to begin with: waterwheel serve --print-config > waterwheel.toml", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// Any of these, and where it was written.
    #[error("{origin}: {error}")]
    At {
        /// Where.
        origin: Origin,
        /// What is wrong.
        error: Box<ConfigError>,
    },
}

impl ConfigError {
    /// An unknown name, with the one among `knobs` that it is most like.
    pub(super) fn unknown<'a>(name: &str, knobs: impl Iterator<Item = &'a Knob>) -> Self {
        let near = nearest(&name.replace('-', "_"), knobs.map(|knob| knob.name));
        Self::Unknown {
            name: name.to_owned(),
            near,
        }
    }
}

fn did_you_mean(near: Option<&str>) -> String {
    match near {
        Some(near) => format!("did you mean {near}?"),
        None => "`waterwheel serve --help` lists them".to_owned(),
    }
}

/// A number of a setting: exactly, and for people where that is shorter.
fn shown(name: &str, value: u64) -> String {
    let people = Unit::of(name).exact(value);
    match people.split_once(' ') {
        Some((number, "B")) => number.to_owned(),
        Some(_) => format!("{people} ({value})"),
        None if people == value.to_string() => people,
        None => format!("{people} ({value})"),
    }
}
