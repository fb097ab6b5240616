//! Connecting, over QUIC or in process: the only file of the client that knows quinn and rustls.
//!
//! In: where to connect and whom to trust. Out: a [`Transport`] whose streams carry frames. Everything
//! here is forgotten when a connection ends; what has to be sent again is the business of whoever sent
//! it.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::error::ConnectError;
use super::trust;
use crate::transport::socket::{enlarge_buffers, loopback_acknowledgements};
use crate::transport::{Connection, Distrust, Ended, ReceiveStream, SendStream};
use crate::wire::frame::{Frame, FrameDecoder, FrameError, FrameLimits};
use crate::wire::{
    ALPN, DATAGRAM_BYTES_MAX, IDLE_TIMEOUT_MS, LOOPBACK_BYTES_FIRST, LOOPBACK_BYTES_MAX,
    LOOPBACK_WINDOW_BYTES, SEGMENT_BYTES_MAX, STREAM_WINDOW_BYTES,
};

/// What all streams of a connection may have under way unread: the sum of all credit fits in.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024 * 1024;

/// What may be written and not yet acknowledged by the transport.
const SEND_WINDOW_BYTES: u64 = 16 * 1024 * 1024;

/// How often a silent connection shows that it is alive. A restarted broker answers with a reset.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The first guess of the round trip: a lost first packet is repeated after three times as much.
const INITIAL_RTT: Duration = Duration::from_millis(50);

/// Streams the broker may open: one per reader.
const READERS_MAX: u32 = 16_384;

/// How many pieces of a stream are taken at once.
const PIECES_MAX: usize = 16;

/// A certificate or key: a file, or its content.
#[derive(Debug, Clone)]
pub(crate) enum Pem {
    File(PathBuf),
    Bytes(Vec<u8>),
}

/// What a file is given as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Authority,
    Certificate,
    Key,
}

impl Role {
    /// What to give instead.
    fn mend(self) -> &'static str {
        match self {
            Self::Authority => {
                "a broker started with `waterwheel serve` writes its CA to DATA/tls/ca.pem, by default below the directory it is started in: name it with --ca"
            }
            Self::Certificate => {
                "--cert takes this client's certificate, such as the client.pem that `waterwheel certs` makes"
            }
            Self::Key => {
                "--key takes the private key of --cert, such as the client.key that `waterwheel certs` makes"
            }
        }
    }

    fn refuse(self, path: PathBuf, why: impl std::fmt::Display) -> ConnectError {
        ConnectError::CertificateFile {
            path,
            reason: format!("{why}; {}", self.mend()),
        }
    }
}

impl Pem {
    fn read(&self, role: Role) -> Result<(PathBuf, Vec<u8>), ConnectError> {
        match self {
            Self::Bytes(bytes) => Ok((PathBuf::new(), bytes.clone())),
            Self::File(path) => match std::fs::read(path) {
                Ok(bytes) => Ok((path.clone(), bytes)),
                Err(error) => Err(role.refuse(path.clone(), error)),
            },
        }
    }

    fn certificates(&self, role: Role) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
        let (path, bytes) = self.read(role)?;
        let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        match parsed {
            Ok(certificates) if !certificates.is_empty() => Ok(certificates),
            Ok(_) if PrivateKeyDer::from_pem_slice(&bytes).is_ok() => {
                Err(role.refuse(path, "it holds a private key and no certificate"))
            }
            Ok(_) => Err(role.refuse(path, "it holds no PEM certificate")),
            Err(error) => Err(role.refuse(path, error)),
        }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, ConnectError> {
        let (path, bytes) = self.read(Role::Key)?;
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
            let is_certificate = CertificateDer::from_pem_slice(&bytes).is_ok();
            match is_certificate {
                true => Role::Key.refuse(path, "it holds a certificate and no private key"),
                false => Role::Key.refuse(path, error),
            }
        })
    }

    /// Its file; empty where bytes were given.
    fn path(&self) -> PathBuf {
        match self {
            Self::File(path) => path.clone(),
            Self::Bytes(_) => PathBuf::new(),
        }
    }
}

/// Where to connect and whom to trust.
#[derive(Debug, Clone)]
pub(crate) struct ConnectOptions {
    pub(crate) address: String,
    pub(crate) server_name: Option<String>,
    pub(crate) ca: Option<Pem>,
    pub(crate) identity: Option<(Pem, Pem)>,
    pub(crate) datagram_bytes_max: u16,
}

impl ConnectOptions {
    pub(crate) fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            server_name: None,
            ca: None,
            identity: None,
            datagram_bytes_max: DATAGRAM_BYTES_MAX,
        }
    }
}

/// Connects to the broker in this process; `None` once it has stopped.
pub(crate) type ConnectLocal = Arc<dyn Fn() -> Option<Connection> + Send + Sync>;

/// Dials one broker, as often as asked.
pub(crate) enum Dialer {
    /// Over QUIC.
    Quic(Box<QuicDialer>),
    /// In this process.
    Local(ConnectLocal),
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Dialer").field(&self.address()).finish()
    }
}

impl Dialer {
    /// Over QUIC: resolves the address, reads the certificates and opens a socket.
    pub(crate) async fn quic(options: ConnectOptions) -> Result<Self, ConnectError> {
        Ok(Self::Quic(Box::new(QuicDialer::new(options).await?)))
    }

    /// Why a connection it made ended, where that is because the broker does not trust this side: it says
    /// so only when the connection seems to be there.
    pub(crate) fn untrusted(&self, transport: &Transport) -> Option<ConnectError> {
        match (self, transport.connection.ended()) {
            (Self::Quic(quic), Some(Ended::Untrusted(distrust))) => Some(quic.untrusted(&distrust)),
            _ => None,
        }
    }

    /// Whom it dials, for messages.
    pub(crate) fn address(&self) -> &str {
        match self {
            Self::Quic(quic) => &quic.options.address,
            Self::Local(_) => "the broker in this process",
        }
    }

    /// One attempt, which turns `answered` true once the broker has said anything. Dropping the future
    /// gives it up.
    pub(crate) async fn dial(&self, answered: &AtomicBool) -> Result<Transport, ConnectError> {
        match self {
            Self::Quic(quic) => quic.dial(answered).await,
            Self::Local(connect) => match connect() {
                Some(connection) => Ok(Transport { connection }),
                None => Err(ConnectError::Stopped),
            },
        }
    }

    /// Waits until the closing of closed connections has been sent.
    pub(crate) async fn wait_idle(&self) {
        match self {
            Self::Quic(quic) => quic.endpoint.wait_idle().await,
            Self::Local(_) => {}
        }
    }
}

/// Dials over QUIC.
#[derive(Debug)]
pub(crate) struct QuicDialer {
    endpoint: quinn::Endpoint,
    options: ConnectOptions,
    /// The host's addresses of one family, taken in turn.
    remotes: Vec<SocketAddr>,
    turn: AtomicUsize,
    server_name: String,
}

impl QuicDialer {
    /// Resolves the address, reads the certificates and opens a socket.
    async fn new(options: ConnectOptions) -> Result<Self, ConnectError> {
        let bad_address = |reason: String| ConnectError::Address {
            address: options.address.clone(),
            reason,
        };
        let (host, _) = options
            .address
            .rsplit_once(':')
            .ok_or_else(|| bad_address("there is no port".to_owned()))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut remotes: Vec<SocketAddr> = tokio::net::lookup_host(&options.address)
            .await
            .map_err(|error| bad_address(error.to_string()))?
            .collect();
        // One socket is of one family. IPv4 first: `localhost` is both, a broker's 127.0.0.1 is not.
        let is_ipv4 = remotes.iter().any(SocketAddr::is_ipv4);
        remotes.retain(|remote| remote.is_ipv4() == is_ipv4);
        if remotes.is_empty() {
            return Err(bad_address("the name has no address".to_owned()));
        }
        let server_name = options
            .server_name
            .clone()
            .unwrap_or_else(|| host.to_owned());
        let loopback = remotes.iter().all(|remote| remote.ip().is_loopback());
        let config = client_config(&options, loopback)?;
        let any: IpAddr = if is_ipv4 {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let mut endpoint_config = quinn::EndpointConfig::default();
        endpoint_config
            .max_udp_payload_size(options.datagram_bytes_max.max(1_200))
            .map_err(|error| ConnectError::Local(error.to_string()))?;
        let local = |error: std::io::Error| ConnectError::Local(error.to_string());
        let socket = std::net::UdpSocket::bind((any, 0)).map_err(local)?;
        // Where the system grants less, it is only slower; the broker's end warns of that.
        enlarge_buffers(&socket);
        let mut endpoint =
            quinn::Endpoint::new(endpoint_config, None, socket, Arc::new(quinn::TokioRuntime))
                .map_err(local)?;
        endpoint.set_default_client_config(config);
        Ok(Self {
            endpoint,
            options,
            remotes,
            turn: AtomicUsize::new(0),
            server_name,
        })
    }

    /// One attempt: the handshake of QUIC and TLS.
    async fn dial(&self, answered: &AtomicBool) -> Result<Transport, ConnectError> {
        let bad_address = |reason: String| ConnectError::Address {
            address: self.options.address.clone(),
            reason,
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.remotes.len().max(1);
        let remote = self.remotes.get(turn);
        let remote = remote.ok_or_else(|| bad_address("it has no address".to_owned()))?;
        let mut connecting = self
            .endpoint
            .connect(*remote, &self.server_name)
            .map_err(|error| bad_address(error.to_string()))?;
        if connecting.handshake_data().await.is_ok() {
            answered.store(true, Ordering::Relaxed);
        }
        match connecting.await {
            Ok(connection) => Ok(Transport {
                connection: connection.into(),
            }),
            Err(error) => Err(self.told_apart(&error)),
        }
    }

    fn told_apart(&self, error: &quinn::ConnectionError) -> ConnectError {
        match Distrust::of(error) {
            Some(distrust) => self.untrusted(&distrust),
            None => ConnectError::Unreachable {
                address: self.options.address.clone(),
                reason: error.to_string(),
            },
        }
    }

    fn untrusted(&self, distrust: &Distrust) -> ConnectError {
        ConnectError::Tls {
            address: self.options.address.clone(),
            reason: trust::explain(distrust, &self.options, &self.server_name),
        }
    }
}

fn client_config(
    options: &ConnectOptions,
    loopback: bool,
) -> Result<quinn::ClientConfig, ConnectError> {
    let mut roots = rustls::RootCertStore::empty();
    let Some(ca) = &options.ca else {
        let why = "no CA certificate was given to know the broker by";
        return Err(Role::Authority.refuse(PathBuf::new(), why));
    };
    let tls = |reason: String| ConnectError::Tls {
        address: options.address.clone(),
        reason,
    };
    for certificate in ca.certificates(Role::Authority)? {
        roots
            .add(certificate)
            .map_err(|error| tls(error.to_string()))?;
    }
    // A provider of its own: the process-wide one is the host program's business.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| tls(error.to_string()))?
        .with_root_certificates(roots);
    let mut crypto = match &options.identity {
        Some((certificate, key)) => builder
            .with_client_auth_cert(certificate.certificates(Role::Certificate)?, key.key()?)
            .map_err(|error| {
                let inconsistent = matches!(error, rustls::Error::InconsistentKeys(_));
                let of = certificate.path();
                match inconsistent {
                    true => Role::Key.refuse(
                        key.path(),
                        format_args!("it is not the key of {}", of.display()),
                    ),
                    false => tls(error.to_string()),
                }
            })?,
        None => builder.with_no_client_auth(),
    };
    crypto.alpn_protocols = vec![ALPN.to_vec()];
    crypto.enable_early_data = false;
    let crypto = QuicClientConfig::try_from(crypto).map_err(|error| tls(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport_config(
        options.datagram_bytes_max,
        loopback,
    )));
    Ok(config)
}

fn transport_config(datagram_bytes_max: u16, loopback: bool) -> quinn::TransportConfig {
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(datagram_bytes_max.min(match loopback {
        true => LOOPBACK_BYTES_MAX,
        false => SEGMENT_BYTES_MAX,
    }));
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_idle_timeout(Some(quinn::IdleTimeout::from(quinn::VarInt::from_u32(
            IDLE_TIMEOUT_MS,
        ))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .stream_receive_window(quinn::VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(quinn::VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .enable_segmentation_offload(!loopback)
        .max_concurrent_bidi_streams(quinn::VarInt::from_u32(0))
        .max_concurrent_uni_streams(quinn::VarInt::from_u32(READERS_MAX))
        .mtu_discovery_config(Some(discovery));
    if loopback {
        let mut congestion = quinn::congestion::CubicConfig::default();
        congestion.initial_window(LOOPBACK_WINDOW_BYTES);
        transport
            .initial_mtu(datagram_bytes_max.min(LOOPBACK_BYTES_FIRST))
            .congestion_controller_factory(Arc::new(congestion))
            .ack_frequency_config(Some(loopback_acknowledgements()));
    }
    transport
}

/// The connection is gone, and why.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("{0}")]
    Lost(String),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// An established connection.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    connection: Connection,
}

impl Transport {
    /// A new stream in both directions.
    pub(crate) async fn open(
        &self,
        limits: FrameLimits,
    ) -> Result<(FrameSender, FrameReceiver), StreamError> {
        let (send, receive) = self.connection.open_bi().await.map_err(lost)?;
        Ok((FrameSender(send), FrameReceiver::new(receive, limits)))
    }

    /// The next stream the broker opens.
    pub(crate) async fn accept(&self, limits: FrameLimits) -> Result<FrameReceiver, StreamError> {
        let receive = self.connection.accept_uni().await.map_err(lost)?;
        Ok(FrameReceiver::new(receive, limits))
    }

    /// Ends when the connection does; says why.
    pub(crate) async fn closed(&self) -> String {
        self.connection.closed().await.to_string()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.connection.ended().is_some()
    }

    /// Closes it at once; what was written and not acknowledged is lost.
    pub(crate) fn close(&self, reason: &str) {
        self.connection.close(0, reason);
    }

    /// How long a question and its answer take.
    pub(crate) fn round_trip(&self) -> Duration {
        self.connection.round_trip()
    }

    /// Changes while somebody is there; none where silence means nothing.
    pub(crate) fn heard(&self) -> Option<u64> {
        self.connection.heard()
    }
}

fn lost(error: impl std::fmt::Display) -> StreamError {
    StreamError::Lost(error.to_string())
}

/// The sending half of a stream.
#[derive(Debug)]
pub(crate) struct FrameSender(SendStream);

impl FrameSender {
    /// Writes chunks without copying them; waits for room. Not to be cancelled but to give up the stream.
    pub(crate) async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamError> {
        self.0.write(chunks).await.map_err(lost)
    }

    /// Says that nothing follows, and waits until the other end has all of it (or is gone).
    pub(crate) async fn finish(&mut self) {
        self.0.finish();
        self.0.stopped().await;
    }
}

/// The receiving half of a stream.
#[derive(Debug)]
pub(crate) struct FrameReceiver {
    stream: ReceiveStream,
    decoder: FrameDecoder,
    pieces: VecDeque<Bytes>,
}

impl FrameReceiver {
    fn new(stream: ReceiveStream, limits: FrameLimits) -> Self {
        Self {
            stream,
            decoder: FrameDecoder::new(limits),
            pieces: VecDeque::with_capacity(PIECES_MAX),
        }
    }

    /// How long a frame may be from here on.
    pub(crate) fn set_limits(&mut self, limits: FrameLimits) {
        self.decoder.set_limits(limits);
    }

    /// The next frame; none where the stream ended between frames. Cancelling loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, StreamError> {
        loop {
            while let Some(piece) = self.pieces.front_mut() {
                let frame = self.decoder.feed(piece)?;
                if !piece.has_remaining() {
                    self.pieces.pop_front();
                }
                if frame.is_some() {
                    return Ok(frame);
                }
            }
            let mut pieces = [const { Bytes::new() }; PIECES_MAX];
            match self.stream.read(&mut pieces).await.map_err(lost)? {
                Some(count) => self.pieces.extend(pieces.into_iter().take(count)),
                None if self.decoder.is_between_frames() => return Ok(None),
                None => return Err(lost("the stream ended within a frame")),
            }
        }
    }
}
