//! The QUIC endpoint: its socket, its transport settings, and the identity that outlives the process.
//!
//! - N1: nothing in flight is believed twice: no 0-RTT, no resumption.
//! - N2: a restarted broker answers the next packet of a client of its former life with a stateless
//!   reset, so that the client learns of the restart after one round trip instead of an idle timeout.
//!   Reset tokens and connection ids are made from `endpoint.secret` in the data directory.
//! - N3: what a peer can make this side buffer is bounded by the receive windows.
//!
//! **Connection id**, 12 bytes: the endpoint's number (so that several sockets can share the port
//! later), 7 bytes nobody can guess, and 4 bytes of a keyed checksum over those 8, by which strangers'
//! packets are told from those of a former life.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quinn::{
    ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use quinn_proto::InvalidCid;
use ring::{hkdf, hmac};

use crate::transport::socket::{self, Granted, SOCKET_BUFFER_BYTES, loopback_acknowledgements};
use crate::wire::{
    DATAGRAM_BYTES_MAX, IDLE_TIMEOUT_MS, LOOPBACK_BYTES_FIRST, LOOPBACK_BYTES_MAX,
    LOOPBACK_WINDOW_BYTES, SEGMENT_BYTES_MAX,
};

use super::live::Live;
use super::tls::{Certificates, TlsError, write_whole};

/// What one stream may have under way towards this side, in bytes.
pub const STREAM_RECEIVE_WINDOW_BYTES: u32 = 2 << 20;
/// The same from the machine's own clients, whose way is short: eight that send flat out together then
/// hardly overflow the socket they share ([`SOCKET_BUFFER_BYTES`]) before their connections' windows are
/// their shares of it (`window.rs`).
pub const LOOPBACK_STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// What one connection may have under way towards this side, in bytes; never more (`window.rs`, F4).
pub const CONNECTION_RECEIVE_WINDOW_BYTES: u32 = 8 << 20;
/// What one connection may have sent and not heard acknowledged, in bytes.
pub const SEND_WINDOW_BYTES: u64 = 4 << 20;
/// Streams in both directions a peer may have open: its control stream and its producers'.
pub const BIDIRECTIONAL_STREAMS_MAX: u32 = 256;
/// Streams in one direction a peer may have open: a reader's deliveries each.
pub const UNIDIRECTIONAL_STREAMS_MAX: u32 = 1024;
/// The least time between two stateless resets: a hundred clients of a restarted broker hear of it
/// within ten milliseconds, and a flood of strays cannot be turned into more than this.
const RESET_INTERVAL: Duration = Duration::from_micros(100);
/// The least gain for which path discovery goes on searching, in bytes.
const MTU_CHANGE_BYTES_MIN: u16 = 64;
/// What all connections that wait for their handshake may have sent beyond their first packet, in bytes.
pub(super) const WAITING_BYTES_MAX: u64 = 8 << 20;
const SECRET_BYTES: usize = 32;
const ID_BYTES: usize = 12;

/// What lies between the two ends. Measured over loopback, 2 GB on one stream between two threads:
/// 1452-byte segments 0.6 GB/s at 2.9 CPU-s/GB for both ends, 6500-byte segments 1.4 GB/s at 1.5,
/// whole datagrams of 65 463 bytes 2.0 GB/s at 1.1; but 1452 bytes without segmentation 0.17 GB/s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// One machine: datagrams as large as they come, one by one.
    Loopback,
    /// Anything else: packets of the path's size, handed to the kernel in segments.
    Network,
}

impl Path {
    /// The path to an address, an IPv4 one in IPv6 form too.
    #[must_use]
    pub fn to(address: IpAddr) -> Self {
        match address.to_canonical().is_loopback() {
            true => Self::Loopback,
            false => Self::Network,
        }
    }
}

/// How to open an endpoint.
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The data directory: holds `endpoint.secret`.
    pub data: PathBuf,
    /// The server's certificate.
    pub certificates: Certificates,
    /// The authority that vouches for clients, a PEM file; none where nobody is asked for a certificate.
    pub client_ca: Option<PathBuf>,
    /// Which of the endpoints that share the port this is.
    pub number: u8,
    /// Handshakes that may be waiting at a time; more are refused.
    pub handshakes_max: usize,
}

/// The endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address is taken or not this machine's.
    #[error(
        "cannot listen on {address}: {source}; name another one with --listen, and give it to clients with --server"
    )]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The secret file cannot be read or made.
    #[error("{}: {source}", .path.display())]
    Secret {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The settings do not fit together.
    #[error("the QUIC settings are refused: {0}")]
    Settings(String),
}

/// An open endpoint.
#[derive(Debug, Clone)]
pub struct Listening {
    /// The endpoint: where connections come in.
    pub endpoint: quinn::Endpoint,
    live: Arc<Live>,
    /// What the system granted its socket for what comes in, in bytes.
    pub(super) receive_bytes: usize,
}

impl Listening {
    /// Lets a connection in, with the settings of the path it comes on and the certificates that are in
    /// place now.
    ///
    /// # Errors
    /// The first packet is refused already, as one is that speaks another protocol.
    pub fn admit(
        &self,
        incoming: quinn::Incoming,
    ) -> Result<quinn::Connecting, quinn::ConnectionError> {
        let path = Path::to(incoming.remote_address().ip());
        incoming.accept_with(self.live.current(path))
    }

    /// Reads the certificates anew, for every connection from now on; those that are open stay.
    ///
    /// # Errors
    /// They cannot be used: the ones before stay in force.
    pub fn reload(&self) -> Result<(), NetError> {
        self.live.reload()
    }

    /// Why a handshake failed, with what mends it, for the broker's operator.
    #[must_use]
    pub fn explain(&self, error: &quinn::ConnectionError) -> String {
        self.live.explain(error)
    }
}

/// Whether an address can be listened on now, where it names a port: a broker that cannot listen is to make
/// nothing.
///
/// # Errors
/// [`NetError::Bind`], as [`endpoint`] would say it.
pub fn probe(listen: SocketAddr) -> Result<(), NetError> {
    UdpSocket::bind(listen)
        .map(drop)
        .map_err(|source| NetError::Bind {
            address: listen,
            source,
        })
}

/// Opens the endpoint, inside a tokio runtime.
///
/// # Errors
/// What keeps it from listening.
pub fn endpoint(options: &EndpointOptions) -> Result<Listening, NetError> {
    let secret = Secret::load(&options.data.join("endpoint.secret"))?;
    let live = Live::new(options, secret.token_key())?;
    let bind = |source| NetError::Bind {
        address: options.listen,
        source,
    };
    let socket = UdpSocket::bind(options.listen).map_err(bind)?;
    let receive_bytes = enlarge_buffers(&socket);
    let endpoint = quinn::Endpoint::new(
        endpoint_config(&secret, options.number)?,
        Some(ServerConfig::clone(&live.current(Path::Network))),
        socket,
        Arc::new(TokioRuntime),
    )
    .map_err(bind)?;
    Ok(Listening {
        endpoint,
        live: Arc::new(live),
        receive_bytes,
    })
}

fn endpoint_config(secret: &Secret, number: u8) -> Result<EndpointConfig, NetError> {
    let mut config = EndpointConfig::new(Arc::new(secret.reset_key()));
    let ids = ConnectionIds::new(secret, number)?;
    config
        .max_udp_payload_size(DATAGRAM_BYTES_MAX)
        .map_err(|why| NetError::Settings(why.to_string()))?
        .min_reset_interval(RESET_INTERVAL)
        .cid_generator(move || Box::new(ids.clone()));
    Ok(config)
}

/// The transport settings of both ends. Path discovery starts from the 1200 bytes every path carries, but
/// on loopback there is nothing to discover.
#[must_use]
pub fn transport(path: Path) -> TransportConfig {
    let (upper_bound, stream_window) = match path {
        Path::Loopback => (LOOPBACK_BYTES_MAX, LOOPBACK_STREAM_WINDOW_BYTES),
        Path::Network => (SEGMENT_BYTES_MAX, STREAM_RECEIVE_WINDOW_BYTES),
    };
    let mut discovery = MtuDiscoveryConfig::default();
    discovery
        .upper_bound(upper_bound)
        .minimum_change(MTU_CHANGE_BYTES_MIN);
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .keep_alive_interval(None)
        .stream_receive_window(VarInt::from_u32(stream_window))
        .receive_window(VarInt::from_u32(CONNECTION_RECEIVE_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDIRECTIONAL_STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(UNIDIRECTIONAL_STREAMS_MAX))
        .datagram_receive_buffer_size(None)
        .enable_segmentation_offload(path == Path::Network)
        .mtu_discovery_config(Some(discovery));
    if path == Path::Loopback {
        let mut congestion = quinn::congestion::CubicConfig::default();
        congestion.initial_window(LOOPBACK_WINDOW_BYTES);
        config
            .initial_mtu(LOOPBACK_BYTES_FIRST)
            .congestion_controller_factory(Arc::new(congestion))
            .ack_frequency_config(Some(loopback_acknowledgements()));
    }
    config
}

/// Asks for larger socket buffers; a full one drops packets, which QUIC takes for a crowded path.
/// Says how much it may hold of what comes in.
fn enlarge_buffers(socket: &UdpSocket) -> usize {
    let wanted = SOCKET_BUFFER_BYTES;
    let Granted {
        receive_bytes: received,
        send_bytes: sent,
    } = socket::enlarge_buffers(socket);
    if received.min(sent) < wanted {
        tracing::warn!(
            target: "waterwheel::net",
            received_bytes = received,
            sent_bytes = sent,
            wanted_bytes = wanted,
            "the kernel keeps the UDP socket buffers small, which costs throughput; as root: \
             sysctl -w net.core.rmem_max={wanted} net.core.wmem_max={wanted} (for good: in \
             /etc/sysctl.d/waterwheel.conf), then restart the broker"
        );
    }
    received
}

/// What the endpoint's keys are made from: 32 random bytes, kept in a file only its owner can read.
struct Secret([u8; SECRET_BYTES]);

impl Secret {
    fn load(path: &std::path::Path) -> Result<Self, NetError> {
        let load = || match fs::read(path) {
            Ok(bytes) => bytes.try_into().map(Self).map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it is not 32 bytes long; remove it and a new one is made",
                )
            }),
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => {
                let mut bytes = [0; SECRET_BYTES];
                getrandom::fill(&mut bytes).map_err(io::Error::other)?;
                write_whole(path, &bytes, 0o600)?;
                Ok(Self(bytes))
            }
            Err(fault) => Err(fault),
        };
        load().map_err(|source| NetError::Secret {
            path: path.to_path_buf(),
            source,
        })
    }

    fn reset_key(&self) -> hmac::Key {
        self.key(b"waterwheel stateless reset")
    }

    fn token_key(&self) -> hkdf::Prk {
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"waterwheel address tokens").extract(&self.0)
    }

    /// One secret, one key per purpose.
    fn key(&self, purpose: &[u8]) -> hmac::Key {
        let root = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, purpose).as_ref())
    }
}

/// Makes connection ids and knows its own, across restarts.
#[derive(Clone)]
struct ConnectionIds {
    number: u8,
    key: hmac::Key,
    /// Another one in every process, so that no id comes twice.
    nonce_key: hmac::Key,
    made: Arc<AtomicU64>,
}

impl ConnectionIds {
    fn new(secret: &Secret, number: u8) -> Result<Self, NetError> {
        let mut random = [0; SECRET_BYTES];
        getrandom::fill(&mut random).map_err(|why| NetError::Settings(why.to_string()))?;
        Ok(Self {
            number,
            key: secret.key(b"waterwheel connection ids"),
            nonce_key: hmac::Key::new(hmac::HMAC_SHA256, &random),
            made: Arc::default(),
        })
    }

    fn checksum(&self, named: &[u8]) -> [u8; 4] {
        let tag = hmac::sign(&self.key, named);
        tag.as_ref().first_chunk().copied().unwrap_or_default()
    }
}

impl ConnectionIdGenerator for ConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let made = self.made.fetch_add(1, Ordering::Relaxed);
        let nonce = hmac::sign(&self.nonce_key, &made.to_le_bytes());
        let mut id = Vec::with_capacity(ID_BYTES);
        id.push(self.number);
        id.extend(nonce.as_ref().iter().take(7));
        id.extend(self.checksum(&id));
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match id.split_last_chunk::<4>() {
            Some((named, checksum))
                if id.len() == ID_BYTES
                    && named.first() == Some(&self.number)
                    && *checksum == self.checksum(named) =>
            {
                Ok(())
            }
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quinn::crypto::rustls::QuicClientConfig;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use crate::net::tls::provider;
    use crate::wire::ALPN;

    fn options(data: &std::path::Path) -> EndpointOptions {
        EndpointOptions {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data: data.to_path_buf(),
            certificates: Certificates::Development {
                dir: data.join("tls"),
            },
            client_ca: None,
            number: 0,
            handshakes_max: 16,
        }
    }

    fn client(authority: &std::path::Path, alpn: &[u8]) -> quinn::Endpoint {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(authority).unwrap())
            .unwrap();
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![alpn.to_vec()];
        tls.enable_early_data = true;
        let mut config =
            quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        config.transport_config(Arc::new(transport(Path::Loopback)));
        let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        endpoint.set_default_client_config(config);
        endpoint
    }

    /// Answers every stream with what came on it until the endpoint closes.
    fn echo(listening: &Listening) {
        let listening = listening.clone();
        tokio::spawn(async move {
            while let Some(incoming) = listening.endpoint.accept().await {
                let Ok(connecting) = listening.admit(incoming) else {
                    continue;
                };
                tokio::spawn(async move {
                    let Ok(connection) = connecting.await else {
                        return;
                    };
                    while let Ok((mut answer, mut question)) = connection.accept_bi().await {
                        let question = question.read_to_end(1 << 20).await.unwrap();
                        answer.write_all(&question).await.unwrap();
                        answer.finish().unwrap();
                    }
                });
            }
        });
    }

    async fn ask(connection: &quinn::Connection) -> Result<Vec<u8>, quinn::ConnectionError> {
        let (mut question, mut answer) = connection.open_bi().await?;
        let _ = question.write_all(b"hello").await;
        let _ = question.finish();
        match answer.read_to_end(64).await {
            Ok(answer) => Ok(answer),
            Err(_) => Err(connection.closed().await),
        }
    }

    /// An endpoint on a runtime of its own; what is returned ends it without a word to anybody.
    fn former_life(options: EndpointOptions) -> (SocketAddr, impl FnOnce()) {
        let (bound, address) = std::sync::mpsc::channel();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let life = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let server = endpoint(&options).unwrap();
                echo(&server);
                bound.send(server.endpoint.local_addr().unwrap()).unwrap();
                // Nobody closes anything: the tasks go with the runtime, as in a kill.
                let _ = ended.await;
            });
        });
        let end = move || {
            drop(end);
            life.join().unwrap();
        };
        (address.recv().unwrap(), end)
    }

    #[tokio::test]
    async fn whoever_trusts_the_authority_and_speaks_the_protocol_is_let_in() {
        let data = tempfile::tempdir().unwrap();
        let server = endpoint(&options(data.path())).unwrap();
        echo(&server);
        let address = server.endpoint.local_addr().unwrap();
        let ca = data.path().join("tls/ca.pem");
        for name in ["localhost", "127.0.0.1", "::1"] {
            let connection = client(&ca, ALPN).connect(address, name).unwrap();
            assert_eq!(ask(&connection.await.unwrap()).await.unwrap(), b"hello");
        }
        let other_name = client(&ca, ALPN).connect(address, "example.com").unwrap();
        assert!(other_name.await.is_err());
        let other_protocol = client(&ca, b"h3").connect(address, "localhost").unwrap();
        assert!(other_protocol.await.is_err());
        let stranger = tempfile::tempdir().unwrap();
        drop(endpoint(&options(stranger.path())).unwrap());
        let ca = stranger.path().join("tls/ca.pem");
        let distrusting = client(&ca, ALPN).connect(address, "localhost").unwrap();
        assert!(distrusting.await.is_err());
    }

    /// Looking for it would cost more than the handshake.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn loopback_is_known_to_be_large_from_the_start() {
        let data = tempfile::tempdir().unwrap();
        let server = endpoint(&options(data.path())).unwrap();
        echo(&server);
        let address = server.endpoint.local_addr().unwrap();
        let client = client(&data.path().join("tls/ca.pem"), ALPN);
        let connection = client.connect(address, "localhost").unwrap().await.unwrap();
        ask(&connection).await.unwrap();
        let path = connection.stats().path;
        assert_eq!(
            (path.current_mtu, path.sent_plpmtud_probes),
            (LOOPBACK_BYTES_MAX, 0)
        );
    }

    #[tokio::test]
    async fn no_second_connection_can_send_early_data() {
        let data = tempfile::tempdir().unwrap();
        let server = endpoint(&options(data.path())).unwrap();
        echo(&server);
        let address = server.endpoint.local_addr().unwrap();
        let client = client(&data.path().join("tls/ca.pem"), ALPN);
        for _ in 0..2 {
            let connecting = client.connect(address, "localhost").unwrap();
            let connecting = connecting.into_0rtt().map(drop).unwrap_err();
            ask(&connecting.await.unwrap()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_restarted_endpoint_resets_the_connections_of_its_former_life() {
        let data = tempfile::tempdir().unwrap();
        let ca = data.path().join("tls/ca.pem");
        for same_secret in [true, false] {
            let (address, end) = former_life(options(data.path()));
            let client = client(&ca, ALPN);
            let connection = client.connect(address, "localhost").unwrap().await.unwrap();
            ask(&connection).await.unwrap();
            end();
            if !same_secret {
                fs::remove_file(data.path().join("endpoint.secret")).unwrap();
            }
            let again = EndpointOptions {
                listen: address,
                ..options(data.path())
            };
            let server = loop {
                match endpoint(&again) {
                    Ok(server) => break server,
                    Err(NetError::Bind { .. }) => tokio::task::yield_now().await,
                    Err(other) => panic!("{other}"),
                }
            };
            echo(&server);
            let asked = tokio::time::timeout(Duration::from_millis(500), ask(&connection)).await;
            if same_secret {
                assert_eq!(asked.unwrap(), Err(quinn::ConnectionError::Reset));
            } else {
                assert!(asked.is_err(), "{asked:?}");
            }
        }
    }

    #[test]
    fn connection_ids_name_their_endpoint_and_are_known_again_by_the_secret_alone() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("endpoint.secret");
        let ids = |number| ConnectionIds::new(&Secret::load(&path).unwrap(), number).unwrap();
        let mut first = ids(3);
        let id = first.generate_cid();
        assert_eq!((id.len(), id[0]), (ID_BYTES, 3));
        assert_ne!(first.generate_cid(), id);
        assert!(ids(3).validate(&id).is_ok());
        assert!(ids(4).validate(&id).is_err());
        let mut forged = id.to_vec();
        forged[5] ^= 1;
        assert!(ids(3).validate(&ConnectionId::new(&forged)).is_err());
        assert!(ids(3).validate(&ConnectionId::new(&id[..8])).is_err());
        fs::write(&path, b"short").unwrap();
        assert!(Secret::load(&path).is_err());
    }
}
