//! The two ways both raw ends are set up: as the product is, and as quinn comes.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, EndpointConfig, ServerConfig, TransportConfig};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::load::Outcome;

const CERTIFICATE: &str = "raw-certificate.der";
const ALPN: &[u8] = b"waterwheel/1";

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

    /// An endpoint that accepts, with a fresh certificate put into `dir`.
    pub(crate) fn listen(self, dir: &Path) -> Outcome<Endpoint> {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
        let certificate = made.cert.der().clone();
        fs::write(dir.join(CERTIFICATE), &certificate)?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(self.provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key.into())?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
        config.transport_config(Arc::new(self.transport()));
        self.open(Some(config))
    }

    /// An endpoint that connects, trusting the certificate in `dir`.
    pub(crate) fn dial(self, dir: &Path) -> Outcome<Endpoint> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(fs::read(dir.join(CERTIFICATE))?))?;
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(self.provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        config.transport_config(Arc::new(self.transport()));
        let mut endpoint = self.open(None)?;
        endpoint.set_default_client_config(config);
        Ok(endpoint)
    }

    fn open(self, server: Option<ServerConfig>) -> Outcome<Endpoint> {
        let socket = std::net::UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let mut config = EndpointConfig::default();
        if self == Self::Product {
            config.max_udp_payload_size(65_527)?;
        }
        Ok(Endpoint::new(
            config,
            server,
            socket,
            Arc::new(quinn::TokioRuntime),
        )?)
    }

    fn provider(self) -> rustls::crypto::CryptoProvider {
        let mut provider = rustls::crypto::ring::default_provider();
        if self == Self::Product {
            provider
                .cipher_suites
                .retain(|suite| suite.tls13().is_some());
            provider.cipher_suites.sort_by_key(|suite| {
                suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256
            });
        }
        provider
    }

    fn transport(self) -> TransportConfig {
        let mut config = TransportConfig::default();
        if self == Self::Product {
            let mut discovery = quinn::MtuDiscoveryConfig::default();
            discovery.upper_bound(65_527).minimum_change(64);
            config
                .stream_receive_window(quinn::VarInt::from_u32(2 << 20))
                .receive_window(quinn::VarInt::from_u32(8 << 20))
                .send_window(4 << 20)
                .mtu_discovery_config(Some(discovery));
        }
        config
    }
}
