//! What every test stands on: a broker on a thread of its own that can be stopped, killed and started
//! again, and connections to it over what the suite is about.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use tokio::sync::oneshot;
use waterwheel::broker::{Broker, StartError};
use waterwheel::client::Connect;
use waterwheel::config::Config;
use waterwheel::log::Disk;
use waterwheel::net::endpoint::{Path as NetPath, transport};
use waterwheel::net::local::Connector;
use waterwheel::net::session::Shared;
use waterwheel::net::tls::provider;
use waterwheel::transport::{Connection, Ended};
use waterwheel::wire::ALPN;
use waterwheel::wire::hello::{Ping, Pong};

use crate::client::Client;

/// No test waits longer for anything: what hangs fails, and says where.
const PATIENCE: Duration = Duration::from_secs(40);
/// Batches of the tests are at most this long.
pub(crate) const BATCH_BYTES_MAX: u32 = 256 << 10;

/// Runs a test's conversation; it must end.
pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, test)
            .await
            .expect("the test hangs");
    });
}

/// The settings of a small, quick broker: the one place that knows them all.
pub(crate) fn config(data: &Path) -> Config {
    Config {
        data: data.to_path_buf(),
        listen: match crate::CARRIER {
            Carrier::Quic => Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            Carrier::Memory => None,
        },
        arbiters: 2,
        memory_bytes: 256 << 20,
        admission_bytes: 64 << 20,
        tail_cache_bytes: 16 << 20,
        views_cache_bytes: 4 << 20,
        segment_bytes: 2 << 20,
        flush_bytes_max: 512 << 10,
        batch_bytes_max: BATCH_BYTES_MAX,
        connections_max: 200,
        readers_per_connection_max: 16,
        producers_per_partition_max: 100,
        checkpoint_bytes: 64 << 20,
        // What waits for a time waits for ever, unless a test says otherwise.
        checkpoint_ms: 3_600_000,
        retention_check_ms: 3_600_000,
        ..Config::default()
    }
}

enum End {
    Stop,
    Kill,
}

/// What carries the frames of a suite.
#[derive(Clone, Copy)]
pub(crate) enum Carrier {
    /// QUIC, with real certificates.
    #[allow(dead_code, reason = "one suite is about each")]
    Quic,
    /// Memory.
    #[allow(dead_code, reason = "one suite is about each")]
    Memory,
}

/// A running broker.
pub(crate) struct Node {
    pub(crate) addr: Option<SocketAddr>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) connector: Arc<Connector>,
    in_process: Connect,
    ca: PathBuf,
    end: Option<oneshot::Sender<End>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Node {
    /// Starts a broker, with its log on `disk` if there is one.
    pub(crate) async fn try_start(
        config: Config,
        disk: Option<Arc<dyn Disk>>,
    ) -> Result<Self, StartError> {
        let ca = config.data.join("tls/ca.pem");
        let (end, ended) = oneshot::channel();
        let (ready, started) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let system = actix_rt::System::new();
            system.block_on(async {
                let broker = match disk {
                    Some(disk) => Broker::start_on(config, disk).await,
                    None => Broker::start(config).await,
                };
                let broker = match broker {
                    Ok(broker) => broker,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                // One that listens nowhere has none.
                let addr = broker.local_addr();
                let (shared, connector) = (broker.shared(), broker.connector());
                let in_process = broker.client();
                let _ = ready.send(Ok((addr, Arc::clone(shared), Arc::clone(connector), in_process)));
                match ended.await {
                    Ok(End::Stop) => broker.stop().await,
                    Ok(End::Kill) | Err(_) => drop(broker),
                }
            });
        });
        let (addr, shared, connector, in_process) = started.await.expect("the broker's thread lives")?;
        Ok(Self {
            addr,
            shared,
            connector,
            in_process,
            ca,
            end: Some(end),
            thread: Some(thread),
        })
    }

    async fn finish(mut self, how: End) {
        let _ = self.end.take().map(|end| end.send(how));
        let thread = self.thread.take().expect("it runs");
        tokio::task::spawn_blocking(move || thread.join())
            .await
            .unwrap()
            .unwrap();
    }

    /// Stops it in good order.
    pub(crate) async fn stop(self) {
        self.finish(End::Stop).await;
    }

    /// Ends it at once: no checkpoint, no closing of the log.
    pub(crate) async fn kill(self) {
        self.finish(End::Kill).await;
    }

    /// Asks it to stop without waiting for that.
    pub(crate) fn begin_stop(&mut self) {
        let _ = self.end.take().map(|end| end.send(End::Stop));
    }

    /// Waits for the end of a stop that has begun.
    pub(crate) async fn ended(mut self) {
        let thread = self.thread.take().expect("it runs");
        tokio::task::spawn_blocking(move || thread.join())
            .await
            .unwrap()
            .unwrap();
    }

    /// The client's side of its certificates, for this protocol name.
    pub(crate) fn tls(&self, alpn: &[u8]) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(&self.ca).unwrap())
            .unwrap();
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![alpn.to_vec()];
        tls
    }

    /// An endpoint that speaks with these settings.
    pub(crate) fn endpoint(tls: rustls::ClientConfig) -> quinn::Endpoint {
        let mut config =
            quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        config.transport_config(Arc::new(transport(NetPath::Loopback)));
        let mut endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        endpoint.set_default_client_config(config);
        endpoint
    }

    /// A connection nobody has said anything on.
    pub(crate) async fn dial(&self) -> (Option<quinn::Endpoint>, Connection) {
        match crate::CARRIER {
            Carrier::Quic => {
                let endpoint = Self::endpoint(self.tls(ALPN));
                let connecting = endpoint
                    .connect(self.addr.expect("it listens"), "localhost")
                    .unwrap();
                let connection = connecting.await.unwrap();
                (Some(endpoint), connection.into())
            }
            Carrier::Memory => {
                let connection = self.connector.connect();
                (None, connection.expect("the broker runs"))
            }
        }
    }

    /// The product's client, over what the suite is about.
    pub(crate) fn connect(&self) -> Connect {
        match crate::CARRIER {
            Carrier::Quic => {
                waterwheel::Client::connect(&self.addr.expect("it listens").to_string())
                    .ca(&self.ca)
                    .server_name("localhost")
            }
            Carrier::Memory => self.in_process.clone(),
        }
    }

    /// A client that has said hello.
    pub(crate) async fn client(&self) -> Client {
        self.try_client().await.expect("a client gets in")
    }

    pub(crate) async fn try_client(&self) -> Result<Client, Ended> {
        let (endpoint, connection) = self.dial().await;
        Client::greet(endpoint, connection).await
    }

    /// A well-behaved client gets through at once: a ping, a batch stored, the batch read back.
    pub(crate) async fn assert_serves(&self) {
        let patience = Duration::from_secs(5);
        tokio::time::timeout(patience, async {
            let mut client = self.client().await;
            client.ask::<_, Pong>(&Ping {}).await.unwrap();
            let name = format!("witness-{}", self.shared.started.elapsed().as_nanos());
            let topic = client.create(&name, 1).await;
            let mut producer = client.producer().await;
            producer.store(&topic, 0, &["still here"]).await;
            assert_eq!(client.read_all(topic.id, 0).await, ["still here"]);
        })
        .await
        .expect("a well-behaved client is not held up");
    }
}

/// A directory and the broker on it.
pub(crate) struct Rig {
    pub(crate) dir: TempDir,
    pub(crate) config: Config,
    pub(crate) node: Node,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts a broker whose settings are changed first.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let node = Node::try_start(config.clone(), None)
            .await
            .expect("a broker starts");
        Self { dir, config, node }
    }

    /// Stops the broker in good order and starts another on its directory.
    pub(crate) async fn restart(self) -> Self {
        self.restart_after(|_| {}).await
    }

    /// The same, with something done to the directory in between.
    pub(crate) async fn restart_after(self, between: impl FnOnce(&Path)) -> Self {
        let Self { dir, config, node } = self;
        node.stop().await;
        between(dir.path());
        let node = Node::try_start(config.clone(), None)
            .await
            .expect("a broker starts again");
        Self { dir, config, node }
    }

    /// Ends the broker as a kill would and starts another on its directory.
    pub(crate) async fn kill_and_restart(self, between: impl FnOnce(&Path)) -> Self {
        let Self { dir, config, node } = self;
        node.kill().await;
        between(dir.path());
        let node = Node::try_start(config.clone(), None)
            .await
            .expect("a broker starts again");
        Self { dir, config, node }
    }

    pub(crate) async fn client(&self) -> Client {
        self.node.client().await
    }
}
