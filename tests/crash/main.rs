//! Kills the broker under load, again and again, and audits from outside.
//!
//! Producers send numbered records and never stop; the broker, a child process, is killed at random
//! moments and at named points of its inside; then everything is read back. What was acknowledged as
//! durable is there, at the offset it was acknowledged with, and nothing is there twice; per key the
//! order is that of sending. Timers and consumer groups have audits of their own.
//!
//! `WATERWHEEL_TEST=full` makes it at least 200 kills, half of them at named points. `WATERWHEEL_SEED`
//! repeats the choices of a run.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it did"
)]

mod audit;
mod child;
mod groups;
mod history;
mod letters;
mod load;
mod pipeline;
#[path = "../shared/squares.rs"]
mod squares;
mod timers;
mod transactions;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use audit::audit;
use child::{Broker, Launch, delete_views};
use load::{Progress, connect, produce};
use waterwheel::client::{Ack, TopicConfig};

/// Where the broker can be made to end by itself.
const POINTS: [&str; 6] = [
    "mid-flush",
    "after-flush",
    "mid-checkpoint",
    "before-mark",
    "mid-recycle",
    "during-recovery",
];
const TOPIC: &str = "kept";
/// A topic whose records retention takes, so that segments are recycled meanwhile.
const FLEETING: &str = "fleeting";

fn kills() -> usize {
    if full() { 200 } else { 16 }
}

fn full() -> bool {
    std::env::var("WATERWHEEL_TEST").is_ok_and(|tier| tier == "full")
}

/// A small generator: choices are repeated by seed.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = std::env::var("WATERWHEEL_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .expect("after 1970");
            u64::from(now.subsec_nanos())
        });
        println!("WATERWHEEL_SEED={seed}");
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// One more, whose choices follow from this one's.
    fn another(&mut self) -> Self {
        Self(self.below(u64::MAX).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn launch(data: &std::path::Path) -> Launch {
    let small = [
        ("WATERWHEEL_SEGMENT_BYTES", 1 << 20),
        ("WATERWHEEL_FLUSH_BYTES_MAX", 128 << 10),
        ("WATERWHEEL_BATCH_BYTES_MAX", 64 << 10),
        ("WATERWHEEL_CHECKPOINT_MS", 100),
        ("WATERWHEEL_RETENTION_CHECK_MS", 100),
    ];
    let settings = small
        .map(|(name, value): (_, u32)| (name, value.to_string()))
        .to_vec();
    Launch {
        data: data.to_path_buf(),
        settings,
    }
}

/// Kills `kills` times while producers at `ack` go on, then audits.
async fn torment(ack: Ack, kills: usize, views_deleted: bool) {
    let mut dice = Dice::new();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let launch = launch(dir.path());
    let mut broker = launch.start(0, None).expect("it starts");
    let port = broker.address.port();
    let client = connect(broker.address, dir.path()).await;
    client
        .create_topic(TOPIC, TopicConfig::new(4))
        .await
        .expect("a new topic");
    let mut fleeting = TopicConfig::new(2);
    fleeting.retention_bytes = Some(512 << 10);
    client
        .create_topic(FLEETING, fleeting)
        .await
        .expect("a new topic");
    let (progress, beside) = (Arc::new(Progress::default()), Arc::new(Progress::default()));
    let mut producers = tokio::task::JoinSet::new();
    for id in 0..3 {
        let client = connect(broker.address, dir.path()).await;
        producers.spawn(produce(client, TOPIC, id, ack, Arc::clone(&progress)));
    }
    let client = connect(broker.address, dir.path()).await;
    producers.spawn(produce(
        client,
        FLEETING,
        0,
        Ack::Durable,
        Arc::clone(&beside),
    ));
    let mut reached = 0;
    for round in 0..kills {
        let point = (round % 2 == 1).then(|| POINTS[(round / 2) % POINTS.len()]);
        await_progress(&progress, &mut broker, 40 + dice.below(400), &mut producers).await;
        broker.kill();
        if views_deleted || dice.below(4) == 0 {
            delete_views(dir.path());
        }
        if let Some(point) = point {
            reached +=
                usize::from(die_at(&launch, port, point, (&progress, 4000), &mut dice).await);
        }
        broker = launch
            .start(port, None)
            .expect("it starts on what a kill left");
    }
    println!(
        "{kills} kills, {reached} at named points, {} records acknowledged",
        progress.acked()
    );
    await_progress(&progress, &mut broker, 100, &mut producers).await;
    progress.stop();
    beside.stop();
    while let Some(ended) = producers.join_next().await {
        ended.expect("a producer does not panic");
    }
    let client = connect(broker.address, dir.path()).await;
    audit(&client, TOPIC, &progress.places(), ack).await;
    if kills >= 2 * POINTS.len() {
        assert!(reached > 0, "named points are reached");
    }
}

/// Starts a broker that ends at a named point, and waits until it has, or for so many acknowledgements more.
async fn die_at(
    launch: &Launch,
    port: u16,
    point: &str,
    (progress, more): (&Progress, u64),
    dice: &mut Dice,
) -> bool {
    let passes = 1 + dice.below(if point == "during-recovery" { 3 } else { 6 });
    let Some(mut broker) = launch.start(port, Some(&format!("{point}:{passes}"))) else {
        return true;
    };
    let until = progress.acked() + more;
    while progress.acked() < until {
        if broker.has_ended() {
            return true;
        }
        progress.changed().await;
    }
    broker.kill();
    false
}

async fn await_progress(
    progress: &Progress,
    broker: &mut Broker,
    more: u64,
    producers: &mut tokio::task::JoinSet<()>,
) {
    let until = progress.acked() + more;
    while progress.acked() < until {
        assert!(!broker.has_ended(), "the broker runs until it is killed");
        if let Some(ended) = producers.try_join_next() {
            ended.expect("a producer does not panic");
        }
        progress.changed().await;
    }
    assert!(
        progress.unacked() > 0,
        "it is killed while records are under way"
    );
}

fn run(torment: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(torment);
}

#[test]
fn nothing_durable_is_lost_or_repeated_by_kills() {
    run(torment(Ack::Durable, kills(), false));
}

#[test]
fn nothing_is_lost_or_repeated_by_kills_with_the_views_deleted() {
    run(torment(Ack::Durable, kills() / 4, true));
}

#[test]
fn at_level_memory_kills_lose_nothing_while_the_producer_lives() {
    run(torment(Ack::Memory, kills() / 4, false));
}
