//! A broker as a guest: it changes nothing of the process it lives in, leaves nothing behind, and there may
//! be several.
//!
//! One test, because it is about one process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};
use waterwheel::broker::StartError;
use waterwheel::client::{Ack, AdminError, Client, Record, TopicConfig};
use waterwheel::{Broker, Config};

/// The host's subscriber: remembers the targets of what it hears.
#[derive(Clone, Default)]
struct Host {
    targets: Arc<Mutex<BTreeSet<String>>>,
    spans: Arc<AtomicUsize>,
}

struct Nothing;

impl Visit for Nothing {
    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

impl Subscriber for Host {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("waterwheel")
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed) as u64 + 1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        event.record(&mut Nothing);
        let target = event.metadata().target().to_owned();
        self.targets.lock().unwrap().insert(target);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// The signals this process catches, as the kernel has them.
fn caught_signals() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("SigCgt"));
    line.unwrap().to_owned()
}

async fn send_and_read(client: &Client, value: &str) -> Vec<String> {
    if client.topic("orders").await.is_err() {
        client
            .create_topic("orders", TopicConfig::new(1))
            .await
            .unwrap();
    }
    let producer = client.producer("orders").open().await.unwrap();
    producer.send(Record::new(value.to_owned())).await.unwrap();
    let mut reader = client.reader("orders").until_end().open().await.unwrap();
    let mut values = Vec::new();
    while let Some(delivery) = reader.next().await {
        values.push(String::from_utf8(delivery.unwrap().value.to_vec()).unwrap());
    }
    values
}

fn listening() -> Config {
    Config {
        listen: Some(([127, 0, 0, 1], 0).into()),
        ..Config::temporary()
    }
}

/// Runs on a thread and a runtime that know nothing of actix.
fn elsewhere<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    std::thread::spawn(move || runtime().block_on(future))
        .join()
        .unwrap()
}

static HOOKED: AtomicBool = AtomicBool::new(false);

#[test]
fn a_broker_is_a_good_guest() {
    let error = elsewhere(Broker::start(Config::temporary())).unwrap_err();
    assert!(matches!(error, StartError::NoSystem), "{error}");
    assert_eq!((error.code(), error.is_retriable()), ("no-system", false));

    std::panic::set_hook(Box::new(|_| HOOKED.store(true, Ordering::SeqCst)));
    let signals = caught_signals();
    actix_rt::System::new().block_on(async {
        let (one_config, other_config) = (listening(), listening());
        let one = Broker::start(one_config.clone()).await.unwrap();
        let other = Broker::start(other_config.clone()).await.unwrap();
        // Whoever comes after the brokers may still install his own of everything.
        let host = Host::default();
        tracing::subscriber::set_global_default(host.clone()).expect("nobody was before the host");
        assert!(rustls::crypto::CryptoProvider::get_default().is_none());
        assert_eq!(caught_signals(), signals, "no signal handler");

        two_brokers_know_nothing_of_each_other(&one, &other, &other_config).await;
        let targets = host.targets.lock().unwrap().clone();
        assert!(
            targets.iter().any(|t| t == "waterwheel::trace"),
            "{targets:?}"
        );
        assert!(rustls::crypto::CryptoProvider::get_default().is_none());

        a_directory_has_one_broker(&one_config, one).await;
        a_client_that_vanishes_is_noticed(&other).await;
        what_was_sent_before_the_stop_is_kept(other_config, other).await;
        assert_eq!(caught_signals(), signals, "no signal handler");
    });
    let _ = std::thread::spawn(|| panic!("for the host's hook")).join();
    assert!(
        HOOKED.load(Ordering::SeqCst),
        "the panic hook is the host's"
    );
}

async fn two_brokers_know_nothing_of_each_other(one: &Broker, other: &Broker, of_other: &Config) {
    let in_process = one.client().await.unwrap();
    assert_eq!(send_and_read(&in_process, "one").await, ["one"]);
    let (address, ca) = (
        other.local_addr().unwrap(),
        of_other.data.join("tls/ca.pem"),
    );
    let (found, cluster) = elsewhere(async move {
        let client = Client::connect(&address.to_string()).ca(ca).await.unwrap();
        (
            send_and_read(&client, "other").await,
            client.broker().cluster,
        )
    });
    assert_eq!(found, ["other"]);
    assert_ne!(cluster, in_process.broker().cluster);
    // From a runtime that is not actix', too.
    let connect = other.client();
    let found = elsewhere(async move { send_and_read(&connect.await.unwrap(), "again").await });
    assert_eq!(found, ["other", "again"]);
}

async fn a_directory_has_one_broker(config: &Config, broker: Broker) {
    let error = Broker::start(config.clone()).await.unwrap_err();
    assert!(matches!(error, StartError::Locked(_)), "{error}");
    assert!(error.is_retriable());
    broker.stop().await;
    let again = Broker::start(config.clone())
        .await
        .expect("the lock is free");
    let client = again.client().await.unwrap();
    assert_eq!(send_and_read(&client, "two").await, ["one", "two"]);
    again.stop().await;
    let error = client.topics().await.unwrap_err();
    assert!(matches!(error, AdminError::Disconnected), "{error}");
}

async fn a_client_that_vanishes_is_noticed(broker: &Broker) {
    let client = broker.client().await.unwrap();
    let before = client.status(false).await.unwrap().broker.connections;
    let connect = broker.client();
    let during = elsewhere(async move {
        let client = connect.await.unwrap();
        let _reader = client.reader("orders").open().await.unwrap();
        client.status(false).await.unwrap().broker.connections
        // Its runtime ends here, with everything in it.
    });
    assert_eq!(during, before + 1);
    while client.status(false).await.unwrap().broker.connections > before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn what_was_sent_before_the_stop_is_kept(config: Config, broker: Broker) {
    let client = broker.client().await.unwrap();
    let producer = client
        .producer("orders")
        .ack(Ack::Memory)
        .open()
        .await
        .unwrap();
    for n in 0..100 {
        producer
            .send_one_way(Record::new(n.to_string()))
            .await
            .unwrap();
    }
    producer.close().await.unwrap();
    broker.stop().await;
    let path = config.data.clone();
    let broker = Broker::start(config).await.unwrap();
    let client = broker.client().await.unwrap();
    assert_eq!(send_and_read(&client, "last").await.len(), 103);
    drop(client);
    broker.stop().await;
    assert!(!path.exists(), "a temporary directory goes with its broker");
}
