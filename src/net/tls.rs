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

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::CipherSuite;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

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
    #[error("{}: {source}", .path.display())]
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
    /// Certificate and key are refused, for instance because they do not belong together.
    #[error("the server's certificate or key cannot be used: {0}")]
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

/// The server's side of the handshake.
///
/// # Errors
/// Certificates that cannot be read, made or used.
pub fn server_config(certificates: &Certificates) -> Result<rustls::ServerConfig, TlsError> {
    let (chain, key) = match certificates {
        Certificates::Development { dir } => development(dir)?,
        Certificates::Given { chain, key } => (chain.clone(), key.clone()),
    };
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(read_chain(&chain)?, read_key(&key)?)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    config.ignore_client_order = true;
    Ok(config)
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
        let config = server_config(&certificates).unwrap();
        assert_eq!(config.alpn_protocols, [ALPN]);
        assert_eq!(
            (config.max_early_data_size, config.send_tls13_tickets),
            (0, 0)
        );
        let authority = fs::read(tls.join("ca.pem")).unwrap();
        let mode = |name: &str| fs::metadata(tls.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("server.key"), mode("ca.pem") & 0o444), (0o600, 0o444));
        assert_eq!(fs::read_dir(&tls).unwrap().count(), 3);
        server_config(&certificates).unwrap();
        assert_eq!(fs::read(tls.join("ca.pem")).unwrap(), authority);
        fs::remove_file(tls.join("server.key")).unwrap();
        server_config(&certificates).unwrap();
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
            |chain: PathBuf, key: PathBuf| server_config(&Certificates::Given { chain, key });
        let chain = dir.path().join("server.pem");
        let key = dir.path().join("server.key");
        assert!(given(chain.clone(), key.clone()).is_ok());
        let missing = given(dir.path().join("absent.pem"), key.clone()).unwrap_err();
        assert!(missing.to_string().contains("absent.pem"), "{missing}");
        let swapped = given(key, chain.clone()).unwrap_err();
        assert!(
            swapped
                .to_string()
                .contains("server.key holds no usable certificate"),
            "{swapped}"
        );
        let foreign = given(chain, other.path().join("server.key")).unwrap_err();
        assert!(matches!(foreign, TlsError::Rustls(_)), "{foreign}");
    }
}
