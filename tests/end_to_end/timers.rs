//! Delayed records: when they come, what cancels them, and that everybody hears the same, whatever restarts.

use std::time::Duration;

use futures::TryStreamExt;
use waterwheel::client::{
    Ack, Client, Code, Delivery, Receipt, Record, SendError, Start, TimerHandle, TimerState,
    TopicConfig, WallMs,
};
use waterwheel::wire::timer::TimerKey;

use crate::rig::{Rig, run};

const TOPIC: &str = "later";

async fn topic(rig: &Rig) -> Client {
    let client = rig.node.connect().await.unwrap();
    let config = TopicConfig::new(1);
    client.create_topic(TOPIC, config).await.unwrap();
    client
}

fn now() -> WallMs {
    WallMs::from(std::time::SystemTime::now())
}

async fn send(client: &Client, record: Record) -> Receipt {
    let producer = client.producer(TOPIC).open().await.unwrap();
    producer.send(record).await.unwrap()
}

/// Waits for so many records.
async fn receive(client: &Client, count: usize) -> Vec<Delivery> {
    let mut reader = client
        .reader(TOPIC)
        .from(Start::Earliest)
        .open()
        .await
        .unwrap();
    let mut found = Vec::new();
    while found.len() < count {
        found.push(reader.next().await.unwrap().unwrap());
    }
    found
}

fn texts(deliveries: &[Delivery]) -> Vec<String> {
    deliveries
        .iter()
        .map(|delivery| String::from_utf8(delivery.value.to_vec()).unwrap())
        .collect()
}

fn handle(receipt: &Receipt) -> TimerHandle {
    receipt.timer.unwrap()
}

#[test]
fn a_delayed_record_comes_at_its_time_and_not_before_among_those_that_do_not_wait() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig).await;
        let producer = client.producer(TOPIC).open().await.unwrap();
        let late = Record::new("late").key("k").tag("t").header("h", "v");
        let sent = [
            late.clone().deliver_after(Duration::from_millis(400)),
            Record::new("at once"),
            Record::new("soon").deliver_at(WallMs(now().0 + 150)),
        ];
        let mut receipts = Vec::new();
        for record in sent {
            receipts.push(producer.enqueue(record).await.unwrap());
        }
        let mut stored = Vec::new();
        for receipt in receipts {
            stored.push(receipt.await.unwrap());
        }
        assert!(stored[0].offset.is_none() && stored[0].timer.is_some());
        assert!(stored[1].timer.is_none() && stored[1].due_ms.is_none());
        let found = receive(&client, 3).await;
        assert_eq!(texts(&found), ["at once", "soon", "late"]);
        for (delivery, receipt) in [(&found[1], &stored[2]), (&found[2], &stored[0])] {
            assert_eq!(delivery.due_ms, receipt.due_ms);
            assert!(delivery.fired_ms >= delivery.due_ms, "{delivery:?}");
            assert!(now().0 >= delivery.due_ms.unwrap());
        }
        assert_eq!((found[0].due_ms, found[0].fired_ms), (None, None));
        let record = &found[2];
        assert_eq!(record.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(record.tag.as_deref(), Some("t"));
        assert_eq!(record.headers.len(), 1);
        assert_eq!(record.time_ms, stored[0].time_ms, "when it was stored");
        rig.node.stop().await;
    });
}

#[test]
fn what_is_cancelled_never_comes_and_everybody_is_told_so_across_a_crash() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig).await;
        let kept = send(
            &client,
            Record::new("kept").deliver_after(Duration::from_millis(1500)),
        )
        .await;
        let dropped = send(
            &client,
            Record::new("dropped").deliver_after(Duration::from_millis(1000)),
        )
        .await;
        let timers = client.timers();
        let look = timers.get(&handle(&dropped)).await.unwrap();
        let due = WallMs(dropped.due_ms.unwrap());
        assert_eq!(look, TimerState::Pending { due });
        for _ in 0..2 {
            let state = timers.cancel(&handle(&dropped)).await.unwrap();
            assert_eq!(state, TimerState::Cancelled);
        }
        let rig = rig.kill_and_restart(|_| ()).await;
        let client = rig.node.connect().await.unwrap();
        let timers = client.timers();
        let state = timers.cancel(&handle(&dropped)).await.unwrap();
        assert_eq!(state, TimerState::Cancelled);
        assert_eq!(texts(&receive(&client, 1).await), ["kept"]);
        let fired = TimerState::AlreadyFired {
            offset: waterwheel::domain::id::Offset(0),
        };
        assert_eq!(timers.cancel(&handle(&kept)).await.unwrap(), fired);
        let rig = rig.kill_and_restart(|_| ()).await;
        let client = rig.node.connect().await.unwrap();
        let timers = client.timers();
        assert_eq!(timers.get(&handle(&kept)).await.unwrap(), fired);
        assert_eq!(
            timers.get(&handle(&dropped)).await.unwrap(),
            TimerState::Cancelled
        );
        assert_eq!(texts(&receive(&client, 1).await), ["kept"], "once");
        rig.node.stop().await;
    });
}

#[test]
fn a_timer_moves_earlier_and_later_and_fires_once_at_the_time_in_force() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig).await;
        let hour = Duration::from_secs(3600);
        let early = send(&client, Record::new("early").deliver_after(hour)).await;
        let late = send(
            &client,
            Record::new("late").deliver_after(Duration::from_millis(100)),
        )
        .await;
        let timers = client.timers();
        let at = WallMs(now().0 + 900);
        let moved = timers.reschedule_at(&handle(&late), at).await.unwrap();
        if moved != (TimerState::Rescheduled { due: at }) {
            // It fired before: then there is nothing to move.
            assert!(matches!(moved, TimerState::AlreadyFired { .. }));
        }
        let moved = timers
            .reschedule_after(&handle(&early), Duration::from_millis(200))
            .await
            .unwrap();
        assert!(matches!(moved, TimerState::Rescheduled { .. }));
        let found = receive(&client, 2).await;
        for delivery in &found {
            assert!(delivery.fired_ms >= delivery.due_ms);
        }
        let rig = rig.kill_and_restart(|_| ()).await;
        let client = rig.node.connect().await.unwrap();
        assert_eq!(receive(&client, 2).await.len(), 2);
        for receipt in [&early, &late] {
            let state = client.timers().get(&handle(receipt)).await.unwrap();
            assert!(
                matches!(state, TimerState::AlreadyFired { .. }),
                "{state:?}"
            );
        }
        let description = client.describe_topic(TOPIC).await.unwrap();
        assert_eq!(description.partitions[0].high_watermark.0, 2, "each once");
        rig.node.stop().await;
    });
}

#[test]
fn a_time_in_the_past_is_at_once_and_the_receipt_says_so() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig).await;
        let receipt = send(&client, Record::new("past").deliver_at(WallMs(5))).await;
        assert!(receipt.is_published_at_once());
        assert_eq!(receipt.offset, Some(0));
        assert_eq!(texts(&receive(&client, 1).await), ["past"]);
        rig.node.stop().await;
    });
}

#[test]
fn handles_that_are_forged_foreign_or_of_a_deleted_topic_are_of_nothing() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig).await;
        let hour = Duration::from_secs(3600);
        let receipt = send(&client, Record::new("x").deliver_after(hour)).await;
        let real = handle(&receipt);
        let text = real.to_string();
        assert_eq!(text.parse::<TimerHandle>(), Ok(real));
        let mut forged = vec![real; 4];
        forged[0].number.0 += 1;
        forged[1].key = TimerKey(1, 2);
        forged[2].cluster.0[0] ^= 1;
        forged[3].first.0 += 1;
        let timers = client.timers();
        for forged in forged {
            let state = timers.cancel(&forged).await.unwrap();
            assert_eq!(state, TimerState::NotFound, "{forged:?}");
        }
        let state = timers.get(&real).await.unwrap();
        assert!(matches!(state, TimerState::Pending { .. }));
        assert_eq!(client.delete_topic(TOPIC).await.unwrap().timers, 1);
        client
            .create_topic(TOPIC, TopicConfig::new(1))
            .await
            .unwrap();
        assert_eq!(timers.cancel(&real).await.unwrap(), TimerState::NotFound);
        rig.node.stop().await;
    });
}

async fn refused(client: &Client, record: Record) -> Code {
    let producer = client.producer(TOPIC).open().await.unwrap();
    let SendError::Refused(refusal) = producer.send(record).await.unwrap_err() else {
        panic!("it failed by itself");
    };
    refusal.code
}

#[test]
fn a_topics_own_bounds_hold_survive_a_crash_and_can_be_changed_and_what_waits_goes_with_it() {
    run(async {
        let rig = Rig::start().await;
        let client = rig.node.connect().await.unwrap();
        let mut config = TopicConfig::new(2);
        (config.timers_max, config.delay_ms_max) = (Some(2), Some(3_600_000));
        let made = client.create_topic(TOPIC, config.clone()).await.unwrap();
        assert_eq!(made.config, config);
        let later = || Record::new("later").deliver_after(Duration::from_secs(600));
        let far = || Record::new("far").deliver_after(Duration::from_secs(3_601));
        assert_eq!(refused(&client, far()).await, Code::DelayTooLong);
        let producer = client.producer(TOPIC).open().await.unwrap();
        let mut kept = None;
        for _ in 0..2 {
            kept = Some(producer.send_to(1, later()).await.unwrap());
        }
        let rig = rig.kill_and_restart(|_| ()).await;
        let client = rig.node.connect().await.unwrap();
        let producer = client.producer(TOPIC).open().await.unwrap();
        // At once: room may be hours away, and what does not wait is not held back by it.
        let refused = producer.send_to(1, later()).await.unwrap_err();
        assert_eq!(refused.code(), "too-many-timers");
        assert!(refused.is_retriable(), "{refused:?}");
        producer.send_to(1, Record::new("now")).await.unwrap();
        // The other partition has room, and a timer that is there cannot be moved too far either.
        producer.send_to(0, later()).await.unwrap();
        let timers = client.timers();
        let handle = handle(&kept.unwrap());
        let moved = timers.reschedule_after(&handle, Duration::from_secs(3_601)).await;
        assert!(moved.unwrap_err().to_string().contains("3600000"));
        let change = waterwheel::client::AlterTopic {
            name: TOPIC.to_owned(),
            timers_max: Some(Some(3)),
            delay_ms_max: Some(None),
            ..Default::default()
        };
        let altered = client.alter_topic(&change).await.unwrap();
        assert_eq!(altered.config.timers_max, Some(3));
        assert_eq!(altered.config.delay_ms_max, None);
        producer.send_to(1, far()).await.unwrap();
        // Deleted by a broker whose partitions nobody has asked for since it started.
        let rig = rig.restart().await;
        let client = rig.node.connect().await.unwrap();
        assert_eq!(client.delete_topic(TOPIC).await.unwrap().timers, 4);
        assert_eq!(client.timers().get(&handle).await.unwrap(), TimerState::NotFound);
        rig.node.stop().await;
    });
}

#[test]
fn what_waits_is_listed_by_time_a_page_at_a_time() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig).await;
        let producer = client.producer(TOPIC).open().await.unwrap();
        let base = now().0 + 3_600_000;
        let records = (0..250).map(|n| Record::new(n.to_string()).deliver_at(WallMs(base + n)));
        let pending = producer.enqueue_run(0, records).await.unwrap();
        pending.wait().await.unwrap();
        let timers = client.timers();
        let mut list = timers
            .list(TOPIC)
            .due_from(WallMs(base + 50))
            .due_before(WallMs(base + 150))
            .page_size(30);
        let mut found = Vec::new();
        while let Some(page) = list.page().await.unwrap() {
            assert!(page.timers.len() <= 30);
            assert_eq!(page.pending, 250);
            found.extend(page.timers);
        }
        let dues: Vec<i64> = found.iter().map(|timer| timer.due_ms - base).collect();
        assert_eq!(dues, (50..150).collect::<Vec<_>>());
        let state = timers.cancel(&found[7].handle).await.unwrap();
        assert_eq!(state, TimerState::Cancelled, "a listed one has its handle");
        rig.node.stop().await;
    });
}

#[test]
fn many_due_in_one_millisecond_all_come_once() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig).await;
        let producer = client
            .producer(TOPIC)
            .ack(Ack::Durable)
            .open()
            .await
            .unwrap();
        let at = WallMs(now().0 + 1500);
        let records = (0..5_000).map(|n| Record::new(n.to_string()).deliver_at(at));
        let pending = producer.enqueue_run(0, records).await.unwrap();
        pending.wait().await.unwrap();
        let mut found = texts(&receive(&client, 5_000).await);
        found.sort_by_key(|text| text.parse::<u32>().unwrap());
        let expected: Vec<String> = (0..5_000).map(|n| n.to_string()).collect();
        assert_eq!(found, expected);
        rig.node.stop().await;
    });
}

#[test]
fn what_is_said_of_many_tiny_records_may_be_more_than_they_are() {
    run(async {
        const COUNT: u32 = 20_000;
        let rig = Rig::start().await;
        let client = topic(&rig).await;
        let producer = client.producer(TOPIC).batch_bytes(1 << 20);
        let producer = producer.open().await.unwrap();
        let at = WallMs(now().0 + 500);
        // One payload of tens of thousands, and as many alone.
        let records = (0..COUNT).map(|_| Record::new("a").deliver_at(at));
        let pending = producer.enqueue_run(0, records).await.unwrap();
        pending.wait().await.unwrap();
        for batch in 0..100 {
            let records = (0..COUNT / 100).map(|_| Record::new("b").deliver_at(WallMs(at.0 + 1 + batch)));
            let pending = producer.enqueue_run(0, records).await.unwrap();
            pending.wait().await.unwrap();
        }
        let live = receive(&client, 2 * COUNT as usize).await;
        assert_eq!(live.iter().filter(|d| *d.value == *b"a").count(), COUNT as usize);
        // Everything is there now, to be gathered into the longest frames there are, more than once on one
        // connection.
        for _ in 0..2 {
            let reader = client.reader(TOPIC).until_end().open().await.unwrap();
            let all: Vec<Delivery> = reader.try_collect().await.unwrap();
            assert_eq!(all, live);
        }
        rig.node.stop().await;
    });
}

#[test]
fn at_level_memory_the_handle_comes_with_the_later_durable_notice() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig).await;
        let producer = client.producer(TOPIC).ack(Ack::Memory).open().await;
        let producer = producer.unwrap();
        let hour = Duration::from_secs(3600);
        let mut waits = producer
            .enqueue(Record::new("waits").deliver_after(hour))
            .await
            .unwrap();
        let acknowledged = (&mut waits).await.unwrap();
        assert_eq!((acknowledged.timer, acknowledged.due_ms), (None, None));
        let soon = Record::new("soon").deliver_after(Duration::from_millis(300));
        let soon = producer.enqueue(soon).await.unwrap().durable();
        let past = Record::new("past").deliver_at(WallMs(5));
        let past = producer.enqueue(past).await.unwrap().durable();
        let plain = producer.enqueue("plain".into()).await.unwrap().durable();
        let run = (0..300).map(|n| Record::new(n.to_string()).deliver_after(hour));
        let run = producer.enqueue_run(0, run).await.unwrap();

        let (waits, soon) = (waits.durable().await.unwrap(), soon.await.unwrap());
        assert!(past.await.unwrap().is_published_at_once());
        let plain = plain.await.unwrap();
        assert!(plain.offset.is_some() && plain.timer.is_none());
        let run = run.durable().await.unwrap();
        assert_eq!(run.iter().map(|part| part.count).sum::<u32>(), 300);

        let timers = client.timers();
        let due = WallMs(waits.due_ms.unwrap());
        let state = timers.get(&handle(&waits)).await.unwrap();
        assert_eq!(state, TimerState::Pending { due });
        for receipt in std::iter::once(&waits).chain(run.iter().map(|part| &part.first)) {
            let state = timers.cancel(&handle(receipt)).await.unwrap();
            assert_eq!(state, TimerState::Cancelled);
        }
        let mut found = texts(&receive(&client, 3).await);
        found.sort();
        assert_eq!(found, ["past", "plain", "soon"]);
        // The same handle to everybody, across a crash.
        let rig = rig.kill_and_restart(|_| ()).await;
        let client = rig.node.connect().await.unwrap();
        let timers = client.timers();
        let state = timers.get(&handle(&waits)).await.unwrap();
        assert_eq!(state, TimerState::Cancelled);
        let state = timers.get(&handle(&soon)).await.unwrap();
        assert!(matches!(state, TimerState::AlreadyFired { .. }), "{state:?}");
        rig.node.stop().await;
    });
}

#[test]
fn at_level_none_nobody_is_told_and_there_is_no_handle() {
    run(async {
        let rig = Rig::start().await;
        let client = topic(&rig).await;
        let producer = client.producer(TOPIC).ack(Ack::None).open().await.unwrap();
        let record = Record::new("x").deliver_after(Duration::from_millis(100));
        let mut pending = producer.enqueue(record).await.unwrap();
        assert_eq!((&mut pending).await.unwrap().timer, None);
        let untold = pending.durable().await.unwrap_err();
        assert_eq!(untold.code(), "unacknowledged");
        assert_eq!(texts(&receive(&client, 1).await), ["x"]);
        rig.node.stop().await;
    });
}

#[test]
fn bounds_of_delayed_records_are_refused_with_their_own_codes() {
    run(async {
        let rig = Rig::start_with(|config| {
            config.timers_max = 2;
            config.delay_ms_max = 60_000;
        })
        .await;
        let client = topic(&rig).await;
        let producer = client.producer(TOPIC).open().await.unwrap();
        let far = Record::new("far").deliver_after(Duration::from_secs(61));
        let refused = producer.send(far).await.unwrap_err();
        let SendError::Refused(refusal) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(refusal.code, Code::DelayTooLong);
        rig.node.stop().await;
    });
}
