//! Dead letters under kills at every stage: while they are written, brought back, cleared and consumed again.
//! From outside, each is there once, each that was brought back is back once, and none that was cleared.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use waterwheel::client::{
    Ack, Backoff, Client, Delivery, Mode, Record, RetryPolicy, Start, TopicConfig,
};

use crate::child::{Broker, Launch, delete_views};
use crate::load::{Progress, connect};
use crate::{Dice, full, launch, run};

const TOPIC: &str = "work";
const GROUP: &str = "crew";
const LETTERS: &str = "crew.dead-letters";
/// Letters lie in two partitions by their keys: one is brought back, the other cleared.
const BACK: u32 = 0;
const CLEARED: u32 = 1;
const KEYS: u64 = 40;
const MEMBERS: usize = 2;
/// Letters brought back or cleared with one request.
const AT_ONCE: u64 = 30;
/// Where the broker ends by itself, again and again.
const POINTS: [&str; 4] = ["mid-flush", "after-flush", "mid-checkpoint", "before-mark"];
/// A stage that does not end by then does not end at all.
const STUCK: Duration = Duration::from_secs(90);

/// The broker as it is killed, and everybody beside it.
struct Stage {
    launch: Launch,
    port: u16,
    broker: Option<Broker>,
    dice: Dice,
    progress: Arc<Progress>,
    kills: usize,
}

impl Stage {
    /// Has the broker end at one point after the other while `work` goes on, then lets it come to its end.
    async fn through<T>(&mut self, name: &str, kills: usize, mut work: JoinHandle<T>) -> T {
        let begun = Instant::now();
        for kill in 0..kills {
            drop(self.broker.take());
            if self.dice.below(5) == 0 {
                delete_views(&self.launch.data);
            }
            let point = POINTS[kill % POINTS.len()];
            let passes = 1 + self.dice.below(4);
            let at = format!("{point}:{passes}");
            self.broker = self.launch.start(self.port, Some(&at));
            while let Some(broker) = &mut self.broker
                && !broker.has_ended()
                && !work.is_finished()
            {
                assert!(begun.elapsed() < STUCK, "{name} does not get on");
                self.progress.changed().await;
            }
            if work.is_finished() {
                break;
            }
            self.kills += 1;
        }
        drop(self.broker.take());
        self.broker = self.launch.start(self.port, None);
        let left = STUCK.saturating_sub(begun.elapsed());
        let ended = tokio::time::timeout(left, &mut work).await;
        ended
            .unwrap_or_else(|_| panic!("{name} does not get on"))
            .expect("nobody panicked")
    }
}

fn number(value: &[u8]) -> u64 {
    let text = std::str::from_utf8(value).expect("a number");
    text.parse().expect("a number")
}

async fn send(client: &Client, count: u64) {
    let producer = client.producer(TOPIC).ack(Ack::Durable);
    let producer = producer.open().await.expect("the topic is there");
    for number in 0..count {
        let record = Record::new(number.to_string()).key(format!("k{}", number % KEYS));
        drop(producer.enqueue(record).await.expect("there is room"));
    }
    producer.flush().await.expect("all of it is stored");
}

/// Refuses what comes as long as it is to be refused, then consumes it; how often each was consumed, durably.
async fn work(
    client: Client,
    refuses: Arc<AtomicBool>,
    consumed: Arc<Mutex<BTreeMap<u64, u32>>>,
    progress: Arc<Progress>,
) {
    let policy = RetryPolicy {
        backoff: Backoff::Listed(vec![5]),
        attempts_max: 2,
        ..RetryPolicy::default()
    };
    let consumer = client.consumer(GROUP).topic(TOPIC).mode(Mode::Shared);
    let consumer = consumer.retry(policy).prefetch(1 << 20, 200);
    let mut consumer = consumer.open().await.expect("it joins in the end");
    loop {
        let wait = Duration::from_millis(50);
        let batch = consumer.next_batch(40, wait).await.expect("it goes on");
        let say = |delivery: &Delivery| match refuses.load(Ordering::SeqCst) {
            true => consumer.nack(delivery, "as it must be"),
            false => consumer.ack(delivery),
        };
        let said: Vec<_> = batch.iter().map(|d| (number(&d.value), say(d))).collect();
        for (number, settlement) in said {
            if settlement.await.is_ok() && !refuses.load(Ordering::SeqCst) {
                let mut consumed = consumed.lock().expect("nobody panicked");
                *consumed.entry(number).or_default() += 1;
            }
            progress.count();
        }
    }
}

/// Until nothing is left to be consumed.
async fn consumed(client: Client) {
    loop {
        match client.describe_group(GROUP).await {
            Ok(group) if group.lag(None) == 0 => return,
            Ok(_) => tokio::task::yield_now().await,
            Err(why) => assert!(why.is_retriable(), "{why}"),
        }
    }
}

/// Brings letters back, or clears them, a few at a time until none is open: how many the broker said it were.
async fn settle(client: Client, partition: u32) -> u64 {
    let mut done = 0;
    loop {
        let letters = client
            .dead_letters(LETTERS)
            .partition(partition)
            .max(AT_ONCE);
        let answer = match partition {
            BACK => letters.redrive().await,
            _ => letters.purge().await,
        };
        match answer {
            Ok(settled) => {
                assert_eq!(settled.faulty, 0, "{settled:?}");
                if settled.done == 0 {
                    return done;
                }
                done += settled.done;
            }
            Err(why) => assert!(why.is_retriable(), "{why}"),
        }
    }
}

/// How often each number is in a topic, by partition.
async fn count(client: &Client, topic: &str) -> BTreeMap<u64, Vec<u32>> {
    let reader = client.reader(topic).from(Start::Earliest).until_end();
    let mut reader = reader.open().await.expect("it is there");
    let mut counted: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    while let Some(record) = reader.next().await {
        let record = record.expect("every record can be read");
        let places = counted.entry(number(&record.value)).or_default();
        places.push(record.partition);
    }
    counted
}

async fn torment(records: u64, kills: usize) {
    let mut dice = Dice::new();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let launch = launch(dir.path());
    let broker = launch.start(0, None).expect("it starts");
    let address = broker.address;
    let client = connect(address, dir.path()).await;
    for topic in [TOPIC, LETTERS] {
        let made = client.create_topic(topic, TopicConfig::new(2)).await;
        made.expect("a new topic");
    }
    send(&client, records).await;
    let (refuses, consumed_by) = (Arc::new(AtomicBool::new(true)), Arc::default());
    let progress = Arc::new(Progress::default());
    let member = |data: PathBuf| {
        let (refuses, consumed_by) = (Arc::clone(&refuses), Arc::clone(&consumed_by));
        let progress = Arc::clone(&progress);
        tokio::spawn(async move {
            let client = connect(address, &data).await;
            work(client, refuses, consumed_by, progress).await;
        })
    };
    let members: Vec<_> = (0..MEMBERS).map(|_| member(dir.path().into())).collect();
    // The group is there once its first member is.
    while client.describe_group(GROUP).await.is_err() {
        progress.changed().await;
    }
    let mut stage = Stage {
        launch,
        port: address.port(),
        broker: Some(broker),
        dice: dice.another(),
        progress: Arc::clone(&progress),
        kills: 0,
    };
    let dying = tokio::spawn(consumed(client.clone()));
    stage.through("dying", kills, dying).await;
    let letters = count(&client, LETTERS).await;
    assert_eq!(letters.len() as u64, records, "each is among the letters");
    assert!(letters.values().all(|at| at.len() == 1), "and once");
    let in_partition = |partition| {
        let there = letters
            .iter()
            .filter(move |(_, at)| at.contains(&partition));
        there.map(|(number, _)| *number).collect::<Vec<u64>>()
    };
    let (back, cleared) = (in_partition(BACK), in_partition(CLEARED));
    assert!(!back.is_empty() && !cleared.is_empty());
    refuses.store(false, Ordering::SeqCst);
    for (partition, name, of) in [
        (BACK, "bringing back", &back),
        (CLEARED, "clearing", &cleared),
    ] {
        let settling = tokio::spawn(settle(client.clone(), partition));
        let done = stage.through(name, kills, settling).await;
        // An answer may be lost with the broker, and what it was of is not counted then.
        assert!(done <= of.len() as u64, "{name}: {done} of {}", of.len());
    }
    let again = tokio::spawn(consumed(client.clone()));
    stage.through("consuming", kills, again).await;
    for member in members {
        assert!(!member.is_finished(), "a member does not panic");
        member.abort();
    }
    println!("{} kills, {records} records", stage.kills);
    let open = client.dead_letters(LETTERS).list().await;
    assert!(open.expect("they can be asked for").is_empty());
    assert_eq!(count(&client, LETTERS).await, letters, "nothing died again");
    let there = count(&client, TOPIC).await;
    for number in back {
        assert_eq!(there[&number].len(), 2, "{number} is back, and once");
    }
    for number in cleared {
        assert_eq!(there[&number].len(), 1, "{number} was cleared");
    }
    let consumed_by: std::sync::MutexGuard<'_, BTreeMap<u64, u32>> =
        consumed_by.lock().expect("nobody panicked");
    for (number, times) in consumed_by.iter() {
        assert_eq!(*times, 1, "{number} was consumed, durably");
        assert_eq!(letters[number], [BACK], "{number} was brought back");
    }
}

#[test]
fn every_letter_is_written_brought_back_or_cleared_once_whatever_is_killed() {
    let (records, kills) = if full() { (20_000, 40) } else { (1_200, 4) };
    run(torment(records, kills));
}
