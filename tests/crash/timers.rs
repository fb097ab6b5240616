//! Timers under kills: each fires once and never early, or was cancelled and never does; whatever was
//! answered is the answer for ever.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use waterwheel::client::{Ack, Client, Record, Start, TimerHandle, TimerState, TopicConfig};

use crate::child::delete_views;
use crate::load::{Progress, connect};
use crate::{Dice, die_at, kills, launch, run};

const TOPIC: &str = "timers";
/// Where the broker can be made to end by itself.
const POINTS: [&str; 5] = [
    "mid-homes",
    "mid-checkpoint",
    "before-mark",
    "during-recovery",
    "after-flush",
];
/// Timers of one send.
const RUN: u64 = 24;

/// What was told of one timer.
#[derive(Debug, Clone)]
struct Timer {
    handle: TimerHandle,
    /// When it is due; none where an answer was, or may have been, lost on its way.
    due_ms: Option<i64>,
    cancelled: bool,
}

type Book = Arc<Mutex<BTreeMap<u64, Timer>>>;

/// Sends timers, cancels some, moves some, until told to stop.
async fn schedule(client: Client, book: Book, progress: Arc<Progress>) {
    let producer = client
        .producer(TOPIC)
        .ack(Ack::Durable)
        .timeout(Duration::from_secs(120))
        .open()
        .await
        .expect("the topic is there");
    let (timers, mut first) = (client.timers(), 0);
    while !progress.stopped() {
        let mut sent = Vec::new();
        for number in first..first + RUN {
            let record = Record::new(number.to_string()).deliver_after(span(number));
            sent.push((
                number,
                producer.enqueue(record).await.expect("there is room"),
            ));
        }
        first += RUN;
        for (number, pending) in sent {
            let receipt = pending.await.expect("it is stored in the end");
            let handle = receipt.timer.expect("it was not due yet");
            let due_ms = receipt.due_ms;
            let timer = Timer {
                handle,
                due_ms,
                cancelled: false,
            };
            book.lock().expect("nobody panicked").insert(number, timer);
            progress.count();
            let answer = match number % 10 {
                3 | 6 => timers.cancel(&handle).await,
                4 => timers.reschedule_after(&handle, span(number + 5)).await,
                7 => {
                    timers
                        .reschedule_after(&handle, Duration::from_millis(1))
                        .await
                }
                _ => continue,
            };
            let mut book = book.lock().expect("nobody panicked");
            let timer = book.get_mut(&number).expect("it was noted");
            match answer {
                Ok(TimerState::Cancelled) => timer.cancelled = true,
                Ok(TimerState::Rescheduled { due }) => timer.due_ms = Some(due.0),
                // Perhaps because it was moved: a first try may have been answered to nobody.
                Ok(TimerState::AlreadyFired { .. }) => timer.due_ms = None,
                Ok(other) => panic!("timer {number} is answered {other:?}"),
                // The broker was killed: it was done or not.
                Err(_) => timer.due_ms = None,
            }
        }
    }
}

/// Near ones, some that pass through another level, and a few that every checkpoint meets.
fn span(number: u64) -> Duration {
    Duration::from_millis(match number % 12 {
        0..=5 => 200 + number * 37 % 600,
        6..=9 => 800 + number * 101 % 3_500,
        _ => 4_500 + number * 53 % 4_000,
    })
}

async fn settled(client: &Client, handle: &TimerHandle) -> TimerState {
    loop {
        let state = client.timers().get(handle).await.expect("it answers");
        if !matches!(state, TimerState::Pending { .. }) {
            return state;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn audit(client: &Client, book: &BTreeMap<u64, Timer>) {
    let mut states = BTreeMap::new();
    for (number, timer) in book {
        states.insert(*number, settled(client, &timer.handle).await);
    }
    let mut reader = client
        .reader(TOPIC)
        .from(Start::Earliest)
        .until_end()
        .open()
        .await
        .expect("the topic can be read");
    let mut fired = BTreeMap::new();
    while let Some(delivery) = reader.next().await {
        let delivery = delivery.expect("every record can be read");
        let text = std::str::from_utf8(&delivery.value).expect("a number");
        let number: u64 = text.parse().expect("a number");
        let due_ms = delivery.due_ms.expect("it was delayed");
        assert!(
            delivery.fired_ms.expect("it fired") >= due_ms,
            "{number} came early"
        );
        let before = fired.insert(number, (delivery.offset, due_ms));
        assert_eq!(before, None, "{number} fired twice");
    }
    for (number, timer) in book {
        match (&states[number], fired.get(number)) {
            (TimerState::Cancelled, None) => {}
            (TimerState::AlreadyFired { offset }, Some((at, due_ms))) => {
                assert_eq!(offset.0, *at, "{number} is where it is said to be");
                assert!(!timer.cancelled, "{number} is back from the dead");
                assert!(
                    timer.due_ms.is_none_or(|due| due == *due_ms),
                    "{number} moved by itself"
                );
            }
            other => panic!("timer {number}, told {timer:?}, is {other:?}"),
        }
    }
    assert_eq!(
        fired
            .keys()
            .filter(|number| !book.contains_key(number))
            .count(),
        0,
        "what fired was acknowledged, for the producer waited"
    );
}

async fn torment(kills: usize) {
    let mut dice = Dice::new();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let launch = launch(dir.path());
    let mut broker = launch.start(0, None).expect("it starts");
    let port = broker.address.port();
    let client = connect(broker.address, dir.path()).await;
    client
        .create_topic(TOPIC, TopicConfig::new(3))
        .await
        .expect("a new topic");
    let (book, progress) = (Book::default(), Arc::new(Progress::default()));
    let scheduling = tokio::spawn(schedule(client, Arc::clone(&book), Arc::clone(&progress)));
    for round in 0..kills {
        let until = progress.acked() + 20 + dice.below(120);
        while progress.acked() < until {
            assert!(
                !broker.has_ended() && !scheduling.is_finished(),
                "it goes on"
            );
            progress.changed().await;
        }
        broker.kill();
        if dice.below(4) == 0 {
            delete_views(dir.path());
        }
        if round % 2 == 1 {
            let point = POINTS[round / 2 % POINTS.len()];
            die_at(&launch, port, point, (&progress, 200), &mut dice).await;
        }
        broker = launch
            .start(port, None)
            .expect("it starts on what a kill left");
    }
    progress.stop();
    scheduling.await.expect("nobody panicked");
    let client = connect(broker.address, dir.path()).await;
    let book = book.lock().expect("nobody panicked").clone();
    println!("{kills} kills, {} timers", book.len());
    audit(&client, &book).await;
    // And once more by a broker that was told nothing but its disk.
    broker.kill();
    delete_views(dir.path());
    let broker = launch.start(port, None).expect("it starts");
    let client = connect(broker.address, dir.path()).await;
    audit(&client, &book).await;
    assert!(progress.acked() > 0 && progress.acked.load(Ordering::SeqCst) as usize == book.len());
}

#[test]
fn timers_fire_once_or_are_cancelled_whatever_is_killed() {
    run(torment(kills() / 2));
}
