//! `waterwheel check DIR`: reads every byte of a stopped broker's data, and changes none.
//!
//! One line per damage: the file, the positions, what is wrong, and the owner and offsets lost where the
//! entry's header is whole. `--views` also folds the whole log anew and compares every row of the views
//! with it. Exit code 1 if anything is damaged.
//!
//! With `--json` one object per line: `{"damage":{file, from, to, reason, harmless, owner, first_offset,
//! offsets}}` (the last three null where they are not known), `{"segment":{number, file, flushes,
//! entries, bytes}}`, `{"views":{state, owners, rows, differing}}`, and last `{"checked":{segments,
//! entries, bytes, damages}}`.

use std::fs::{self, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::exit::{CliError, Outcome};
use super::output::counted;
use super::scratch::Scratch;
use super::{print, print_json};
use crate::actors::CrashPoints;
use crate::config::Config;
use crate::domain::partition::Limits;
use crate::log::{Damage, Inspected, Log, LogOptions, RealDisk, SegmentReport, Verified};
use crate::recovery::compare::compare;
use crate::recovery::recover;
use crate::store::{Standing, Views};

/// Read every byte of a stopped broker's data directory. Exit code 1 if anything is damaged.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The data directory.
    dir: PathBuf,
    /// Compare every row of the views with a fold of the whole log.
    #[arg(long)]
    views: bool,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<Outcome, CliError> {
    let dir = &arguments.dir;
    let log_dir = dir.join("log");
    if !log_dir.is_dir() {
        return Err(CliError::Usage(format!(
            "{} is no data directory: there is no log in it",
            dir.display()
        )));
    }
    let _lock = lock(dir)?;
    let disk = RealDisk::open(&log_dir)
        .map_err(|fault| CliError::Usage(format!("{}: {fault}", log_dir.display())))?;
    let options = LogOptions {
        facts_of: crate::domain::batch::facts,
        ..LogOptions::default()
    };
    let log = Log::inspect(Arc::new(disk), options)
        .map_err(|fault| CliError::Failed(fault.to_string()))?;
    let mut damages = check_log(&log, arguments.json)?;
    if arguments.views {
        damages += check_views(dir, &log, arguments.json)?;
    }
    Ok(match damages {
        0 => Outcome::Done,
        _ => Outcome::No,
    })
}

/// Keeps a broker out while it is looked at. A directory that no broker ever locked is nobody's.
fn lock(dir: &Path) -> Result<Option<fs::File>, CliError> {
    let Ok(file) = fs::File::open(dir.join("lock")) else {
        return Ok(None);
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(CliError::Usage(format!(
            "a broker is using {}; stop it first",
            dir.display()
        ))),
        Err(TryLockError::Error(fault)) => Err(CliError::Usage(format!(
            "{} cannot be locked: {fault}",
            dir.display()
        ))),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Line<'a> {
    Damage(DamageLine<'a>),
    Segment(SegmentLine<'a>),
    Views(ViewsLine<'a>),
    Checked(CheckedLine),
}

#[derive(Serialize)]
struct DamageLine<'a> {
    file: &'a str,
    from: u64,
    to: u64,
    reason: String,
    harmless: bool,
    owner: Option<u64>,
    first_offset: Option<u64>,
    offsets: Option<u32>,
}

#[derive(Serialize)]
struct SegmentLine<'a> {
    number: String,
    file: &'a str,
    flushes: u64,
    entries: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct ViewsLine<'a> {
    state: &'a str,
    owners: u64,
    rows: u64,
    differing: u64,
}

#[derive(Serialize, Default)]
struct CheckedLine {
    segments: u64,
    entries: u64,
    bytes: u64,
    damages: u64,
}

impl<'a> From<&'a Damage> for DamageLine<'a> {
    fn from(damage: &'a Damage) -> Self {
        let entry = damage.entry.as_ref();
        Self {
            file: &damage.file,
            from: damage.from.0,
            to: damage.to.0,
            reason: damage.reason.to_string(),
            harmless: damage.reason.is_harmless(),
            owner: entry.map(|entry| entry.owner.0),
            first_offset: entry
                .filter(|entry| entry.offsets > 0)
                .map(|entry| entry.first_offset.0),
            offsets: entry.map(|entry| entry.offsets),
        }
    }
}

impl<'a> From<&'a SegmentReport> for SegmentLine<'a> {
    fn from(report: &'a SegmentReport) -> Self {
        Self {
            number: report.number.to_string(),
            file: &report.file,
            flushes: report.flushes,
            entries: report.entries,
            bytes: report.bytes,
        }
    }
}

/// Reads the whole log; answers how much of it is damaged.
fn check_log(log: &Inspected, json: bool) -> Result<u64, CliError> {
    let mut sum = CheckedLine::default();
    // Whole segments that are out of reach are met at opening only.
    let unreachable = log.damage.iter().filter(|damage| {
        let known = log.reader.segments();
        !known.iter().any(|segment| segment.file == damage.file)
    });
    for damage in unreachable {
        sum.damages += 1;
        tell_damage(damage, json)?;
    }
    for found in log.reader.verify() {
        match found {
            Verified::Damaged(damage) => {
                sum.damages += 1;
                tell_damage(&damage, json)?;
            }
            Verified::Segment(report) => {
                sum.segments += 1;
                sum.entries += report.entries;
                sum.bytes += report.bytes;
                if json {
                    print_json(&Line::Segment((&report).into()))?;
                }
            }
        }
    }
    let damages = sum.damages;
    match json {
        true => print_json(&Line::Checked(sum))?,
        false => print(format_args!(
            "{} entries, {} bytes in {}: {}",
            sum.entries,
            sum.bytes,
            counted(sum.segments, "segment"),
            match damages {
                0 => "whole".to_owned(),
                damages => format!("{damages} damaged"),
            }
        ))?,
    }
    Ok(damages)
}

fn tell_damage(damage: &Damage, json: bool) -> Result<(), CliError> {
    match json {
        true => print_json(&Line::Damage(damage.into())),
        false => print(format_args!("damaged: {damage}")),
    }
}

/// Brings a copy of the views up to the end of the log, folds the log from its start beside it, and
/// compares the two row by row. Answers how many rows differ, or 1 where the views are not believed.
fn check_views(dir: &Path, log: &Inspected, json: bool) -> Result<u64, CliError> {
    let failed = |fault: crate::store::ViewsError| CliError::Failed(fault.to_string());
    let scratch = Scratch::new("check")?;
    for name in ["views", "views.mark.0", "views.mark.1"] {
        if dir.join(name).exists() {
            scratch.copy(&dir.join(name), name)?;
        }
    }
    let copy = scratch.path().join("views");
    let config = Config::default();
    let mut rotten = Vec::new();
    let found = match Views::inspect(&copy, config.views_cache_bytes, log.identity.cluster) {
        Ok(opened) => match opened.standing {
            Standing::Distrusted(why) => Some(why.to_string()),
            Standing::Trusted { mark, .. } if mark.position > log.end => {
                Some("they hold more than the log".to_owned())
            }
            Standing::Trusted { verified, .. } => {
                rotten = verified.rotten;
                None
            }
            Standing::Fresh => None,
        },
        Err(why) => Some(why.to_string()),
    };
    if let Some(why) = found {
        let state = format!("not believed: {why}; the next start rebuilds them");
        tell_views(&state, 0, 0, 1, json)?;
        return Ok(1);
    }
    let limits = Limits {
        producers_max: u32::MAX,
        ..Limits::default()
    };
    let fold = |views: &Path| {
        let crash = CrashPoints::default();
        recover(
            &log.reader,
            log.end,
            views,
            config.views_cache_bytes,
            limits,
            &crash,
        )
        .map_err(failed)
    };
    let (kept, folded) = (fold(&copy)?, fold(&scratch.path().join("folded"))?);
    let compared = compare(&kept.views, &folded.views, limits).map_err(failed)?;
    let mut differing = rotten.len() as u64;
    for (home, why) in rotten.iter().filter(|_| !json) {
        print(format_args!(
            "rotten: row wheel/{}/{}/{}: {why}; the next start finds new homes for what waits",
            home.owner.0, home.kind, home.id
        ))?;
    }
    differing += compared.differences.len() as u64;
    for difference in compared.differences.iter().filter(|_| !json) {
        print(format_args!("differs: {difference}"))?;
    }
    let state = if differing == 0 {
        "as the log folds"
    } else {
        "not as the log folds"
    };
    tell_views(state, compared.owners, compared.rows, differing, json)?;
    if differing != 0 && !json {
        print("nothing is lost: remove views/, and the next start makes them anew from the log")?;
    }
    Ok(differing)
}

fn tell_views(
    state: &str,
    owners: u64,
    rows: u64,
    differing: u64,
    json: bool,
) -> Result<(), CliError> {
    match json {
        true => print_json(&Line::Views(ViewsLine {
            state,
            owners,
            rows,
            differing,
        })),
        false => print(format_args!(
            "views: {state} ({rows} rows of {owners} owners, {differing} differing)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::LogPosition;
    use crate::log::DamageReason;

    #[test]
    fn damage_is_one_object_with_these_fields() {
        let damage = Damage {
            file: "0000000000000001.segment".to_owned(),
            from: LogPosition(4096),
            to: LogPosition(8192),
            reason: DamageReason::FlushHeader,
            entry: None,
        };
        assert_eq!(
            serde_json::to_string(&Line::Damage((&damage).into())).unwrap(),
            r#"{"damage":{"file":"0000000000000001.segment","from":4096,"to":8192,"reason":"flush header unreadable","harmless":false,"owner":null,"first_offset":null,"offsets":null}}"#
        );
    }

    #[test]
    fn what_is_no_data_directory_is_a_matter_of_usage() {
        let dir = tempfile::tempdir().unwrap();
        let arguments = Arguments {
            dir: dir.path().to_owned(),
            views: false,
            json: false,
        };
        assert_eq!(run(&arguments).unwrap_err().exit_code(), 2);
    }
}
