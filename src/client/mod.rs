//! The client: sending, reading and administering over QUIC, from any tokio runtime.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use waterwheel::client::{Client, Record, Start};
//!
//! let client = Client::connect("127.0.0.1:7411")
//!     .ca("waterwheel-data/tls/ca.pem")
//!     .await?;
//! let producer = client.producer("orders").open().await?;
//! let receipt = producer.send(Record::new("42 roses").key("order-17")).await?;
//! println!("stored at offset {:?}", receipt.offset);
//!
//! let mut reader = client.reader("orders").from(Start::Earliest).open().await?;
//! if let Some(delivery) = reader.next().await {
//!     println!("{:?}", delivery?.value);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] keeps one connection, replaces it when it is lost or silent, and is cheap to clone.
//! Whoever wants several connections makes several clients. Its tasks run on the runtime it was made
//! in and end with its last clone, producer and reader.

mod admin;
mod attach;
mod connection;
mod consumer;
mod credit;
mod delivery;
mod error;
mod groups;
mod inbox;
mod leased;
mod letters;
mod link;
mod member_session;
mod membership;
mod outbox;
mod partition_reader;
mod pending;
mod producer;
mod race;
mod reader;
mod runner;
mod sender;
mod settle;
mod switchboard;
mod timers;
mod transaction;
mod trust;
mod typed;

use std::future::IntoFuture;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use connection::{ConnectLocal, ConnectOptions, Dialer, Pem};
use switchboard::{Hold, Switchboard};

pub use crate::domain::batch::{BatchError, BatchView, Compression, Delivery as DeliveryTime};
pub use crate::domain::id::{
    ClusterId, Lane, MessageId, Offset, PartitionIndex, RecordNumber, TopicId,
};
pub use crate::domain::payload::Payload;
pub use crate::domain::record::{BodyError, DELAY_LEVELS_MS, Record, Text};
pub use crate::domain::time::WallMs;
pub use crate::wire::code::Code;
pub use crate::wire::group::{
    AlterSubscription, Backoff, GroupInfo, GroupState, MemberInfo, Mode, PlaceInfo, PlaceReset,
    Poison, RetryPolicy, Subscription,
};
pub use crate::wire::hello::{HelloOk, Limits};
pub use crate::wire::produce::Ack;
pub use crate::wire::status::{ActorInfo, StatusOk};
pub use crate::wire::timer::{NotAHandle, TimerHandle, TimerState};
pub use crate::wire::topic::{
    AlterTopic, FlushMode, OffsetOk, PartitionInfo, TopicConfig, TopicInfo,
};
pub use bytes::Bytes;

pub use admin::{BrokerStatus, DeletedTopic, Start, TopicDescription};
pub use consumer::{AckMode, Consumer, ConsumerBuilder};
pub use delivery::{Delivery, DeliveryBatch};
pub use error::{
    AdminError, ConnectError, ConsumeError, DecodeError, EncodeError, Refusal, SendError,
};
pub use groups::{GroupDescription, ResetTo};
pub use inbox::{Effect, Inbox};
pub use letters::{DeadLetter, DeadLetters, LetterFault, LetterOrigin, LettersDone};
pub use pending::{Pending, PendingDurable, PendingRun, Receipt, RunReceipt, SendStatus};
pub use producer::{Producer, ProducerBuilder};
pub use reader::{Fetched, Reader, ReaderBuilder};
pub use runner::{HandlerError, RunSummary};
pub use settle::{SettleError, Settlement, Settler};
pub use timers::{ListTimersBuilder, PendingTimer, TimerPage, Timers};
pub use transaction::{
    HalfMessage, LocalOutcome, LocalTransaction, ParticipantInfo, Transaction, TransactionError,
    TransactionId, TransactionInfo, TransactionalProducer, TransactionalProducerBuilder,
};

/// How long connecting, or one request, may take unless configured otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Configures a connection; made by [`Client::connect`], awaited to connect.
#[derive(Clone)]
#[must_use = "nothing happens before it is awaited"]
pub struct Connect {
    options: ConnectOptions,
    /// In this process, instead.
    local: Option<ConnectLocal>,
    timeout: Duration,
}

impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect")
            .field("address", &self.options.address)
            .field("local", &self.local.is_some())
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl Connect {
    #[cfg(feature = "broker")]
    /// To the broker in this process: addresses and certificates mean nothing then.
    pub(crate) fn local(connect: ConnectLocal) -> Self {
        Self {
            options: ConnectOptions::new("in process"),
            local: Some(connect),
            timeout: TIMEOUT_DEFAULT,
        }
    }

    /// The certificate of the CA that vouches for the broker: a PEM file.
    pub fn ca(mut self, path: impl AsRef<Path>) -> Self {
        self.options.ca = Some(Pem::File(path.as_ref().to_owned()));
        self
    }

    /// The same, as PEM bytes.
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.options.ca = Some(Pem::Bytes(pem.into()));
        self
    }

    /// The client's own certificate and key: PEM files. For brokers that ask for one.
    pub fn identity(mut self, certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        self.options.identity = Some((
            Pem::File(certificate.as_ref().to_owned()),
            Pem::File(key.as_ref().to_owned()),
        ));
        self
    }

    /// The same, as PEM bytes.
    pub fn identity_pem(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.options.identity = Some((Pem::Bytes(certificate.into()), Pem::Bytes(key.into())));
        self
    }

    /// The name the broker's certificate has to bear. Default: the host of the address.
    pub fn server_name(mut self, name: &str) -> Self {
        self.options.server_name = Some(name.to_owned());
        self
    }

    /// How long connecting, and later each request, may take. Default 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The largest UDP payload taken and looked for, in bytes, at least 1 200. Default 65 527, which
    /// loopback carries; on other paths discovery settles for what passes.
    pub fn datagram_bytes_max(mut self, bytes: u16) -> Self {
        self.options.datagram_bytes_max = bytes;
        self
    }
}

impl IntoFuture for Connect {
    type Output = Result<Client, ConnectError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            if tokio::runtime::Handle::try_current().is_err() {
                return Err(ConnectError::Local("there is no tokio runtime".to_owned()));
            }
            let dialer = Arc::new(match self.local {
                Some(connect) => Dialer::Local(connect),
                None => Dialer::quic(self.options).await?,
            });
            let (board, hold) = switchboard::start(dialer, self.timeout).await?;
            let hello = board.borrow().as_ref().map(|link| link.hello().clone());
            let hello = hello.ok_or_else(|| ConnectError::Local("no connection".to_owned()))?;
            Ok(Client {
                board,
                credit: Arc::default(),
                hold: Arc::new(hold),
                hello: Arc::new(hello),
                timeout: self.timeout,
            })
        })
    }
}

/// A connection to a broker, kept alive. Cheap to clone.
///
/// ```
/// # actix_rt::System::new().block_on(async {
/// # let broker = waterwheel::Broker::start(waterwheel::Config::temporary()).await?;
/// # let client = broker.client().await?;
/// // let client = Client::connect("127.0.0.1:7411").ca("ca.pem").await?;
/// use waterwheel::client::{Code, TopicConfig};
/// match client.create_topic("orders", TopicConfig::new(8)).await {
///     Ok(topic) => println!("{} partitions", topic.config.partitions),
///     Err(error) if error.code() == Code::TopicExists.name() => {}
///     Err(error) => return Err(error.into()),
/// }
/// assert!(client.status(false).await?.broker.ready);
/// client.close().await;
/// # broker.stop().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    board: Switchboard,
    /// What its readers may be sent: together no more than the broker lets one connection have.
    credit: Arc<Mutex<u64>>,
    hold: Arc<Hold>,
    hello: Arc<HelloOk>,
    timeout: Duration,
}

impl Client {
    /// Configures a connection to the broker at `HOST:PORT`.
    pub fn connect(address: &str) -> Connect {
        Connect {
            options: ConnectOptions::new(address),
            local: None,
            timeout: TIMEOUT_DEFAULT,
        }
    }

    /// What the broker said of itself when the client connected.
    #[must_use]
    pub fn broker(&self) -> &HelloOk {
        &self.hello
    }

    /// Delayed records that wait for their time: to cancel, to reschedule, to look at, to list.
    #[must_use]
    pub fn timers(&self) -> Timers {
        Timers::new(self.clone())
    }

    /// Configures a producer to a topic.
    pub fn producer(&self, topic: &str) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), topic)
    }

    /// Configures a reader of a topic.
    pub fn reader(&self, topic: &str) -> ReaderBuilder {
        ReaderBuilder::new(self.clone(), topic)
    }

    /// Configures a consumer: a member of a group.
    pub fn consumer(&self, group: &str) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), group)
    }

    /// Closes the connection and waits until the broker was told. It is closed for every clone, producer
    /// and reader: what they are asked then fails with the code `disconnected`, so close producers first.
    ///
    /// Dropping the last clone, producer and reader closes it too, without waiting: a process that ends
    /// at once may leave the broker to find out by itself, which takes it up to 30 s.
    pub async fn close(self) {
        self.hold.close().await;
    }

    fn limits(&self) -> Limits {
        self.hello.limits
    }

    fn board(&self) -> Switchboard {
        self.board.clone()
    }

    fn request_timeout(&self) -> Duration {
        self.timeout
    }
}

#[cfg(test)]
mod tests;
