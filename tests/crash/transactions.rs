//! Transactions under kills of the broker and of their producers, at every step; the history of what
//! everybody saw is checked as a whole.
//!
//! Producers write to several partitions, at several levels of priority, and commit, roll back, or go away: before anything was sent, with
//! halves stored, in the middle of a commit. Half messages are left undecided, or their local transaction
//! breaks after it took effect, and check-back decides. An observer asks for decisions, both ways, again and
//! again; a reader reads all the while.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use waterwheel::client::{
    Client, Code, HalfMessage, LocalOutcome, LocalTransaction, Record, TopicConfig,
    TransactionError, TransactionId, TransactionInfo, TransactionalProducer,
};

use crate::child::{Broker, Launch, delete_views};
use crate::history::{Decided, History, Place, Read, Written, check};
use crate::load::{Progress, connect};
use crate::{Dice, POINTS, full, launch, run};

const TOPICS: [&str; 2] = ["orders", "points"];
const PARTITIONS: u32 = 2;
const LEVELS: u8 = 2;
/// How soon readers see a decision, at the latest.
const SEEN_WITHIN: Duration = Duration::from_secs(10);
const PRODUCERS: u64 = 4;
const GROUP: &str = "tills";

fn wanted() -> u64 {
    if full() { 10_000 } else { 500 }
}

/// What all of them write down.
#[derive(Default)]
struct Book {
    history: Mutex<History>,
    ids: Mutex<BTreeMap<u64, TransactionId>>,
    next: AtomicU64,
    /// The local database: what became of half messages.
    ledger: Mutex<BTreeMap<TransactionId, Decided>>,
}

impl Book {
    fn write(&self, number: u64, id: TransactionId, values: Vec<(Place, String)>) {
        let written = Written { values, told: None };
        let mut history = self.history.lock().expect("nobody panicked");
        history.transactions.insert(number, written);
        self.ids.lock().expect("nobody panicked").insert(number, id);
    }

    fn told(&self, number: u64, how: Decided) {
        let mut history = self.history.lock().expect("nobody panicked");
        let written = history
            .transactions
            .get_mut(&number)
            .expect("it was written");
        written.told = Some(how);
    }

    fn observe(&self, number: u64, how: Decided) {
        self.history
            .lock()
            .expect("nobody panicked")
            .observed
            .push((number, how));
    }

    /// What the local database says of a half message from now on: whoever comes first decides. The broker
    /// must come to the same.
    fn decide(&self, id: TransactionId, number: u64, how: Decided) -> Decided {
        let mut ledger = self.ledger.lock().expect("nobody panicked");
        let how = *ledger.entry(id).or_insert(how);
        self.observe(number, how);
        how
    }
}

/// The side of a half message that is elsewhere: it takes effect once, whoever comes first.
struct Till {
    book: Arc<Book>,
}

impl LocalTransaction for Till {
    fn execute<'a>(&'a self, id: TransactionId, record: &'a Record) -> BoxFuture<'a, LocalOutcome> {
        async move {
            let number = number_of(record);
            let how = if number.is_multiple_of(5) {
                Decided::Rollback
            } else {
                Decided::Commit
            };
            let how = self.book.decide(id, number, how);
            match number % 4 {
                // Killed between the local commit and the decision.
                0 => panic!("the till breaks, as it should here"),
                1 => LocalOutcome::Unknown,
                _ => outcome(how),
            }
        }
        .boxed()
    }

    fn check<'a>(&'a self, half: &'a HalfMessage) -> BoxFuture<'a, LocalOutcome> {
        // Whoever has not committed by now never will.
        async move {
            match half.records.first() {
                Some(record) => {
                    let number = number_of(record);
                    outcome(self.book.decide(half.id, number, Decided::Rollback))
                }
                // It could not be read this time.
                None => LocalOutcome::Unknown,
            }
        }
        .boxed()
    }
}

/// A value begins with its transaction's number.
fn number_of(record: &Record) -> u64 {
    let value = std::str::from_utf8(&record.value).ok();
    let number = value.and_then(|value| value.split(':').next()?.parse().ok());
    number.expect("a number")
}

fn outcome(how: Decided) -> LocalOutcome {
    match how {
        Decided::Commit => LocalOutcome::Commit,
        Decided::Rollback => LocalOutcome::Rollback,
    }
}

async fn session(client: &Client, book: &Arc<Book>, index: u64) -> TransactionalProducer {
    loop {
        let till = Till {
            book: Arc::clone(book),
        };
        let builder = client.transactional_producer(&format!("till-{index}"));
        match builder
            .group(GROUP)
            .local(till)
            .timeout(Duration::from_secs(60))
            .open()
            .await
        {
            Ok(session) => return session,
            Err(error) => assert!(error.is_retriable(), "a session can be opened: {error}"),
        }
    }
}

/// Which values a transaction writes, and where.
fn values(number: u64, dice: &mut Dice) -> Vec<(Place, String)> {
    (0..1 + dice.below(4))
        .map(|at| {
            let topic = TOPICS[dice.below(2) as usize].to_owned();
            let partition = dice.below(u64::from(PARTITIONS)) as u32;
            let level = dice.below(u64::from(LEVELS)) as u8;
            ((topic, partition, level), format!("{number}:{at}"))
        })
        .collect()
}

/// Writes transactions until there are enough. After whatever breaks its session, it opens another, as its
/// successor would.
async fn produce(
    client: Client,
    book: Arc<Book>,
    progress: Arc<Progress>,
    index: u64,
    mut dice: Dice,
) {
    let mut producer = session(&client, &book, index).await;
    while !progress.stopped() {
        let number = book.next.fetch_add(1, Ordering::SeqCst);
        let goes_on = if dice.below(5) == 0 {
            half(&producer, &book, number).await
        } else {
            whole(&producer, &book, number, &mut dice).await
        };
        progress.count();
        if !goes_on {
            producer = session(&client, &book, index).await;
        }
    }
}

async fn half(producer: &TransactionalProducer, book: &Book, number: u64) -> bool {
    let value = format!("{number}:0");
    let place = (
        TOPICS[0].to_owned(),
        (number % u64::from(PARTITIONS)) as u32,
        (number % 3 % u64::from(LEVELS)) as u8,
    );
    // Its key places it; where that is, the reader finds out.
    let record = Record::new(value.clone())
        .key(key_of(place.1))
        .priority(place.2);
    let sent = producer
        .send_half_within(TOPICS[0], record, Duration::from_millis(20))
        .await;
    // What became of it, its ledger says; one that was not executed was never there.
    let written = vec![(place, value)];
    book.write(number, TransactionId::default(), written);
    match sent {
        Ok(LocalOutcome::Commit) => book.told(number, Decided::Commit),
        Ok(LocalOutcome::Rollback) => book.told(number, Decided::Rollback),
        Ok(LocalOutcome::Unknown) => {}
        Err(_) => return false,
    }
    true
}

/// A key of each partition.
fn key_of(partition: u32) -> String {
    use waterwheel::domain::key::{key_hash, partition_of};
    let mut keys = (0..).map(|n: u32| format!("key-{n}"));
    let is_there = |key: &String| partition_of(key_hash(key.as_bytes()), PARTITIONS).0 == partition;
    keys.find(is_there).expect("there are many keys")
}

/// One transaction, ended in one of the ways there are; whether the session is still good.
async fn whole(
    producer: &TransactionalProducer,
    book: &Book,
    number: u64,
    dice: &mut Dice,
) -> bool {
    let mut transaction = producer.transaction();
    let id = transaction.id();
    let written = values(number, dice);
    book.write(number, id, written.clone());
    for ((topic, partition, level), value) in written {
        let sent = transaction
            .send_to(&topic, partition, Record::new(value).priority(level))
            .await;
        if sent.is_err() {
            return false;
        }
        if dice.below(4) == 0 && transaction.flush().await.is_err() {
            return false;
        }
    }
    match dice.below(20) {
        0 | 1 => rolled_back(transaction.rollback().await, book, number),
        // Its producer is killed: with nothing sent since the last flush, or with everything stored.
        2 => {
            std::mem::forget(transaction);
            false
        }
        3 => {
            let _ = transaction.flush().await;
            std::mem::forget(transaction);
            false
        }
        // In the middle of its commit.
        4 => {
            let commit = transaction.commit();
            let wait = Duration::from_micros(200 * dice.below(20));
            match tokio::time::timeout(wait, commit).await {
                Ok(committed_in_time) => committed(committed_in_time, book, number),
                Err(_) => false,
            }
        }
        5 => {
            drop(transaction);
            true
        }
        _ => committed(transaction.commit().await, book, number),
    }
}

fn committed(result: Result<(), TransactionError>, book: &Book, number: u64) -> bool {
    if result.is_ok() {
        book.told(number, Decided::Commit);
    }
    result.is_ok()
}

fn rolled_back(result: Result<(), TransactionError>, book: &Book, number: u64) -> bool {
    if result.is_ok() {
        book.told(number, Decided::Rollback);
    }
    result.is_ok()
}

/// Asks for decisions all the while: a person who wants the one, and is told which stands.
async fn observe(client: Client, book: Arc<Book>, progress: Arc<Progress>, mut dice: Dice) {
    while !progress.stopped() {
        let of = {
            let ids = book.ids.lock().expect("nobody panicked");
            let count = ids.len() as u64;
            // One that is still open would be decided by asking: only those that have been passed by.
            let at = count.saturating_sub(1 + 8 * PRODUCERS + dice.below(200));
            ids.iter()
                .nth(at as usize)
                .map(|(number, id)| (*number, *id))
        };
        match of {
            Some((number, id)) if id != TransactionId::default() => {
                ask(&client, &book, number, id, dice.below(2) == 0).await;
            }
            _ => tokio::task::yield_now().await,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn ask(client: &Client, book: &Book, number: u64, id: TransactionId, commit: bool) {
    let (this, other) = match commit {
        true => (Decided::Commit, Decided::Rollback),
        false => (Decided::Rollback, Decided::Commit),
    };
    match client.decide_transaction(id, commit).await {
        Ok(()) => book.observe(number, this),
        Err(error) if error.code() == Code::TransactionDecided.name() => {
            book.observe(number, other)
        }
        // Long forgotten, or the broker was killed meanwhile.
        Err(_) => {}
    }
}

/// One read of each level of a partition.
async fn read(client: &Client, topic: &str, partition: u32) -> Option<Vec<Read>> {
    let reader = client
        .reader(topic)
        .partition(partition)
        .until_end()
        .open()
        .await;
    let mut reader = reader.ok()?;
    let mut levels = vec![BTreeMap::new(); usize::from(LEVELS)];
    while let Some(delivery) = reader.next().await {
        let delivery = delivery.ok()?;
        let value = String::from_utf8(delivery.value.to_vec()).expect("values are text");
        levels[usize::from(delivery.priority)].insert(delivery.offset, value);
    }
    let read = |(level, values)| Read {
        place: (topic.to_owned(), partition, level),
        values,
    };
    Some((0..).zip(levels).map(read).collect())
}

async fn read_on(client: Client, book: Arc<Book>, progress: Arc<Progress>) {
    while !progress.stopped() {
        for topic in TOPICS {
            if let Some(seen) = read(&client, topic, 0).await {
                book.history
                    .lock()
                    .expect("nobody panicked")
                    .reads
                    .extend(seen);
            }
        }
        progress.changed().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Kills the broker again and again, at random and at named points, until there are enough transactions.
async fn torment(
    launch: &Launch,
    mut broker: Broker,
    progress: &Progress,
    dice: &mut Dice,
) -> Broker {
    let port = broker.address.port();
    let (mut kills, mut reached) = (0, 0);
    while progress.acked() < wanted() {
        let until = (progress.acked() + 20 + dice.below(60)).min(wanted());
        while progress.acked() < until {
            if broker.has_ended() {
                reached += 1;
                break;
            }
            progress.changed().await;
        }
        broker.kill();
        kills += 1;
        if dice.below(4) == 0 {
            delete_views(&launch.data);
        }
        let point = (kills % 2 == 0).then(|| POINTS[(kills / 2) % POINTS.len()]);
        let at = point.map(|point| format!("{point}:{}", 1 + dice.below(12)));
        broker = match launch.start(port, at.as_deref()) {
            Some(broker) => broker,
            None => {
                reached += 1;
                launch
                    .start(port, None)
                    .expect("it starts on what a kill left")
            }
        };
    }
    broker.kill();
    println!(
        "{kills} kills, {reached} at named points, {} transactions",
        progress.acked()
    );
    launch
        .start(port, None)
        .expect("it starts on what a kill left")
}

async fn tormented() {
    let mut dice = Dice::new();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut launch = launch(dir.path());
    launch
        .settings
        .push(("WATERWHEEL_TRANSACTION_CHECK_MS", "50".to_owned()));
    // Asked often, so it must be asked long: expiry overrules the till by design, which looks like a lost write.
    launch
        .settings
        .push(("WATERWHEEL_TRANSACTION_CHECKS_MAX", "1000".to_owned()));
    let broker = launch.start(0, None).expect("it starts");
    let address = broker.address;
    let client = connect(address, dir.path()).await;
    for topic in TOPICS {
        let mut config = TopicConfig::new(PARTITIONS);
        config.levels = LEVELS;
        client
            .create_topic(topic, config)
            .await
            .expect("a new topic");
    }
    let (book, progress) = (Arc::new(Book::default()), Arc::new(Progress::default()));
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..PRODUCERS {
        let client = connect(address, dir.path()).await;
        let (book, progress, dice) = (Arc::clone(&book), Arc::clone(&progress), dice.another());
        tasks.spawn(produce(client, book, progress, index, dice));
    }
    let observer = connect(address, dir.path()).await;
    tasks.spawn(observe(
        observer,
        Arc::clone(&book),
        Arc::clone(&progress),
        dice.another(),
    ));
    let reader = connect(address, dir.path()).await;
    tasks.spawn(read_on(reader, Arc::clone(&book), Arc::clone(&progress)));
    let broker = torment(&launch, broker, &progress, &mut dice).await;
    progress.stop();
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no task panics");
    }
    settle(&client, &book).await;
    drop(broker);
}

async fn all_transactions(client: &Client) -> Vec<TransactionInfo> {
    let mut all: Vec<TransactionInfo> = Vec::new();
    loop {
        let after = all.last().map(|one| one.id);
        let page = client.transactions(after).await;
        let page = page.expect("they can be listed");
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// Sees to it that everything is decided, reads everything, and checks.
async fn settle(client: &Client, book: &Arc<Book>) {
    // Successors roll back what was left; half messages are asked for as long as one of their group lives.
    let mut sessions = Vec::new();
    for index in 0..PRODUCERS {
        sessions.push(session(client, book, index).await);
    }
    loop {
        let listed = all_transactions(client).await;
        let expired = |one: &&TransactionInfo| one.by.as_deref() == Some("expiry");
        let expired: Vec<_> = listed.iter().filter(expired).collect();
        assert!(
            expired.is_empty(),
            "asked for and not answered: {expired:?}"
        );
        let open = |state: &str| state == "open" || state == "deciding";
        if !listed.iter().any(|one| open(&one.state)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ids: Vec<(u64, TransactionId)> = {
        let ids = book.ids.lock().expect("nobody panicked");
        ids.iter()
            .rev()
            .take(400)
            .map(|(number, id)| (*number, *id))
            .collect()
    };
    for (number, id) in ids {
        if id != TransactionId::default() {
            ask(client, book, number, id, true).await;
            ask(client, book, number, id, false).await;
        }
    }
    // A decision is seen by readers a moment after it is durable. What is lost stays lost however long it is
    // waited for.
    let deadline = Instant::now() + SEEN_WITHIN;
    loop {
        let mut last = Vec::new();
        for topic in TOPICS {
            for partition in 0..PARTITIONS {
                let read = read(client, topic, partition).await;
                last.extend(read.expect("it can be read"));
            }
        }
        let found = {
            let mut history = book.history.lock().expect("nobody panicked");
            history.last = last;
            check(&history)
        };
        if found.is_empty() || Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let history = book.history.lock().expect("nobody panicked");
    let committed = history
        .transactions
        .values()
        .filter(|one| one.told == Some(Decided::Commit));
    println!(
        "{} transactions, {} told committed, {} decisions observed, {} reads",
        history.transactions.len(),
        committed.count(),
        history.observed.len(),
        history.reads.len()
    );
    assert!(history.observed.len() > 50, "decisions were observed");
    let anomalies = check(&history);
    assert!(anomalies.is_empty(), "{anomalies:?}");
}

#[test]
fn every_history_of_transactions_under_kills_could_have_happened() {
    run(tormented());
}
