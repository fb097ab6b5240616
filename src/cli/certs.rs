//! `waterwheel certs`: an authority, and the pairs of certificate and key that it vouches for.
//!
//! With `--json` one object a line: making, `file` and `made` (false: it was there and is kept); with
//! `--show`, `file`, `what` (`authority`, `server`, `client`, `server and client`), `subject`, `issuer`,
//! `names`, `not_before`, `not_after`, `days_left` (negative: expired), `key` (`private`, `open to
//! others`, or null where there is none).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::exit::{CliError, Outcome};
use super::output::say;
use super::table::Table;
use super::{print, print_json};
use crate::net::authority::{self, AuthorityError, PAIR_DAYS_MAX, Placed, Wanted};
use crate::net::certificate::CertificateFacts;

/// What is put beside the certificates, so that nobody has to look for it.
const README: &str = include_str!("../../certs/README.md");
/// Keeps keys, and whatever else is made here, out of the history.
const IGNORED: &str = include_str!("../../certs/.gitignore");
const DAY_S: i64 = 86_400;

/// Make certificates: an authority, a server's pair, and a client's. What is there is never overwritten.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where they are; made if it is not there.
    #[arg(value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
    /// A host clients will name the broker by: a name or an address. May be given more than once;
    /// localhost, 127.0.0.1 and ::1 are always in.
    #[arg(long = "host", value_name = "NAME|IP", conflicts_with = "show")]
    hosts: Vec<String>,
    /// A client, by name: DIR/NAME.pem and DIR/NAME.key. May be given more than once [default: client]
    #[arg(long = "client", value_name = "NAME", conflicts_with = "show")]
    clients: Vec<String>,
    /// How many days the pairs hold; the authority holds 3650.
    #[arg(long, value_name = "N", default_value_t = PAIR_DAYS_MAX, conflicts_with = "show",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(PAIR_DAYS_MAX)))]
    days: u32,
    /// Make nothing; print what is there, whom it names and when it expires. Exit code 1 if any has.
    #[arg(long)]
    show: bool,
    /// Print one JSON object per file.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<Outcome, CliError> {
    match arguments.show {
        true => show(&arguments.dir, arguments.json),
        false => make(arguments),
    }
}

fn make(arguments: &Arguments) -> Result<Outcome, CliError> {
    let dir = &arguments.dir;
    let mut clients = arguments.clients.clone();
    if clients.is_empty() {
        clients.push("client".to_owned());
    }
    let wanted = Wanted {
        hosts: arguments.hosts.clone(),
        clients,
        days: arguments.days,
        now: SystemTime::now(),
    };
    // Before the first key is written, so that none is ever without it.
    for (name, text) in [(".gitignore", IGNORED), ("README.md", README)] {
        place(&dir.join(name), text)?;
    }
    let placed = authority::make(dir, &wanted).map_err(not_made)?;
    for Placed { path, made } in &placed {
        match arguments.json {
            true => print_json(&PlacedLine {
                file: path,
                made: *made,
            })?,
            false => print(format_args!(
                "{} {}",
                if *made { "made" } else { "kept" },
                path.display()
            ))?,
        }
    }
    if !arguments.json {
        say(next(dir));
    }
    Ok(Outcome::Done)
}

fn place(path: &Path, text: &str) -> Result<(), CliError> {
    if path.exists() {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)
            .map_err(|fault| CliError::Usage(format!("{}: {fault}", dir.display())))?;
    }
    authority::write_new(path, text, 0o644).map_err(not_made)
}

/// What to do with them.
fn next(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "next: waterwheel serve --cert {dir}/server.pem --key {dir}/server.key --client-ca {dir}/ca.pem\n\
         and   waterwheel status --ca {dir}/ca.pem --cert {dir}/client.pem --key {dir}/client.key"
    )
}

/// What cannot be made is a matter of what is there, or of what was asked for.
fn not_made(error: AuthorityError) -> CliError {
    let said = error.to_string();
    match error {
        AuthorityError::File { .. } | AuthorityError::Name { .. } => CliError::Usage(said),
        AuthorityError::Half { .. }
        | AuthorityError::Names { .. }
        | AuthorityError::Authority { .. }
        | AuthorityError::Making { .. } => CliError::Failed(said),
    }
}

#[derive(Serialize)]
struct PlacedLine<'a> {
    file: &'a Path,
    made: bool,
}

#[derive(Serialize)]
struct ShownLine {
    file: PathBuf,
    what: &'static str,
    subject: String,
    issuer: String,
    names: Vec<String>,
    not_before: String,
    not_after: String,
    days_left: i64,
    key: Option<&'static str>,
}

impl ShownLine {
    fn of(path: &Path, facts: CertificateFacts, now_s: i64) -> Self {
        Self {
            file: path.to_path_buf(),
            what: match (facts.is_authority, facts.for_servers, facts.for_clients) {
                (true, ..) => "authority",
                (false, true, false) => "server",
                (false, false, true) => "client",
                (false, true, true) => "server and client",
                (false, false, false) => "neither server nor client",
            },
            subject: facts.subject,
            issuer: facts.issuer,
            names: facts.names,
            not_before: date(facts.not_before_s),
            not_after: date(facts.not_after_s),
            days_left: (facts.not_after_s - now_s).div_euclid(DAY_S),
            key: key_beside(path),
        }
    }

    fn is_expired(&self) -> bool {
        self.days_left < 0
    }
}

fn date(second: i64) -> String {
    jiff::Timestamp::from_second(second).map_or_else(|_| second.to_string(), |at| at.to_string())
}

/// Whether the key beside a certificate is its owner's alone.
fn key_beside(certificate: &Path) -> Option<&'static str> {
    let key = fs::metadata(certificate.with_extension("key")).ok()?;
    Some(match key.permissions().mode() & 0o077 {
        0 => "private",
        _ => "open to others",
    })
}

fn show(dir: &Path, json: bool) -> Result<Outcome, CliError> {
    let unusable = |fault: std::io::Error| {
        CliError::Usage(format!(
            "{}: {fault}; `waterwheel certs {}` makes certificates there",
            dir.display(),
            dir.display()
        ))
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(unusable)? {
        let path = entry.map_err(unusable)?.path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            paths.push(path);
        }
    }
    paths.sort();
    if paths.is_empty() {
        say(format_args!(
            "no certificates (*.pem) in {}; make some: waterwheel certs {}",
            dir.display(),
            dir.display()
        ));
    }
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now_s = since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    });
    let mut outcome = Outcome::Done;
    let mut table = Table::new(&[
        "file",
        "what",
        "issuer",
        "expires",
        "days left",
        "key",
        "names",
    ]);
    for path in paths {
        let facts = match CertificateFacts::read(&path) {
            Ok(facts) => facts,
            Err(error) => {
                say(error);
                outcome = Outcome::No;
                continue;
            }
        };
        let line = ShownLine::of(&path, facts, now_s);
        if line.is_expired() {
            outcome = Outcome::No;
            say(format_args!(
                "{} has expired: remove it and its key and run `waterwheel certs` again",
                path.display()
            ));
        }
        if json {
            print_json(&line)?;
            continue;
        }
        table.row([
            line.file.display().to_string(),
            line.what.to_owned(),
            line.issuer,
            line.not_after,
            line.days_left.to_string(),
            line.key.unwrap_or("none").to_owned(),
            line.names.join(" "),
        ]);
    }
    if !json {
        table.print()?;
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_of_a_certificate_has_these_fields() {
        let facts = CertificateFacts {
            subject: "client".to_owned(),
            issuer: "us".to_owned(),
            names: vec!["client".to_owned()],
            not_before_s: 0,
            not_after_s: 86_400,
            is_authority: false,
            for_servers: false,
            for_clients: true,
        };
        let line = ShownLine::of(Path::new("/nowhere/client.pem"), facts, 86_401);
        assert!(line.is_expired());
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"file":"/nowhere/client.pem","what":"client","subject":"client","issuer":"us","names":["client"],"not_before":"1970-01-01T00:00:00Z","not_after":"1970-01-02T00:00:00Z","days_left":-1,"key":null}"#
        );
    }
}
