//! Consumer groups under kills of the broker and of members: what was acknowledged durably never comes
//! again, nothing is lost, and what is refused for good is among the dead letters once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use waterwheel::client::{
    Ack, Backoff, Client, Consumer, Delivery, Mode, Record, RetryPolicy, Start, TopicConfig,
};

use crate::child::delete_views;
use crate::load::{Progress, connect};
use crate::{Dice, die_at, kills, launch, run};

const TOPIC: &str = "work";
const GROUP: &str = "crew";
const LETTERS: &str = "crew.dead-letters";
/// Where the broker can be made to end by itself.
const POINTS: [&str; 5] = [
    "mid-flush",
    "after-flush",
    "mid-checkpoint",
    "before-mark",
    "during-recovery",
];
const MEMBERS: usize = 3;
const KEYS: u64 = 20;
/// Records sent together; so many at most are ahead of what is consumed.
const RUN: u64 = 50;
const AHEAD: u64 = 2_000;
/// Deliveries of a record: what a member took with it counts as one, and no record has bad luck so often.
const ATTEMPTS: u16 = 8;
/// A group that does not get on for so long is stuck.
const STUCK: Duration = Duration::from_secs(90);

/// What members know together.
#[derive(Debug, Default)]
struct Book {
    sent: u64,
    /// Delivered, however it went on.
    seen: BTreeSet<u64>,
    /// Acknowledged, and the answer came: durable.
    done: BTreeSet<u64>,
    /// Refused for good, and the answer came.
    refused: BTreeSet<u64>,
    /// The highest number delivered of each key.
    newest: BTreeMap<u64, u64>,
}

type Shared = Arc<Mutex<Book>>;

/// What is to become of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Consumed,
    /// After it was refused once.
    ConsumedAgain,
    /// Refused whenever it comes, until the group gives it up.
    Refused,
    /// To the dead letters at once.
    Rejected,
}

fn fate(number: u64) -> Fate {
    match number % 12 {
        3 => Fate::Refused,
        5 | 8 => Fate::ConsumedAgain,
        7 => Fate::Rejected,
        _ => Fate::Consumed,
    }
}

fn is_dead(number: u64) -> bool {
    matches!(fate(number), Fate::Refused | Fate::Rejected)
}

fn number(delivery: &Delivery) -> u64 {
    let text = std::str::from_utf8(&delivery.value).expect("a number");
    text.split(':')
        .next()
        .and_then(|n| n.parse().ok())
        .expect("a number")
}

async fn send(client: Client, book: Shared, progress: Arc<Progress>) {
    let producer = client
        .producer(TOPIC)
        .ack(Ack::Durable)
        .timeout(Duration::from_secs(120))
        .open()
        .await
        .expect("the topic is there");
    while !progress.stopped() {
        let (from, behind) = {
            let book = book.lock().expect("nobody panicked");
            (book.sent, book.sent - book.seen.len() as u64)
        };
        if behind > AHEAD {
            progress.changed().await;
            continue;
        }
        let mut pending = Vec::new();
        for number in from..from + RUN {
            let value = format!("{number}:{}", "x".repeat((number % 5) as usize * 100));
            let record = Record::new(value).key(format!("k{}", number % KEYS));
            pending.push(producer.enqueue(record).await.expect("there is room"));
        }
        for receipt in pending {
            receipt.await.expect("it is stored in the end");
        }
        book.lock().expect("nobody panicked").sent = from + RUN;
    }
}

async fn join(client: &Client, mode: Mode) -> Consumer {
    let policy = RetryPolicy {
        backoff: Backoff::Listed(vec![5, 30]),
        attempts_max: ATTEMPTS,
        ..RetryPolicy::default()
    };
    let consumer = client.consumer(GROUP).topic(TOPIC).mode(mode);
    let consumer = consumer.retry(policy).prefetch(1 << 20, 300);
    consumer.open().await.expect("it joins in the end")
}

/// Takes what comes and deals with it as its number says, for ever.
async fn consume(client: Client, mode: Mode, book: Shared, progress: Arc<Progress>) {
    let mut consumer = join(&client, mode).await;
    loop {
        let wait = Duration::from_millis(100);
        let batch = match consumer.next_batch(40, wait).await {
            Ok(batch) => batch,
            Err(error) => panic!("a member is told {error}"),
        };
        let mut said = Vec::new();
        for delivery in &batch {
            let number = number(delivery);
            note(&book, mode, number, delivery.attempt);
            let settlement = match fate(number) {
                Fate::Consumed => consumer.ack(delivery),
                Fate::ConsumedAgain if delivery.attempt > 1 => consumer.ack(delivery),
                Fate::ConsumedAgain | Fate::Refused => consumer.nack(delivery, "as it must be"),
                Fate::Rejected => consumer.reject(delivery, "as it must be"),
            };
            said.push((number, delivery.attempt, settlement));
        }
        for (number, attempt, settlement) in said {
            // Lost with the broker: it comes again, or it counted and the answer is lost.
            if settlement.await.is_err() {
                continue;
            }
            let mut book = book.lock().expect("nobody panicked");
            // What a member was sent by a broker that is dead it may still take, and nothing it says of that
            // counts. What counts of a record is its first durable answer for good, and nothing after it.
            assert!(
                !book.done.contains(&number),
                "{number} was acknowledged durably, and was leased again"
            );
            assert!(
                !book.refused.contains(&number),
                "{number} was rejected durably, and was leased again"
            );
            match fate(number) {
                Fate::Consumed => book.done.insert(number),
                Fate::ConsumedAgain if attempt > 1 => book.done.insert(number),
                Fate::Rejected => book.refused.insert(number),
                Fate::ConsumedAgain | Fate::Refused => true,
            };
            drop(book);
            progress.count();
        }
    }
}

fn note(book: &Shared, mode: Mode, number: u64, attempt: u16) {
    let mut book = book.lock().expect("nobody panicked");
    assert!(
        attempt <= ATTEMPTS,
        "{number} comes for the {attempt}th time"
    );
    if book.seen.insert(number) && mode == Mode::KeyOrdered {
        let before = book.newest.insert(number % KEYS, number);
        assert!(
            before.is_none_or(|before| before < number),
            "{number} of its key comes behind {before:?}"
        );
    }
}

/// Everything sent was delivered and is consumed or dead; the dead letters are what they must be, once each.
async fn audit(client: &Client, book: &Book) {
    let mut reader = client
        .reader(LETTERS)
        .from(Start::Earliest)
        .until_end()
        .open()
        .await
        .expect("there are dead letters");
    let mut letters = BTreeSet::new();
    while let Some(letter) = reader.next().await {
        let number = number(&letter.expect("every letter can be read"));
        assert!(
            letters.insert(number),
            "{number} is among the dead letters twice"
        );
    }
    let all: BTreeSet<u64> = (0..book.sent).collect();
    assert_eq!(book.seen, all, "nothing is lost, nothing is foreign");
    let dead: BTreeSet<u64> = all.into_iter().filter(|number| is_dead(*number)).collect();
    assert_eq!(
        letters, dead,
        "the dead letters are those that were refused"
    );
}

async fn torment(mode: Mode, kills: usize) {
    let mut dice = Dice::new();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let launch = launch(dir.path());
    let mut broker = launch.start(0, None).expect("it starts");
    let (port, address) = (broker.address.port(), broker.address);
    let client = connect(address, dir.path()).await;
    let config = TopicConfig::new(3);
    client
        .create_topic(TOPIC, config)
        .await
        .expect("a new topic");
    let (book, progress) = (Shared::default(), Arc::new(Progress::default()));
    let sending = tokio::spawn(send(client, Arc::clone(&book), Arc::clone(&progress)));
    let member = |data: std::path::PathBuf| {
        let (book, progress) = (Arc::clone(&book), Arc::clone(&progress));
        tokio::spawn(async move {
            let client = connect(address, &data).await;
            consume(client, mode, book, progress).await;
        })
    };
    let mut members: Vec<_> = (0..MEMBERS).map(|_| member(dir.path().into())).collect();
    for round in 0..kills {
        let until = progress.acked() + 40 + dice.below(300);
        let begun = std::time::Instant::now();
        while progress.acked() < until {
            assert!(!broker.has_ended(), "the broker runs until it is killed");
            assert!(begun.elapsed() < STUCK, "the group is stuck");
            check(&mut members).await;
            progress.changed().await;
        }
        // A member goes in the middle of whatever it does; another comes.
        if dice.below(2) == 0 {
            let which = dice.below(MEMBERS as u64) as usize;
            members[which].abort();
            members[which] = member(dir.path().into());
        }
        if round % 3 == 0 {
            continue;
        }
        broker.kill();
        if dice.below(4) == 0 {
            delete_views(dir.path());
        }
        if round % 3 == 2 {
            let point = POINTS[round / 3 % POINTS.len()];
            let dying = die_at(&launch, port, point, (&progress, 300), &mut dice);
            let ended = tokio::time::timeout(STUCK, dying).await;
            ended.expect("the group is stuck");
            check(&mut members).await;
        }
        broker = launch
            .start(port, None)
            .expect("it starts on what a kill left");
    }
    progress.stop();
    sending.await.expect("nobody panicked");
    let client = connect(address, dir.path()).await;
    let begun = std::time::Instant::now();
    while client
        .describe_group(GROUP)
        .await
        .expect("it is there")
        .lag(None)
        > 0
    {
        assert!(begun.elapsed() < STUCK, "the group is stuck");
        check(&mut members).await;
        progress.changed().await;
    }
    check(&mut members).await;
    for member in members {
        member.abort();
    }
    let book = std::mem::take(&mut *book.lock().expect("nobody panicked"));
    println!("{kills} rounds, {} records", book.sent);
    audit(&client, &book).await;
}

/// A member only ends by a failed assertion.
async fn check(members: &mut [tokio::task::JoinHandle<()>]) {
    for member in members {
        if member.is_finished() {
            member.await.expect("a member does not panic");
        }
    }
}

#[test]
fn a_shared_group_loses_and_repeats_nothing_whatever_is_killed() {
    run(torment(Mode::Shared, kills() / 2));
}

#[test]
fn a_key_ordered_group_loses_and_repeats_nothing_whatever_is_killed() {
    run(torment(Mode::KeyOrdered, kills() / 2));
}
