//! The TLS settings in force, replaced while the broker runs when their files are.
//!
//! - R1: a connection that comes in is served with the files as they were at most [`LOOK_EVERY`] ago;
//!   connections that are open keep what they began with.
//! - R2: files that cannot be used change nothing: the ones before stay in force, and the log says once
//!   what is wrong. Of a certificate and its key put in place one after the other, the first therefore
//!   waits for the second.
//!
//! Files are known by what the file system says of them (device, number, length, time of change), not
//! by their content. A development certificate is not watched: nobody replaces it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use quinn::ServerConfig;
use quinn::crypto::rustls::QuicServerConfig;
use ring::hkdf;

use super::certificate::{CertificateFacts, Standing};
use super::endpoint::{EndpointOptions, NetError, Path, WAITING_BYTES_MAX, transport};
use super::tls::{Certificates, server_config};
use crate::config::human::rough_span;
use crate::transport::Distrust;

/// How often the files are looked at, while connections come in.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A certificate that ends within this time is told of.
const EXPIRES_SOON: Duration = Duration::from_secs(30 * 86_400);

/// What the file system says of a file; none where it is not there.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// The TLS settings in force.
#[derive(Debug)]
pub(super) struct Live {
    certificates: Certificates,
    client_ca: Option<PathBuf>,
    tokens: Arc<hkdf::Prk>,
    handshakes_max: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    configs: Configs,
    stamps: Vec<Stamp>,
    looked: Instant,
}

#[derive(Debug, Clone)]
struct Configs {
    loopback: Arc<ServerConfig>,
    network: Arc<ServerConfig>,
}

impl Live {
    /// Reads the files.
    pub(super) fn new(options: &EndpointOptions, tokens: hkdf::Prk) -> Result<Self, NetError> {
        let tokens = Arc::new(tokens);
        let (certificates, client_ca) = (&options.certificates, options.client_ca.as_deref());
        let stamps = stamps(certificates, client_ca);
        let configs = configs(certificates, client_ca, &tokens, options.handshakes_max)?;
        Ok(Self {
            certificates: certificates.clone(),
            client_ca: options.client_ca.clone(),
            tokens,
            handshakes_max: options.handshakes_max,
            state: Mutex::new(State {
                configs,
                stamps,
                looked: Instant::now(),
            }),
        })
    }

    /// The settings for a connection that comes in on this path.
    pub(super) fn current(&self, path: Path) -> Arc<ServerConfig> {
        let mut state = self.state();
        if state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            let stamps = stamps(&self.certificates, self.client_ca.as_deref());
            if stamps != state.stamps {
                // What the log says of it is all there is to do: the settings before stay.
                let _ = self.replace(&mut state, stamps);
            }
        }
        match path {
            Path::Loopback => Arc::clone(&state.configs.loopback),
            Path::Network => Arc::clone(&state.configs.network),
        }
    }

    /// Reads the files now.
    pub(super) fn reload(&self) -> Result<(), NetError> {
        let stamps = stamps(&self.certificates, self.client_ca.as_deref());
        self.replace(&mut self.state(), stamps)
    }

    /// The stamps are older than what is read: what changes in between is seen the next time.
    fn replace(&self, state: &mut State, stamps: Vec<Stamp>) -> Result<(), NetError> {
        state.stamps = stamps;
        let client_ca = self.client_ca.as_deref();
        match configs(
            &self.certificates,
            client_ca,
            &self.tokens,
            self.handshakes_max,
        ) {
            Ok(configs) => {
                state.configs = configs;
                tracing::info!(target: "waterwheel::tls", "the certificates were read anew: new connections are served with them");
                Ok(())
            }
            Err(error) => {
                tracing::error!(target: "waterwheel::tls", %error, "the new certificates cannot be used: the ones before stay in force");
                Err(error)
            }
        }
    }

    /// Nothing is left half done by a panic in here.
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why a handshake failed, with what mends it.
    pub(super) fn explain(&self, error: &quinn::ConnectionError) -> String {
        let Some(Distrust { alert, by_peer, .. }) = Distrust::of(error) else {
            return error.to_string();
        };
        let authority = self
            .client_ca
            .as_deref()
            .unwrap_or(FilePath::new(""))
            .display();
        match (by_peer, alert) {
            (false, 116) => format!(
                "the client showed no certificate; it needs one that {authority} vouches for (--cert and --key)"
            ),
            (false, 48 | 51) => format!(
                "the client's certificate is from another authority than {authority}: {error}"
            ),
            (false, 45) => {
                format!("the client's certificate has expired or does not hold yet: {error}")
            }
            (false, 42 | 43) => {
                format!("the client's certificate is not one for clients: {error}")
            }
            (true, 42 | 45 | 46 | 48 | 51) => format!(
                "the client does not trust this broker's certificate{}: {error}",
                match &self.certificates {
                    Certificates::Given { chain, .. } => format!(" {}", chain.display()),
                    Certificates::Development { dir } =>
                        format!("; it needs --ca {}", dir.join("ca.pem").display()),
                }
            ),
            _ => error.to_string(),
        }
    }
}

fn configs(
    certificates: &Certificates,
    client_ca: Option<&FilePath>,
    tokens: &Arc<hkdf::Prk>,
    handshakes_max: usize,
) -> Result<Configs, NetError> {
    let tls = server_config(certificates, client_ca)?;
    let tls = QuicServerConfig::try_from(tls).map_err(|why| NetError::Settings(why.to_string()))?;
    let mut network = ServerConfig::new(Arc::new(tls), tokens.clone());
    network
        .transport_config(Arc::new(transport(Path::Network)))
        .max_incoming(handshakes_max)
        .incoming_buffer_size_total(WAITING_BYTES_MAX);
    let mut loopback = network.clone();
    loopback.transport_config(Arc::new(transport(Path::Loopback)));
    tell_of_expiry(certificates, client_ca);
    Ok(Configs {
        loopback: Arc::new(loopback),
        network: Arc::new(network),
    })
}

/// A certificate that ends soon is told of while there is time.
fn tell_of_expiry(certificates: &Certificates, client_ca: Option<&FilePath>) {
    for path in files(certificates, client_ca) {
        let Ok(facts) = CertificateFacts::read(path) else {
            continue; // a key, or read a moment ago
        };
        if let Standing::Holds(left) = facts.standing(SystemTime::now())
            && left < EXPIRES_SOON
        {
            let left = rough_span(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
            tracing::warn!(
                target: "waterwheel::tls",
                file = %path.display(),
                "the certificate expires in {left}: put a new one in its place, it is taken without a restart"
            );
        }
    }
}

fn files<'a>(
    certificates: &'a Certificates,
    client_ca: Option<&'a FilePath>,
) -> impl Iterator<Item = &'a FilePath> {
    let given = match certificates {
        Certificates::Given { chain, key } => Some([chain.as_path(), key.as_path()]),
        Certificates::Development { .. } => None,
    };
    given.into_iter().flatten().chain(client_ca)
}

fn stamps(certificates: &Certificates, client_ca: Option<&FilePath>) -> Vec<Stamp> {
    let stamp = |path| {
        let found = fs::metadata(path).ok()?;
        Some((
            found.dev(),
            found.ino(),
            found.len(),
            found.ctime(),
            found.ctime_nsec(),
        ))
    };
    files(certificates, client_ca).map(stamp).collect()
}
