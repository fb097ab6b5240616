//! The broker as a value: start it inside an actix [`System`](actix_rt::System), ask its address, stop it.
//!
//! It keeps to itself: no signal handler, no tracing subscriber, no panic hook, no process-wide crypto
//! provider, and it never ends the process.

mod ground;

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use actix::Actor;
use actix_rt::Arbiter;
use tokio::sync::{oneshot, watch};

use self::ground::{Ground, lay_ground};
use crate::actors::admission::Admission;
use crate::actors::checkpoint::{self, CheckpointActor};
use crate::actors::cleaner::{self, CleanerActor};
use crate::actors::commit::{self, CommitActor, CommitParts, LogGauge};
use crate::actors::convoy::Convoys;
use crate::actors::directory::DirectoryActor;
use crate::actors::opened::OpenedBatches;
use crate::actors::stats::{ActorStats, Registry};
use crate::actors::store::StoreActor;
use crate::actors::vigil::Vigil;
use crate::actors::wheel::{self, Wheel};
use crate::actors::{Clock, CrashPoints, House, Link, Settings};
use crate::client::Connect;
use crate::config::{Config, Temporary};
use crate::domain::commit::Commit;
use crate::domain::id::{LogIndex, OwnerId};
use crate::domain::partition::TimerLimits;
use crate::domain::time::WallMs;
use crate::log::{Disk, LogError, Opened, ReadAhead, ReadPool, TailCache};
use crate::net::endpoint::{EndpointOptions, Listening, NetError, endpoint, probe};
use crate::net::local::Connector;
use crate::net::server;
use crate::net::session::{Manners, Pouring, Shared};
use crate::net::tls::Certificates;
use crate::store::ViewsError;
use crate::wire::IN_FLIGHT_BATCHES_MAX;
use crate::wire::frame::FRAME_OVERHEAD_BYTES_MAX;

/// Time an orderly stop waits for what is in flight. With what follows it stays below 5 s in all.
const DRAIN: Duration = Duration::from_millis(1500);
/// Time an orderly stop waits for the last checkpoint and the last flush, each.
const LAST_WRITES: Duration = Duration::from_millis(1200);

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Not inside an actix system.
    #[error(
        "a broker starts inside an actix System: #[actix_rt::main] makes one, actix_rt::System::new().block_on does; in a tokio program give it a thread of its own (see Broker::start)"
    )]
    NoSystem,
    /// A setting is out of its bounds or contradicts another.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// Another broker has the data directory.
    #[error("{} is in use by another broker; stop it or name another directory with --data", .0.display())]
    Locked(PathBuf),
    /// A file or directory cannot be used.
    #[error("{}: {source}; the broker must be able to write there: mend its permissions, or name another directory with --data", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The views can be neither believed nor rebuilt.
    #[error("the views cannot be written: {0}")]
    Views(#[from] ViewsError),
    /// The listener cannot be opened.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A thread ended before it answered.
    #[error("starting was interrupted: {0}")]
    Interrupted(&'static str),
}

impl StartError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoSystem => "no-system",
            Self::Config(_) => "config",
            Self::Locked(_) => "locked",
            Self::Io { .. } => "io",
            Self::Log(_) => "log",
            Self::Views(_) => "views",
            Self::Net(_) => "net",
            Self::Interrupted(_) => "interrupted",
        }
    }

    /// Whether the same may succeed later without anything being mended: another broker may be about to
    /// leave the directory.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Locked(_) | Self::Interrupted(_) => true,
            Self::NoSystem
            | Self::Config(_)
            | Self::Io { .. }
            | Self::Log(_)
            | Self::Views(_)
            | Self::Net(_) => false,
        }
    }
}

/// A running broker, inside an actix [`System`](actix_rt::System), with threads of its own.
///
/// [`stop`](Self::stop) it in the end. Dropping it instead is like killing it: nothing acknowledged is
/// lost, but what is in flight is not answered and the next start has more to fold; the threads' end is
/// waited for, so drop it where blocking for a moment is allowed.
///
/// ```
/// use waterwheel::client::{Record, TopicConfig};
/// use waterwheel::{Broker, Config};
///
/// actix_rt::System::new().block_on(async {
///     let broker = Broker::start(Config::temporary()).await?;
///     let client = broker.client().await?;
///     client.create_topic("orders", TopicConfig::new(4)).await?;
///     let producer = client.producer("orders").open().await?;
///     producer.send(Record::new("42 roses").key("order-17")).await?;
///     producer.close().await?;
///     broker.stop().await;
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })
/// # .unwrap();
/// ```
#[must_use = "a broker that is dropped ends at once"]
pub struct Broker {
    local_addr: Option<SocketAddr>,
    listening: Option<Listening>,
    connector: Arc<Connector>,
    shared: Arc<Shared>,
    stopping: watch::Sender<bool>,
    arbiters: Vec<Arbiter>,
    // Released last: another broker may open the directory from then on.
    lock: Option<File>,
    // Then gone, where it is nobody else's.
    temporary: Option<Temporary>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("local_addr", &self.local_addr)
            .finish_non_exhaustive()
    }
}

impl Broker {
    /// Starts a broker: locks its directory, recovers, starts the actors, listens. Ready when it returns.
    ///
    /// It needs an actix [`System`](actix_rt::System) around it. `#[actix_rt::main]` makes one, and so does
    /// `#[actix_web::main]`; under `#[tokio::main]` there is none ([`StartError::NoSystem`]), so a tokio program
    /// gives the broker a thread of its own, and its clients work from any runtime:
    ///
    /// ```
    /// use waterwheel::{Broker, Config};
    ///
    /// #[tokio::main(flavor = "current_thread")]
    /// async fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let (tell, told) = tokio::sync::oneshot::channel();
    ///     let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    ///     let thread = std::thread::spawn(move || {
    ///         actix_rt::System::new().block_on(async move {
    ///             match Broker::start(Config::temporary()).await {
    ///                 Ok(broker) => {
    ///                     let _ = tell.send(Ok(broker.client()));
    ///                     let _ = stopped.await;
    ///                     broker.stop().await;
    ///                 }
    ///                 Err(error) => drop(tell.send(Err(error))),
    ///             }
    ///         })
    ///     });
    ///     let client = told.await??.await?;
    ///     println!("{} topics", client.topics().await?.len());
    ///     drop((client, stop));
    ///     thread.join().map_err(|_| "the broker's thread panicked")?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Cancellation: dropping the future before it is done may leave threads that end by themselves; the
    /// directory stays consistent.
    ///
    /// # Errors
    /// [`StartError`]; nothing keeps running.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, None, Clock::start()).await
    }

    /// As [`start`](Self::start), but the log's segments lie on `disk` instead of in the data
    /// directory: for tests that let it fail, fill up or stand still. Views, certificates and the lock
    /// stay in the data directory.
    ///
    /// # Errors
    /// [`StartError`]; nothing keeps running.
    #[doc(hidden)]
    pub async fn start_on(config: Config, disk: Arc<dyn Disk>) -> Result<Self, StartError> {
        Self::start_with(config, Some(disk), Clock::start()).await
    }

    /// As [`start`](Self::start), but by another clock: for tests of what steps of the wall clock do.
    ///
    /// # Errors
    /// [`StartError`]; nothing keeps running.
    #[doc(hidden)]
    pub async fn start_by(config: Config, clock: Clock) -> Result<Self, StartError> {
        Self::start_with(config, None, clock).await
    }

    async fn start_with(
        config: Config,
        disk: Option<Arc<dyn Disk>>,
        clock: Clock,
    ) -> Result<Self, StartError> {
        if actix_rt::System::try_current().is_none() {
            return Err(StartError::NoSystem);
        }
        config.check()?;
        // A directory that is there may be in use, which is what should be said then; one that is not is not
        // made in vain.
        if let Some(listen) = config.listen
            && !config.data.exists()
        {
            probe(listen)?;
        }
        let crash = CrashPoints::parse(config.crash_at.as_deref());
        let (ground_config, ground_crash) = (config.clone(), crash.clone());
        let ground =
            tokio::task::spawn_blocking(move || lay_ground(&ground_config, &ground_crash, disk))
                .await
                .map_err(|_| StartError::Interrupted("recovery failed"))??;
        Self::raise(config, crash, ground, clock).await
    }

    async fn raise(
        config: Config,
        crash: CrashPoints,
        ground: Ground,
        clock: Clock,
    ) -> Result<Self, StartError> {
        let Ground {
            opened,
            recovered,
            lock,
        } = ground;
        let cluster = opened.identity.cluster;
        let reader = opened.log.reader();
        let cache = Arc::new(TailCache::new(config.tail_bytes()));
        let pool = ReadPool::start_beside(
            reader.clone(),
            ReadPool::THREADS_DEFAULT,
            config.read_cache_bytes(),
            &cache,
        )
        .map_err(|source| StartError::Io {
            path: config.data.clone(),
            source,
        })?;
        let pool = Arc::new(pool);
        let ahead = ReadAhead::start(
            reader.clone(),
            Arc::clone(&cache),
            config.read_ahead_bytes_effective(),
            ReadAhead::THREADS_DEFAULT,
            move || clock.now().wall.0,
        )
        .map_err(|source| StartError::Io {
            path: config.data.clone(),
            source,
        })?;
        let secret_path = config.data.join("timers.secret");
        let timer_secret =
            crate::net::timers::secret(&secret_path).map_err(|source| StartError::Io {
                path: secret_path,
                source,
            })?;
        let gauge = Arc::new(LogGauge::default());
        let (commit_arbiter, store_arbiter) = (Arbiter::new(), Arbiter::new());
        let workers: Vec<Arbiter> = (0..config.arbiters_effective())
            .map(|_| Arbiter::new())
            .collect();
        let handles: Vec<_> = workers.iter().map(Arbiter::handle).collect();
        let standing = Standing {
            config: &config,
            crash,
            clock,
            gauge: Arc::clone(&gauge),
            registry: Registry::default(),
            vigil: Vigil::default(),
            cache,
            pool,
            ahead: Arc::new(ahead),
        };
        let house = standing.actors(
            opened,
            &recovered.counters,
            &commit_arbiter,
            &store_arbiter,
            recovered.views,
            recovered.mark,
            recovered.found,
        )?;
        let stats = house.registry.enter(
            "directory",
            OwnerId::DIRECTORY,
            "directory".into(),
            house.settings.standing_mailbox,
        );
        let (topics, directory_house, spread, shared_stats) = (
            recovered.topics,
            house.clone(),
            handles.clone(),
            Arc::clone(&stats),
        );
        let addr = DirectoryActor::start_in_arbiter(
            &commit_neighbour(&workers, &store_arbiter),
            move |_| {
                let watched = directory_house.vigil.watch("directory");
                DirectoryActor::new(topics, directory_house, spread, shared_stats).watched(watched)
            },
        );
        let directory = Link::new(addr, stats);
        house.checkpoint.tell(checkpoint::Introduce {
            cleaner: house.cleaner.clone(),
            wheel: house.wheel.clone(),
        });
        house.cleaner.tell(cleaner::Introduce(directory.clone()));
        let wheel_arbiter = Arbiter::new();
        wheel::keeper::start(&house, &directory, &wheel_arbiter.handle());
        house.commit.tell(commit::Introduce {
            directory: directory.clone(),
            checkpoint: house.checkpoint.clone(),
            cleaner: house.cleaner.clone(),
        });
        let (stopping, stopped) = watch::channel(false);
        let shared = Arc::new(Shared {
            house,
            directory,
            admission: Admission::new(config.queued_bytes_max()),
            arriving: Admission::new(config.arriving_bytes_max()),
            pool: Arc::clone(&standing.pool),
            limits: limits(&config),
            cluster,
            timer_secret,
            gauge,
            connections: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            manners: Manners::default(),
            pouring: Pouring::default(),
            connections_max: u64::from(config.connections_max),
            stopping: stopped,
            started: Instant::now(),
        });
        let connector = Arc::new(Connector::new(&shared, handles.clone()));
        let mut arbiters = workers;
        arbiters.extend([commit_arbiter, store_arbiter, wheel_arbiter]);
        let mut broker = Self {
            local_addr: None,
            listening: None,
            connector,
            shared,
            stopping,
            arbiters,
            lock: Some(lock),
            temporary: config.temporary.clone(),
        };
        if let Some(listen) = config.listen {
            let listening = listen_on(&config, listen, &broker.shared, handles).await?;
            broker.local_addr = listening.endpoint.local_addr().ok();
            broker.listening = Some(listening);
        }
        Ok(broker)
    }

    /// Where it listens; none where it serves in process only.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// Reads the certificates anew at once. Without it new files are taken too, within a second of the
    /// next connection. Connections that are open stay as they are.
    ///
    /// # Errors
    /// They cannot be used: the ones before stay in force.
    pub fn reload_certificates(&self) -> Result<(), NetError> {
        self.listening.as_ref().map_or(Ok(()), Listening::reload)
    }

    /// A client in this process, for any tokio runtime: await it there. The same frames as over QUIC go
    /// over memory, without a socket, certificates or encryption, so whatever a client can do it can.
    ///
    /// It does not keep the broker alive. When the broker stops, what the client is asked then fails as
    /// unreachable, at once.
    ///
    /// ```
    /// # actix_rt::System::new().block_on(async {
    /// use waterwheel::client::{Record, TopicConfig};
    /// # let config = waterwheel::Config::temporary();
    /// let broker = waterwheel::Broker::start(config).await?;
    /// let client = broker.client().await?;
    /// client.create_topic("orders", TopicConfig::new(4)).await?;
    /// let producer = client.producer("orders").open().await?;
    /// producer.send(Record::new("42 roses")).await?;
    /// broker.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn client(&self) -> Connect {
        let connector = Arc::clone(&self.connector);
        Connect::local(Arc::new(move || connector.connect()))
    }

    /// What connects clients in this process.
    #[doc(hidden)]
    #[must_use]
    pub fn connector(&self) -> &Arc<Connector> {
        &self.connector
    }

    /// What sessions share: counters, actors.
    #[doc(hidden)]
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Stops: admits nothing more, answers what is in flight, writes the views, closes the log, frees the
    /// directory. At most about 5 s. Dropping the broker instead is like killing it: nothing acknowledged
    /// is lost, but the next start has more to fold.
    pub async fn stop(mut self) {
        let _ = self.stopping.send(true);
        let _ = tokio::time::timeout(DRAIN, self.shared.admission.drained()).await;
        let (reply, done) = oneshot::channel();
        self.shared
            .house
            .checkpoint
            .tell(checkpoint::Close { reply });
        let marked = tokio::time::timeout(LAST_WRITES, done).await;
        if !matches!(marked, Ok(Ok(true))) {
            tracing::warn!(target: "waterwheel::broker", "the last checkpoint was not written: the next start folds the log behind the one before");
        }
        let (reply, done) = oneshot::channel();
        self.shared.house.commit.tell(commit::Close { reply });
        let _ = tokio::time::timeout(LAST_WRITES, done).await;
        self.connector.close();
        if let Some(Listening { endpoint, .. }) = &self.listening {
            endpoint.close(
                quinn::VarInt::from_u32(u32::from(crate::wire::code::Code::ShuttingDown as u16)),
                b"the broker is stopping",
            );
            let _ = tokio::time::timeout(Duration::from_millis(300), endpoint.wait_idle()).await;
        }
        self.shared.house.vigil.end();
        let arbiters = std::mem::take(&mut self.arbiters);
        let (lock, temporary) = (self.lock.take(), self.temporary.take());
        let (ended, joined) = oneshot::channel();
        // A thread of its own: a disk that does not let go is not waited for, not even by the runtime
        // this is called on, but keeps the directory locked.
        std::thread::spawn(move || {
            end(arbiters);
            drop(lock);
            drop(temporary);
            let _ = ended.send(());
        });
        let _ = tokio::time::timeout(Duration::from_millis(500), joined).await;
    }
}

impl Drop for Broker {
    /// Ends the actors' threads before the directory is free for another broker: what is being written
    /// at this moment is waited for, nothing else is.
    fn drop(&mut self) {
        self.shared.house.vigil.end();
        end(std::mem::take(&mut self.arbiters));
    }
}

fn end(arbiters: Vec<Arbiter>) {
    for arbiter in &arbiters {
        arbiter.stop();
    }
    for arbiter in arbiters {
        // One that panicked has ended too.
        let _ = arbiter.join();
    }
}

fn commit_neighbour(workers: &[Arbiter], fallback: &Arbiter) -> actix_rt::ArbiterHandle {
    workers.first().unwrap_or(fallback).handle()
}

fn limits(config: &Config) -> crate::wire::hello::Limits {
    let overhead = u32::try_from(FRAME_OVERHEAD_BYTES_MAX).unwrap_or(u32::MAX);
    crate::wire::hello::Limits {
        batch_bytes_max: config.batch_bytes_max,
        frame_bytes_max: config.batch_bytes_max.saturating_add(overhead),
        in_flight_batches_max: IN_FLIGHT_BATCHES_MAX,
        credit_bytes_max: config.credit_bytes_max(),
        readers_max: config.readers_per_connection_max,
    }
}

struct Standing<'a> {
    config: &'a Config,
    crash: CrashPoints,
    clock: Clock,
    gauge: Arc<LogGauge>,
    registry: Registry,
    vigil: Vigil,
    cache: Arc<TailCache>,
    pool: Arc<ReadPool>,
    ahead: Arc<ReadAhead>,
}

impl Standing<'_> {
    fn stats(&self, kind: &'static str) -> Arc<ActorStats> {
        self.registry.enter(
            kind,
            OwnerId(0),
            kind.to_owned(),
            self.config.standing_mailbox,
        )
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the one place where everything meets"
    )]
    fn actors(
        &self,
        opened: Opened,
        counters: &[(OwnerId, crate::domain::commit::Counters)],
        commit_arbiter: &Arbiter,
        store_arbiter: &Arbiter,
        views: crate::store::Views,
        mark: crate::domain::id::LogPosition,
        found: cleaner::Found,
    ) -> Result<House, StartError> {
        let config = self.config;
        let reader = opened.log.reader();
        let stats = self.stats("store");
        let (shared, crash) = (Arc::clone(&stats), self.crash.clone());
        let watched = self.vigil.watch("store");
        let addr = StoreActor::start_in_arbiter(&store_arbiter.handle(), move |_| {
            StoreActor::new(views, mark, shared, crash).watched(watched)
        });
        let store = Link::new(addr, stats);
        let stats = self.stats("commit");
        let newest = opened.newest.unwrap_or(WallMs(i64::MIN));
        let parts = CommitParts {
            machine: Commit::new(
                LogIndex(opened.next_index),
                newest,
                counters.iter().copied(),
            ),
            log: opened.log,
            cache: Arc::clone(&self.cache),
            clock: self.clock,
            gauge: Arc::clone(&self.gauge),
            stats: Arc::clone(&stats),
            crash: self.crash.clone(),
            checkpoint_bytes: config.checkpoint_bytes,
            watched: self.vigil.watch("commit"),
        };
        let addr = CommitActor::start_in_arbiter(&commit_arbiter.handle(), move |_| {
            CommitActor::new(parts)
        });
        let commit = Link::new(addr, stats);
        let stats = self.stats("checkpoint");
        let (commit_link, store_link, shared) = (commit.clone(), store.clone(), Arc::clone(&stats));
        let every = Duration::from_millis(config.checkpoint_ms);
        let watched = self.vigil.watch("checkpoint");
        let addr = CheckpointActor::start_in_arbiter(&store_arbiter.handle(), move |_| {
            CheckpointActor::new(commit_link, store_link, shared, every).watched(watched)
        });
        let checkpoint = Link::new(addr, stats);
        let stats = self.stats("cleaner");
        let (reader_link, commit_link, shared, clock) = (
            reader.clone(),
            commit.clone(),
            Arc::clone(&stats),
            self.clock,
        );
        let every = Duration::from_millis(config.retention_check_ms);
        let watched = self.vigil.watch("cleaner");
        let addr = CleanerActor::start_in_arbiter(&store_arbiter.handle(), move |_| {
            CleanerActor::new(reader_link, commit_link, shared, clock, every, found)
                .watched(watched)
        });
        let cleaner = Link::new(addr, stats);
        Ok(House {
            commit,
            store,
            checkpoint,
            cleaner,
            wheel: Wheel::default(),
            reader,
            pool: Arc::clone(&self.pool),
            ahead: Arc::clone(&self.ahead),
            cache: Arc::clone(&self.cache),
            convoys: Arc::new(Convoys::new(Arc::clone(&self.pool))),
            opened: Arc::new(OpenedBatches::new(
                config.opened_cache_bytes(),
                Arc::clone(&self.cache),
                Arc::clone(&self.pool),
            )),
            registry: self.registry.clone(),
            clock: self.clock,
            timer_limits: crate::actors::TopicTimers::new(TimerLimits {
                pending_max: Some(config.timers_max).filter(|max| *max > 0),
                delay_max_ms: Some(config.delay_ms_max).filter(|max| *max > 0),
            }),
            settings: Settings {
                transactions: config.transaction_limits(),
                groups: config.group_limits(),
                producers_per_partition_max: config.producers_per_partition_effective(),
                snapshot_bytes_max: config.snapshot_bytes_max(),
                producer_state_ms: config.producer_state_ms,
                partition_mailbox: config.partition_mailbox,
                standing_mailbox: config.standing_mailbox,
            },
            vigil: self.vigil.clone(),
        })
    }
}

/// Opens the endpoint on the first arbiter, where its driver then lives beside the sessions.
async fn listen_on(
    config: &Config,
    listen: SocketAddr,
    shared: &Arc<Shared>,
    handles: Vec<actix_rt::ArbiterHandle>,
) -> Result<Listening, StartError> {
    let certificates = match (&config.cert, &config.key) {
        (Some(chain), Some(key)) => Certificates::Given {
            chain: chain.clone(),
            key: key.clone(),
        },
        _ => Certificates::Development {
            dir: config.data.join("tls"),
        },
    };
    let options = EndpointOptions {
        listen,
        data: config.data.clone(),
        certificates,
        client_ca: config.client_ca.clone(),
        number: 0,
        handshakes_max: server::HANDSHAKES_MAX,
    };
    let (tx, opened) = oneshot::channel();
    let (shared, spread) = (Arc::clone(shared), handles.clone());
    let open = move || {
        let result = endpoint(&options);
        if let Ok(listening) = &result {
            actix_rt::spawn(server::accept(listening.clone(), shared, spread));
        }
        let _ = tx.send(result);
    };
    match handles.first() {
        Some(first) => {
            first.spawn_fn(open);
        }
        None => open(),
    }
    let opened = opened
        .await
        .map_err(|_| StartError::Interrupted("the arbiter is gone"))?;
    Ok(opened?)
}
