//! Makes certificates: an authority, and pairs of certificate and key that it vouches for.
//!
//! In a directory, for `waterwheel certs`:
//!
//! | file | what | mode |
//! |---|---|---|
//! | `ca.pem`, `ca.key` | the authority: what both sides trust, and what signs | 0644, 0600 |
//! | `server.pem`, `server.key` | a broker's pair, for its host names | 0644, 0600 |
//! | `NAME.pem`, `NAME.key` | a client's pair, `client` unless named otherwise | 0644, 0600 |
//!
//! - A1: nothing that is there is ever written again: a pair that is there is kept, half a pair is an
//!   error, and what is missing is signed by the authority that is there.
//! - A2: a pair is good for one thing, serving or being a client, never for both, and ends no later than
//!   its authority.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::certificate::CertificateFacts;
use super::tls::TlsError;

/// How long an authority holds, in days: 10 years.
pub const AUTHORITY_DAYS: u32 = 3650;
/// How long a pair holds at most, in days: what TLS clients take.
pub const PAIR_DAYS_MAX: u32 = 825;
/// Hosts every server's certificate is good for.
pub const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Certificates hold from a little before they are made: other clocks may be late.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// What is to be in the directory.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Hosts, names or addresses, the server's certificate is good for beside [`LOCAL_HOSTS`].
    pub hosts: Vec<String>,
    /// The clients' pairs, by name.
    pub clients: Vec<String>,
    /// How long new pairs hold, in days, 1 to [`PAIR_DAYS_MAX`].
    pub days: u32,
    /// The time.
    pub now: SystemTime,
}

/// A file of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Which.
    pub path: PathBuf,
    /// Whether it was made now; else it was there.
    pub made: bool,
}

/// Why certificates are not made. What was made before stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// A file or directory cannot be used.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Of a certificate and its key only one is there.
    #[error("{} is there, but {} is not: restore it, or remove what is left of the pair", .there.display(), .missing.display())]
    Half {
        /// The file that is there.
        there: PathBuf,
        /// The one that is not.
        missing: PathBuf,
    },
    /// The server's certificate is there and does not name a host.
    #[error(
        "{} is there and does not name {host}, only {}; nothing is overwritten: remove it and its key, then make them again with every --host",
        .path.display(), .names.join(", ")
    )]
    Names {
        /// The certificate.
        path: PathBuf,
        /// The host it should name.
        host: String,
        /// The hosts it names.
        names: Vec<String>,
    },
    /// No host or name of a client.
    #[error("{name:?} is no {what}")]
    Name {
        /// What was written.
        name: String,
        /// What it should be.
        what: &'static str,
    },
    /// The authority that is there cannot sign.
    #[error("{}: {why}; remove {} and its key to begin with a new authority", .path.display(), .path.display())]
    Authority {
        /// Its certificate.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A certificate cannot be made.
    #[error("making {}: {source}", .path.display())]
    Making {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: rcgen::Error,
    },
}

/// Makes what is missing of an authority, a server's pair and the clients' pairs.
///
/// # Errors
/// [`AuthorityError`].
pub fn make(dir: &Path, wanted: &Wanted) -> Result<Vec<Placed>, AuthorityError> {
    for name in &wanted.clients {
        check_client(name)?;
    }
    fs::create_dir_all(dir).map_err(|source| file(dir, source))?;
    let server = Pair::of(dir, "server");
    let mut names: Vec<String> = LOCAL_HOSTS.map(str::to_owned).to_vec();
    for host in &wanted.hosts {
        check_host(host)?;
        if !names.contains(host) {
            names.push(host.clone());
        }
    }
    if server.is_there()? {
        server.check_names(&wanted.hosts)?;
    }
    let authority = Pair::of(dir, "ca");
    let mut placed = Vec::new();
    if authority.is_there()? {
        placed.extend(authority.placed(false));
    } else {
        authority.make_authority(wanted.now)?;
        placed.extend(authority.placed(true));
    }
    let clients = wanted.clients.iter().map(|name| {
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        (Pair::of(dir, name), vec![name.clone()], usage)
    });
    let pairs =
        std::iter::once((server, names, ExtendedKeyUsagePurpose::ServerAuth)).chain(clients);
    for (pair, names, usage) in pairs {
        let made = !pair.is_there()?;
        if made {
            pair.make_signed_by(&authority, names, usage, wanted)?;
        }
        placed.extend(pair.placed(made));
    }
    Ok(placed)
}

/// A host is a name or an address; `*.` may stand for one label.
fn check_host(host: &str) -> Result<(), AuthorityError> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let name = host.strip_prefix("*.").unwrap_or(host);
    let is_name = host.len() <= 253 && name.split('.').all(label);
    match is_name || host.parse::<std::net::IpAddr>().is_ok() {
        true => Ok(()),
        false => Err(AuthorityError::Name {
            name: host.to_owned(),
            what: "host: write a name or an address without a port, e.g. broker.example or 10.0.0.7",
        }),
    }
}

/// A client's name is the name of its files.
fn check_client(name: &str) -> Result<(), AuthorityError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let is_name = !name.is_empty() && name.len() <= 63 && name.bytes().all(is_plain);
    match is_name && name != "ca" && name != "server" {
        true => Ok(()),
        false => Err(AuthorityError::Name {
            name: name.to_owned(),
            what: "name of a client: write 1 to 63 letters, digits, `-` or `_`, but not ca or server",
        }),
    }
}

struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

impl Pair {
    fn of(dir: &Path, name: &str) -> Self {
        Self {
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        }
    }

    fn placed(&self, made: bool) -> [Placed; 2] {
        [&self.certificate, &self.key].map(|path| Placed {
            path: path.clone(),
            made,
        })
    }

    fn is_there(&self) -> Result<bool, AuthorityError> {
        match (self.certificate.exists(), self.key.exists()) {
            (true, true) => Ok(true),
            (false, false) => Ok(false),
            (true, false) => Err(AuthorityError::Half {
                there: self.certificate.clone(),
                missing: self.key.clone(),
            }),
            (false, true) => Err(AuthorityError::Half {
                there: self.key.clone(),
                missing: self.certificate.clone(),
            }),
        }
    }

    fn check_names(&self, hosts: &[String]) -> Result<(), AuthorityError> {
        let facts =
            CertificateFacts::read(&self.certificate).map_err(|error| self.unusable(&error))?;
        match hosts.iter().find(|host| !facts.names.contains(host)) {
            None => Ok(()),
            Some(host) => Err(AuthorityError::Names {
                path: self.certificate.clone(),
                host: host.clone(),
                names: facts.names,
            }),
        }
    }

    fn unusable(&self, error: &TlsError) -> AuthorityError {
        let said = error.to_string();
        let path = self.certificate.display().to_string();
        let why = said
            .trim_start_matches(&path)
            .trim_start_matches(": ")
            .to_owned();
        AuthorityError::Authority {
            path: self.certificate.clone(),
            why,
        }
    }

    fn making(&self) -> impl Fn(rcgen::Error) -> AuthorityError {
        let path = self.certificate.clone();
        move |source| AuthorityError::Making {
            path: path.clone(),
            source,
        }
    }

    fn make_authority(&self, now: SystemTime) -> Result<(), AuthorityError> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "Waterwheel authority");
        hold(&mut params, now, DAY * AUTHORITY_DAYS);
        let key = KeyPair::generate().map_err(self.making())?;
        let made = params.self_signed(&key).map_err(self.making())?;
        self.write(&made.pem(), &key)
    }

    fn make_signed_by(
        &self,
        authority: &Self,
        names: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
        wanted: &Wanted,
    ) -> Result<(), AuthorityError> {
        let (issuer, left) = authority.issuer(wanted.now)?;
        let foreign = names
            .iter()
            .find(|name| !LOCAL_HOSTS.contains(&name.as_str()));
        let name = foreign.or(names.first()).cloned().unwrap_or_default();
        let mut params = CertificateParams::new(names).map_err(self.making())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        hold(&mut params, wanted.now, left.min(DAY * wanted.days));
        let key = KeyPair::generate().map_err(self.making())?;
        let made = params.signed_by(&key, &issuer).map_err(self.making())?;
        self.write(&made.pem(), &key)
    }

    /// What signs, and how long it still holds.
    fn issuer(
        &self,
        now: SystemTime,
    ) -> Result<(Issuer<'static, KeyPair>, Duration), AuthorityError> {
        let refuse = |why: String| AuthorityError::Authority {
            path: self.certificate.clone(),
            why,
        };
        let facts =
            CertificateFacts::read(&self.certificate).map_err(|error| self.unusable(&error))?;
        if !facts.is_authority {
            return Err(refuse("it is no authority and cannot sign".to_owned()));
        }
        let standing = facts.standing(now);
        let super::certificate::Standing::Holds(left) = standing else {
            return Err(refuse(standing.why_not().unwrap_or_default()));
        };
        let read = |path: &Path| fs::read_to_string(path).map_err(|source| file(path, source));
        let key = KeyPair::from_pem(&read(&self.key)?)
            .map_err(|why| refuse(format!("{} holds no usable key: {why}", self.key.display())))?;
        let issuer = Issuer::from_ca_cert_pem(&read(&self.certificate)?, key)
            .map_err(|why| refuse(why.to_string()))?;
        Ok((issuer, left))
    }

    /// The key first: a certificate without a key is never there.
    fn write(&self, certificate: &str, key: &KeyPair) -> Result<(), AuthorityError> {
        write_new(&self.key, &key.serialize_pem(), 0o600)?;
        write_new(&self.certificate, certificate, 0o644)
    }
}

fn hold(params: &mut CertificateParams, now: SystemTime, span: Duration) {
    let now = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(CLOCK_SKEW);
    params.not_after = epoch + (now + span);
}

/// Writes a file that is not there yet, durably; what could only be begun is removed.
///
/// # Errors
/// It is there, or cannot be written.
pub fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let mut target = options.open(path).map_err(|source| file(path, source))?;
    let written = target
        .write_all(text.as_bytes())
        .and_then(|()| target.sync_all());
    written.map_err(|source| {
        // What is left of it would keep the next attempt from beginning.
        let _ = fs::remove_file(path);
        file(path, source)
    })
}

fn file(path: &Path, source: io::Error) -> AuthorityError {
    AuthorityError::File {
        path: path.to_path_buf(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;

    fn wanted(hosts: &[&str], clients: &[&str]) -> Wanted {
        Wanted {
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            clients: clients.iter().map(|name| (*name).to_owned()).collect(),
            days: PAIR_DAYS_MAX,
            now: SystemTime::now(),
        }
    }

    fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        entries
            .map(|entry| {
                (
                    entry.file_name().into_string().unwrap(),
                    fs::read(entry.path()).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn what_is_there_is_kept_and_what_is_missing_is_signed_by_the_same_authority() {
        let dir = tempfile::tempdir().unwrap();
        let made = make(
            dir.path(),
            &wanted(&["broker.example", "10.0.0.7"], &["client"]),
        )
        .unwrap();
        assert_eq!(
            (made.len(), made.iter().all(|placed| placed.made)),
            (6, true)
        );
        let before = files(dir.path());
        for (name, mode) in [
            ("ca.key", 0o600),
            ("server.key", 0o600),
            ("client.key", 0o600),
        ] {
            let found = fs::metadata(dir.path().join(name))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(found & 0o777, mode, "{name}");
        }
        let kept = make(dir.path(), &wanted(&["10.0.0.7"], &["client", "billing"])).unwrap();
        let new: Vec<_> = kept.iter().filter(|placed| placed.made).collect();
        assert_eq!(new.len(), 2, "{new:?}");
        let after = files(dir.path());
        assert!(
            before
                .iter()
                .all(|(name, bytes)| after.get(name) == Some(bytes))
        );
        let facts = |name: &str| CertificateFacts::read(&dir.path().join(name)).unwrap();
        let (ca, server, client) = (facts("ca.pem"), facts("server.pem"), facts("billing.pem"));
        assert!(ca.is_authority && !server.is_authority && !client.is_authority);
        assert_eq!(
            server.names,
            [
                "localhost",
                "127.0.0.1",
                "::1",
                "broker.example",
                "10.0.0.7"
            ]
        );
        assert_eq!((server.for_servers, server.for_clients), (true, false));
        assert_eq!((client.for_servers, client.for_clients), (false, true));
        assert_eq!(
            (client.subject.as_str(), client.issuer.as_str()),
            ("billing", "Waterwheel authority")
        );
        let days = |facts: &CertificateFacts| (facts.not_after_s - facts.not_before_s) / 86_400;
        assert_eq!((days(&ca), days(&server)), (3650, 825));
    }

    #[test]
    fn what_cannot_be_made_says_what_stands_in_the_way() {
        let refused = |dir: &Path, wanted: &Wanted| make(dir, wanted).unwrap_err().to_string();
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        for host in ["", "a b", "host:7411", "*", "a..b"] {
            assert!(
                refused(dir, &wanted(&[host], &[])).contains("is no host"),
                "{host}"
            );
        }
        for name in ["ca", "", "../x"] {
            assert!(
                refused(dir, &wanted(&[], &[name])).contains("name of a client"),
                "{name}"
            );
        }
        make(dir, &wanted(&["*.brokers.example"], &["client"])).unwrap();
        let said = refused(dir, &wanted(&["other.example"], &[]));
        assert!(
            said.contains("server.pem") && said.contains("other.example"),
            "{said}"
        );
        fs::remove_file(dir.join("client.key")).unwrap();
        let said = refused(dir, &wanted(&[], &["client"]));
        assert!(said.contains("client.pem is there, but"), "{said}");
        fs::copy(dir.join("server.pem"), dir.join("ca.pem")).unwrap();
        let said = refused(dir, &wanted(&[], &["another"]));
        assert!(said.contains("it is no authority"), "{said}");
        let late = Wanted {
            now: SystemTime::now() + DAY * 4000,
            ..wanted(&[], &["late"])
        };
        let old = tempfile::tempdir().unwrap();
        make(old.path(), &wanted(&[], &[])).unwrap();
        assert!(refused(old.path(), &late).contains("it expired"));
        let near = Wanted {
            now: SystemTime::now() + DAY * 3600,
            ..wanted(&[], &["near"])
        };
        make(old.path(), &near).unwrap();
        let facts = |name: &str| CertificateFacts::read(&old.path().join(name)).unwrap();
        assert!((facts("near.pem").not_after_s - facts("ca.pem").not_after_s).abs() <= 1);
    }
}
