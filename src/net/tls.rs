//! The server's certificate and TLS settings.
//!
//! TLS 1.3 only, ALPN `waterwheel/1`, no tickets and so neither resumption nor 0-RTT (a replayed first
//! flight could carry a produce). Ring is passed as the provider wherever one is needed and never
//! installed process-wide: an application that embeds the broker keeps its own.
//!
//! Without a given certificate a development authority and a server certificate for this machine are
//! made in the data directory:
//!
//! | file | what | mode |
//! |---|---|---|
//! | `tls/ca.pem` | the authority: what clients are told to trust | 0644 |
//! | `tls/server.pem` | the server's certificate for `localhost`, `127.0.0.1` and `::1` | 0644 |
//! | `tls/server.key` | its private key | 0600 |
//!
//! The authority's private key is thrown away once it has signed: nobody can ever sign with it again.
//! `ca.pem` is written last; where one of the three is missing all three are made anew.
//!
//! - S1: a file that cannot serve is refused before anything listens, by its name, with what to put in
//!   its place: an expired certificate, a client's, an authority that is none, a key of another pair.
//! - S2: with an authority for clients, whoever shows no certificate of its is refused in the handshake.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::CipherSuite;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use super::certificate::CertificateFacts;
use crate::wire::ALPN;

/// The names the development certificate is good for.
pub const DEVELOPMENT_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Where the server's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificates {
    /// Made in this directory unless it is there.
    Development {
        /// `tls` in the data directory.
        dir: PathBuf,
    },
    /// Given: PEM files.
    Given {
        /// The certificate, followed by its intermediates.
        chain: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
}

/// The certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file could not be read or written.
    #[error("{}: {source}; `waterwheel certs` makes certificates: server.pem is for --cert, server.key for --key, ca.pem for --client-ca", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} holds no usable {what}: {source}", .path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// A certificate could not be made.
    #[error("making the development certificate: {0}")]
    Making(#[from] rcgen::Error),
    /// A certificate cannot serve where it was given.
    #[error("{}: {why}", .path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Certificate and key are refused, for instance because they do not belong together.
    #[error("{} and {} cannot be used together ({source}): give the certificate and the key that were made together, e.g. by `waterwheel certs`", .chain.display(), .key.display())]
    Pair {
        /// The certificate's file.
        chain: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What TLS says.
        source: rustls::Error,
    },
    /// The settings of TLS are refused.
    #[error("the TLS settings are refused: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Ring with the TLS 1.3 suites only, AES-128-GCM first: the cheapest one with hardware AES.
#[must_use]
pub fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    provider
        .cipher_suites
        .retain(|suite| suite.tls13().is_some());
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

/// The server's side of the handshake. With `client_ca`, an authority's PEM file, whoever shows no
/// certificate of its is refused.
///
/// # Errors
/// Certificates that cannot be read, made or used.
pub fn server_config(
    certificates: &Certificates,
    client_ca: Option<&Path>,
) -> Result<rustls::ServerConfig, TlsError> {
    let (chain, key) = match certificates {
        Certificates::Development { dir } => development(dir)?,
        Certificates::Given { chain, key } => {
            check_server(chain)?;
            (chain.clone(), key.clone())
        }
    };
    let builder = rustls::ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => builder.with_client_cert_verifier(clients_of(path)?),
    };
    let mut config = builder
        .with_single_cert(read_chain(&chain)?, read_key(&key)?)
        .map_err(|source| TlsError::Pair { chain, key, source })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    config.ignore_client_order = true;
    Ok(config)
}

/// A certificate that no client would take is refused before anybody listens.
fn check_server(path: &Path) -> Result<(), TlsError> {
    let facts = CertificateFacts::read(path)?;
    let refuse = |why: String| {
        Err(TlsError::Certificate {
            path: path.to_path_buf(),
            why,
        })
    };
    if !facts.for_servers {
        return refuse(
            "it is a client's certificate: --cert takes a server's, such as the server.pem that \
             `waterwheel certs` makes"
                .to_owned(),
        );
    }
    match facts.standing(SystemTime::now()).why_not() {
        None => Ok(()),
        Some(why) => refuse(format!(
            "{why}; put a new certificate and its key in place (of those that `waterwheel certs` made: \
             remove both and run it again)"
        )),
    }
}

/// Lets in whom one of the file's authorities vouches for.
fn clients_of(path: &Path) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let refuse = |why: String| TlsError::Certificate {
        path: path.to_path_buf(),
        why,
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in read_chain(path)? {
        let facts = CertificateFacts::of(&certificate).map_err(refuse)?;
        if !facts.is_authority {
            return Err(refuse(
                "it is no authority's certificate: --client-ca takes the ca.pem that vouches for \
                 clients"
                    .to_owned(),
            ));
        }
        if let Some(why) = facts.standing(SystemTime::now()).why_not() {
            return Err(refuse(format!(
                "{why}: no client it vouches for could come in"
            )));
        }
        roots
            .add(certificate)
            .map_err(|why| refuse(why.to_string()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider()))
        .build()
        .map_err(|why| refuse(why.to_string()))
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .and_then(|chain| match chain.is_empty() {
            true => Err(rustls::pki_types::pem::Error::NoItemsFound),
            false => Ok(chain),
        });
    chain.map_err(|source| TlsError::Pem {
        path: path.to_path_buf(),
        what: "certificate",
        source,
    })
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|source| TlsError::Pem {
        path: path.to_path_buf(),
        what: "private key",
        source,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::File {
        path: path.to_path_buf(),
        source,
    })
}

/// The development certificate and its key, made if one of the files is missing.
fn development(dir: &Path) -> Result<(PathBuf, PathBuf), TlsError> {
    let [authority, chain, key] = ["ca.pem", "server.pem", "server.key"].map(|name| dir.join(name));
    if ![&authority, &chain, &key].iter().all(|path| path.exists()) {
        make(dir, &authority, &chain, &key)?;
    }
    Ok((chain, key))
}

fn make(dir: &Path, authority: &Path, chain: &Path, key: &Path) -> Result<(), TlsError> {
    fs::create_dir_all(dir).map_err(|source| TlsError::File {
        path: dir.to_path_buf(),
        source,
    })?;
    let mut issuer = CertificateParams::default();
    issuer.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    issuer.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    issuer
        .distinguished_name
        .push(DnType::CommonName, "Waterwheel development authority");
    let issuer = CertifiedIssuer::self_signed(issuer, KeyPair::generate()?)?;

    let server_key = KeyPair::generate()?;
    let mut server = CertificateParams::new(DEVELOPMENT_NAMES.map(str::to_owned))?;
    server
        .distinguished_name
        .push(DnType::CommonName, "Waterwheel development server");
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.use_authority_key_identifier_extension = true;
    let server = server.signed_by(&server_key, &issuer)?;

    // The files one by one, each whole or not at all, the one clients wait for last.
    write(key, &server_key.serialize_pem(), 0o600)?;
    write(chain, &server.pem(), 0o644)?;
    write(authority, &issuer.pem(), 0o644)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    write_whole(path, text.as_bytes(), mode).map_err(|source| TlsError::File {
        path: path.to_path_buf(),
        source,
    })
}

/// Puts a file in place whole or not at all, durably.
pub(super) fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let fresh = path.with_file_name(name);
    let _ = fs::remove_file(&fresh);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(dir) => fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_development_certificate_is_made_once_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let tls = dir.path().join("tls");
        let certificates = Certificates::Development { dir: tls.clone() };
        let config = server_config(&certificates, None).unwrap();
        assert_eq!(config.alpn_protocols, [ALPN]);
        assert_eq!(
            (config.max_early_data_size, config.send_tls13_tickets),
            (0, 0)
        );
        let authority = fs::read(tls.join("ca.pem")).unwrap();
        let mode = |name: &str| fs::metadata(tls.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("server.key"), mode("ca.pem") & 0o444), (0o600, 0o444));
        assert_eq!(fs::read_dir(&tls).unwrap().count(), 3);
        server_config(&certificates, None).unwrap();
        assert_eq!(fs::read(tls.join("ca.pem")).unwrap(), authority);
        fs::remove_file(tls.join("server.key")).unwrap();
        server_config(&certificates, None).unwrap();
        assert_ne!(fs::read(tls.join("ca.pem")).unwrap(), authority);
    }

    #[test]
    fn the_cheapest_suite_comes_first_and_none_is_older_than_tls_13() {
        let suites = provider().cipher_suites;
        assert_eq!(suites[0].suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert!(suites.iter().all(|suite| suite.tls13().is_some()));
    }

    #[test]
    fn given_files_that_do_not_serve_are_named() {
        let dir = tempfile::tempdir().unwrap();
        development(dir.path()).unwrap();
        let other = tempfile::tempdir().unwrap();
        development(other.path()).unwrap();
        let given =
            |chain: PathBuf, key: PathBuf| server_config(&Certificates::Given { chain, key }, None);
        let chain = dir.path().join("server.pem");
        let key = dir.path().join("server.key");
        assert!(given(chain.clone(), key.clone()).is_ok());
        let missing = given(dir.path().join("absent.pem"), key.clone()).unwrap_err();
        assert!(missing.to_string().contains("absent.pem"), "{missing}");
        let swapped = given(key, chain.clone()).unwrap_err();
        assert!(
            swapped
                .to_string()
                .contains("server.key: it holds no PEM certificate"),
            "{swapped}"
        );
        let foreign = given(chain, other.path().join("server.key")).unwrap_err();
        assert!(matches!(foreign, TlsError::Pair { .. }), "{foreign}");
    }

    #[test]
    fn a_certificate_for_something_else_is_refused_by_its_name() {
        use crate::net::authority::{self, Wanted};
        let dir = tempfile::tempdir().unwrap();
        let wanted = Wanted {
            hosts: Vec::new(),
            clients: vec!["client".to_owned()],
            days: 1,
            now: SystemTime::now(),
        };
        authority::make(dir.path(), &wanted).unwrap();
        let path = |name: &str| dir.path().join(name);
        let given = |name: &str, client_ca: &str| {
            let certificates = Certificates::Given {
                chain: path(&format!("{name}.pem")),
                key: path(&format!("{name}.key")),
            };
            server_config(&certificates, Some(&path(client_ca)))
        };
        given("server", "ca.pem").unwrap();
        let said = given("client", "ca.pem").unwrap_err().to_string();
        assert!(said.contains("client.pem: it is a client's"), "{said}");
        let said = given("server", "client.pem").unwrap_err().to_string();
        assert!(said.contains("client.pem: it is no authority"), "{said}");
        let long_ago = Wanted {
            now: SystemTime::now() - std::time::Duration::from_secs(3 * 86_400),
            ..wanted
        };
        authority::make(&path("old"), &long_ago).unwrap();
        let said = given("old/server", "ca.pem").unwrap_err().to_string();
        assert!(said.contains("server.pem: it expired 2d"), "{said}");
    }
}
