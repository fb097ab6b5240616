//! The two ways both raw ends are set up: as the product is, and as quinn comes.
//!
//! The product's server end is opened by the product itself; its client end takes the same transport
//! settings and trusts the development authority. Quinn's defaults keep everything as it comes: crypto
//! provider, windows, datagram sizes, socket buffers.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connecting, ConnectionError, Endpoint, EndpointConfig, Incoming, ServerConfig,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use waterwheel::net::endpoint::{
    EndpointOptions, Listening, Path as PathKind, endpoint, transport,
};
use waterwheel::net::tls::{Certificates, provider};
use waterwheel::transport::socket::enlarge_buffers;
use waterwheel::wire::{ALPN, DATAGRAM_BYTES_MAX};

use crate::load::Outcome;

/// Where the server with quinn's defaults leaves its certificate.
const CERTIFICATE: &str = "raw-certificate.der";
/// The one address all of this happens on.
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Whose settings a raw end uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settings {
    /// The product's transport and TLS settings.
    Product,
    /// Quinn's defaults.
    Defaults,
}

impl Settings {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Product, Self::Defaults];

    /// Its word on a command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Product => "product",
            Self::Defaults => "defaults",
        }
    }

    /// The settings of that name.
    pub(crate) fn named(name: &str) -> Outcome<Self> {
        Self::ALL
            .into_iter()
            .find(|settings| settings.name() == name)
            .ok_or_else(|| format!("no settings are called {name}").into())
    }

    /// A door that lets clients in; what they must trust is left in `dir`.
    pub(crate) fn listen(self, dir: &Path) -> Outcome<Door> {
        match self {
            Self::Product => Ok(Door::Product(Arc::new(endpoint(&EndpointOptions {
                listen: LOOPBACK,
                data: dir.to_owned(),
                certificates: Certificates::Development {
                    dir: dir.join("tls"),
                },
                client_ca: None,
                number: 0,
                handshakes_max: 1_024,
            })?))),
            Self::Defaults => {
                let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
                let certificate = made.cert.der().clone();
                fs::write(dir.join(CERTIFICATE), &certificate)?;
                let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
                let config = ServerConfig::with_single_cert(vec![certificate], key.into())?;
                Ok(Door::Defaults(Endpoint::server(config, LOOPBACK)?))
            }
        }
    }

    /// An endpoint that connects to a server whose directory is `dir`.
    pub(crate) fn dial(self, dir: &Path) -> Outcome<Endpoint> {
        let mut roots = rustls::RootCertStore::empty();
        match self {
            Self::Product => {
                for certificate in CertificateDer::pem_file_iter(dir.join("tls/ca.pem"))? {
                    roots.add(certificate?)?;
                }
                product_client(roots)
            }
            Self::Defaults => {
                roots.add(CertificateDer::from(fs::read(dir.join(CERTIFICATE))?))?;
                let mut endpoint = Endpoint::client(LOOPBACK)?;
                endpoint.set_default_client_config(ClientConfig::with_root_certificates(
                    Arc::new(roots),
                )?);
                Ok(endpoint)
            }
        }
    }
}

/// An endpoint that accepts.
#[derive(Clone)]
pub(crate) enum Door {
    /// The product's.
    Product(Arc<Listening>),
    /// Quinn's.
    Defaults(Endpoint),
}

impl Door {
    /// The endpoint.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        match self {
            Self::Product(listening) => &listening.endpoint,
            Self::Defaults(endpoint) => endpoint,
        }
    }

    /// Lets a client in.
    pub(crate) fn admit(&self, incoming: Incoming) -> Result<Connecting, ConnectionError> {
        match self {
            Self::Product(listening) => listening.admit(incoming),
            Self::Defaults(_) => incoming.accept(),
        }
    }
}

fn product_client(roots: rustls::RootCertStore) -> Outcome<Endpoint> {
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    client.transport_config(Arc::new(transport(PathKind::Loopback)));
    let socket = UdpSocket::bind(LOOPBACK)?;
    // As the product's ends do; where the kernel grants less, it grants less to both.
    enlarge_buffers(&socket);
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(DATAGRAM_BYTES_MAX)?;
    let mut endpoint = Endpoint::new(config, None, socket, Arc::new(quinn::TokioRuntime))?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}
