//! The client against a broker that does what a test tells it to, over real QUIC.

mod fake;

use std::time::Duration;

use futures::{SinkExt, StreamExt};

use super::*;
use crate::domain::batch::{BatchBuilder, BatchStamp, BatchView};
use crate::domain::key::{key_hash, partition_of};
use crate::domain::record::RecordBody;
use crate::domain::time::WallMs;
use crate::wire::code::Refused;
use fake::{FakeBroker, Relay, Verdict};

async fn client(broker: &FakeBroker) -> Client {
    Client::connect(&broker.address())
        .ca_pem(broker.ca_pem.as_str())
        .await
        .unwrap()
}

fn numbered(n: usize) -> Record {
    Record::new(n.to_string())
}

/// What a partition holds, in order.
fn values(broker: &FakeBroker, partition: u32) -> Vec<String> {
    let mut values = Vec::new();
    for batch in broker.stored(1, partition) {
        let view = BatchView::parse(&batch.bytes).unwrap();
        for body in view.bodies().unwrap() {
            let body = RecordBody::decode(&body.unwrap().1).unwrap();
            values.push(String::from_utf8(body.value.to_vec()).unwrap());
        }
    }
    values
}

fn expected(count: usize) -> Vec<String> {
    (0..count).map(|n| n.to_string()).collect()
}

/// Enqueues so many numbered records and waits for all receipts.
async fn send_numbered(producer: &Producer, count: usize) -> Vec<Receipt> {
    let mut pending = Vec::new();
    for n in 0..count {
        pending.push(producer.enqueue_to(0, numbered(n)).await.unwrap());
    }
    let mut receipts = Vec::new();
    for pending in pending {
        receipts.push(pending.await.unwrap());
    }
    receipts
}

#[test]
fn no_signature_of_the_client_names_a_crate_it_is_built_on() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/client");
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "rs") || path.ends_with("tests.rs") {
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        let mut public = false;
        for line in source.lines() {
            let code = line.split("//").next().unwrap_or_default();
            public |= code.trim_start().starts_with("pub ") || code.contains(" for ");
            for name in ["quinn::", "rustls::", "sled::", "actix"] {
                assert!(
                    !(public && code.contains(name)),
                    "{}: {line}",
                    path.display()
                );
            }
            // A signature ends where a body, a value or the item does.
            public &= !code.contains(['{', ';', '=']);
        }
    }
}

#[test]
fn everything_public_can_be_sent_between_threads() {
    fn is_send<T: Send + 'static>() {}
    fn is_shared<T: Send + Sync + 'static>() {}
    fn is_error<T: std::error::Error + Send + Sync + Clone + 'static>() {}
    is_shared::<Client>();
    is_shared::<Connect>();
    is_shared::<Producer>();
    is_shared::<ProducerBuilder>();
    is_shared::<ReaderBuilder>();
    is_shared::<Pending>();
    is_shared::<PendingRun>();
    is_shared::<Receipt>();
    is_shared::<Record>();
    is_shared::<Delivery>();
    is_shared::<Fetched>();
    // One task polls a reader.
    is_send::<Reader>();
    is_send::<DeliveryBatch>();
    is_send::<<Connect as IntoFuture>::IntoFuture>();
    is_error::<ConnectError>();
    is_error::<AdminError>();
    is_error::<SendError>();
    is_error::<ConsumeError>();
    is_error::<EncodeError>();
    is_error::<DecodeError>();
    is_error::<Refusal>();
    fn future_is_send<T: Send>(_: impl FnOnce(Client) -> T) {}
    future_is_send(|client| async move { client.producer("t").open().await });
    future_is_send(|client| async move { client.reader("t").fetch(1, Duration::ZERO).await });
    future_is_send(|client| async move { client.topics().await });
    future_is_send(|client| async move { client.status(true).await });
    future_is_send(|client| async move { client.close().await });
    future_is_send(|client| async move {
        let producer = client.producer("t").open().await?;
        producer.send(numbered(0)).await?;
        let pending = producer.enqueue(numbered(0)).await?;
        producer.send_one_way(numbered(0)).await?;
        producer.enqueue_run(0, [numbered(0)]).await?.wait().await?;
        producer.flush().await?;
        pending.await?;
        producer.close().await?;
        Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    });
    future_is_send(|client| async move {
        let mut reader = client.reader("t").open().await.unwrap();
        reader.next_batch(1, Duration::ZERO).await
    });
}

#[tokio::test]
async fn records_are_batched_and_every_receipt_names_its_offset() {
    let broker = FakeBroker::start(&[("t", 1)]);
    let producer = client(&broker)
        .await
        .producer("t")
        .linger(Duration::from_secs(60))
        .batch_bytes(10_000)
        .open()
        .await
        .unwrap();
    let mut pending = Vec::new();
    for n in 0..1_000 {
        pending.push(producer.enqueue(numbered(n)).await.unwrap());
    }
    producer.flush().await.unwrap();
    for (n, pending) in pending.into_iter().enumerate() {
        let receipt = pending.now().unwrap().unwrap();
        assert_eq!(receipt.offset, Some(n as u64));
        assert_eq!((receipt.time_ms, receipt.status), (77, SendStatus::SendOk));
        assert_eq!((&*receipt.topic, receipt.partition), ("t", 0));
    }
    assert_eq!(values(&broker, 0), expected(1_000));
    let batches = broker.stored(1, 0);
    assert!((4..10).contains(&batches.len()), "{}", batches.len());
    producer.close().await.unwrap();
}

#[tokio::test]
async fn a_key_decides_the_partition_and_keyless_batches_take_turns() {
    let broker = FakeBroker::start(&[("t", 4)]);
    let producer = client(&broker).await.producer("t").open().await.unwrap();
    for n in 0..20 {
        let key = n.to_string();
        let receipt = producer
            .send(Record::new("v").key(key.clone()))
            .await
            .unwrap();
        let partition = partition_of(key_hash(key.as_bytes()), 4).0;
        assert_eq!(receipt.partition, partition);
    }
    let mut partitions = Vec::new();
    for n in 0..8 {
        partitions.push(producer.send(numbered(n)).await.unwrap().partition);
    }
    assert_eq!(partitions, [0, 1, 2, 3, 0, 1, 2, 3]);
    let error = producer.send_to(4, numbered(0)).await.unwrap_err();
    assert_eq!(error.code(), "partition-out-of-range");
}

#[tokio::test]
async fn lost_connections_lose_nothing_repeat_nothing_and_keep_the_order() {
    let broker = FakeBroker::start(&[("t", 1)]);
    broker.script(|nth| match nth {
        3 | 20 => Verdict::HangUp,
        9 | 31 => Verdict::StoreAndHangUp,
        _ => Verdict::Store,
    });
    let producer = client(&broker)
        .await
        .producer("t")
        .linger(Duration::ZERO)
        .batch_bytes(300)
        .open()
        .await
        .unwrap();
    let receipts = send_numbered(&producer, 200).await;
    assert_eq!(values(&broker, 0), expected(200));
    for (n, receipt) in receipts.iter().enumerate() {
        assert_eq!(receipt.offset, Some(n as u64));
    }
    assert!(receipts.iter().any(|receipt| receipt.duplicate));
    assert!(broker.connected() >= 5);
}

#[tokio::test]
async fn a_broker_that_vanished_and_came_back_is_found_at_once() {
    let broker = FakeBroker::start(&[("t", 1)]);
    let relay = Relay::start(&broker).await;
    let client = Client::connect(&relay.address())
        .ca_pem(broker.ca_pem.as_str())
        .await
        .unwrap();
    let producer = client.producer("t").open().await.unwrap();
    let mut reader = client.reader("t").open().await.unwrap();
    producer.send(numbered(0)).await.unwrap();
    reader.next().await.unwrap().unwrap();
    // Another process at the same address, which knows nothing of the old connection.
    let restarted = broker.restarted();
    relay.lead_to(&restarted);
    let started = std::time::Instant::now();
    let receipt = producer.send(numbered(1)).await.unwrap();
    let delivery = reader.next().await.unwrap().unwrap();
    assert_eq!((receipt.offset, delivery.offset), (Some(1), 1));
    // Far less than the idle timeout of 30 s; how much less is the harness's business.
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(restarted.connected(), 2);
}

#[tokio::test]
async fn batches_that_are_put_off_are_sent_again_in_order() {
    let broker = FakeBroker::start(&[("t", 1)]);
    broker.script(|nth| match nth {
        2 | 11 => Verdict::Refuse(Refused::new(Code::Retry, "again").after_ms(1)),
        17 => Verdict::Refuse(Refused::new(Code::Throttled, "slowly").after_ms(5)),
        _ => Verdict::Store,
    });
    let producer = client(&broker)
        .await
        .producer("t")
        .linger(Duration::ZERO)
        .batch_bytes(300)
        .open()
        .await
        .unwrap();
    send_numbered(&producer, 100).await;
    assert_eq!(values(&broker, 0), expected(100));
}

#[tokio::test]
async fn what_is_put_off_for_too_long_fails_with_what_the_broker_said() {
    let broker = FakeBroker::start(&[("t", 1)]);
    broker.script(|nth| match nth {
        1.. => Verdict::Refuse(Refused::new(Code::DiskFull, "there is no room").after_ms(1)),
        _ => Verdict::Store,
    });
    let producer = client(&broker).await.producer("t");
    let producer = producer.timeout(Duration::from_millis(50));
    let producer = producer.open().await.unwrap();
    producer.send(numbered(0)).await.unwrap();
    let error = producer.send(numbered(1)).await.unwrap_err();
    assert_eq!((error.code(), error.is_retriable()), ("disk-full", true));
    assert_eq!(
        error.to_string(),
        "the broker put the record off for 50 ms; whether it is stored is open: there is no room [disk-full]"
    );
}

#[tokio::test]
async fn a_refusal_for_good_reaches_its_records_and_later_ones_are_sent() {
    let broker = FakeBroker::start(&[("t", 1)]);
    broker.script(|nth| match nth {
        1 => Verdict::Refuse(Refused::new(Code::BatchChecksum, "rotten")),
        _ => Verdict::Store,
    });
    let producer = client(&broker).await.producer("t").open().await.unwrap();
    producer.send(numbered(0)).await.unwrap();
    let error = producer.send(numbered(7)).await.unwrap_err();
    assert_eq!(
        (error.code(), error.is_retriable()),
        ("batch-checksum", false)
    );
    assert_eq!(error.to_string(), "rotten [batch-checksum]");
    assert_eq!(
        producer.flush().await.unwrap_err().code(),
        "batch-checksum",
        "a flush reports what failed before it"
    );
    let receipt = producer.send(numbered(1)).await.unwrap();
    assert_eq!(receipt.offset, Some(1));
    assert_eq!(values(&broker, 0), expected(2));
    producer.close().await.unwrap();
}

#[tokio::test]
async fn at_level_memory_acceptance_is_told_and_the_batch_is_kept() {
    let broker = FakeBroker::start(&[("t", 1)]);
    broker.script(|nth| match nth {
        0 => Verdict::AcceptOnly,
        _ => Verdict::Store,
    });
    let producer = client(&broker)
        .await
        .producer("t")
        .ack(Ack::Memory)
        .open()
        .await
        .unwrap();
    let mut pending = producer.enqueue(numbered(0)).await.unwrap();
    let receipt = (&mut pending).await.unwrap();
    assert_eq!(receipt.offset, None);
    let durable = pending.durable();
    assert!(durable.now().is_none());
    assert!(values(&broker, 0).is_empty());
    broker.hang_up();
    assert_eq!(durable.await.unwrap().offset, Some(0));
    producer.close().await.unwrap();
    assert_eq!(values(&broker, 0), expected(1));
}

#[tokio::test]
async fn one_way_records_arrive_without_numbers() {
    let broker = FakeBroker::start(&[("t", 1)]);
    let producer = client(&broker)
        .await
        .producer("t")
        .ack(Ack::None)
        .open()
        .await
        .unwrap();
    for n in 0..50 {
        producer.send_one_way(numbered(n)).await.unwrap();
    }
    producer.close().await.unwrap();
    while values(&broker, 0).len() < 50 {
        tokio::task::yield_now().await;
    }
    assert_eq!(values(&broker, 0), expected(50));
    let view = BatchView::parse(&broker.stored(1, 0)[0].bytes).unwrap();
    assert_eq!(view.header().producer.0, 0);
}

#[tokio::test]
async fn memory_is_bounded_and_a_silent_broker_times_out() {
    let broker = FakeBroker::start(&[("t", 1)]);
    broker.script(|_| Verdict::Ignore);
    let producer = client(&broker)
        .await
        .producer("t")
        .buffer_bytes(10_000)
        .timeout(Duration::from_millis(300))
        .open()
        .await
        .unwrap();
    let mut pending = Vec::new();
    let enqueue = async {
        loop {
            let record = Record::new(vec![0u8; 1_000]);
            pending.push(producer.enqueue(record).await.unwrap());
        }
    };
    let waited = tokio::time::timeout(Duration::from_millis(150), enqueue).await;
    assert!(waited.is_err());
    assert!((9..=11).contains(&pending.len()), "{}", pending.len());
    for pending in pending {
        assert_eq!(pending.await.unwrap_err().code(), "timed-out");
    }
    broker.script(|_| Verdict::Store);
    let receipt = producer.send(numbered(0)).await.unwrap();
    assert_eq!(receipt.offset, Some(0), "it goes on under another id");
}

#[tokio::test]
async fn a_late_durable_acknowledgement_says_so() {
    let broker = FakeBroker::start(&[("t", 1)]);
    broker.script(|nth| match nth {
        0 => Verdict::Ignore,
        _ => Verdict::Store,
    });
    let producer = client(&broker)
        .await
        .producer("t")
        .flush_timeout(Duration::from_millis(20))
        .open()
        .await
        .unwrap();
    let receipt = producer.send(numbered(0)).await.unwrap();
    assert_eq!(
        (receipt.offset, receipt.status),
        (None, SendStatus::FlushDiskTimeout)
    );
    broker.hang_up();
    producer.close().await.unwrap();
    assert_eq!(values(&broker, 0), expected(1));
}

#[tokio::test]
async fn a_producer_is_a_sink_and_sends_runs() {
    let broker = FakeBroker::start(&[("t", 1)]);
    let mut producer = client(&broker).await.producer("t").open().await.unwrap();
    let mut records = futures::stream::iter((0..100).map(numbered).map(Ok));
    producer.send_all(&mut records).await.unwrap();
    let run = producer
        .enqueue_run(0, (100..200).map(numbered))
        .await
        .unwrap();
    let receipts = run.wait().await.unwrap();
    assert_eq!(receipts[0].first.offset, Some(100));
    assert_eq!(receipts.iter().map(|part| part.count).sum::<u32>(), 100);
    SinkExt::close(&mut producer).await.unwrap();
    assert_eq!(values(&broker, 0), expected(200));
    let closed = producer.enqueue(numbered(0)).await.unwrap_err();
    assert_eq!(closed.code(), "closed");
}

#[tokio::test]
async fn a_dropped_producer_still_sends() {
    let broker = FakeBroker::start(&[("t", 1)]);
    let producer = client(&broker)
        .await
        .producer("t")
        .linger(Duration::from_secs(60))
        .open()
        .await
        .unwrap();
    let pending = producer.enqueue(numbered(0)).await.unwrap();
    drop(producer);
    assert_eq!(pending.await.unwrap().offset, Some(0));
}

#[tokio::test]
async fn reading_from_a_place_gives_every_record_once_and_in_order() {
    let broker = FakeBroker::start(&[("t", 1)]);
    let client = client(&broker).await;
    let producer = client
        .producer("t")
        .batch_bytes(400)
        .compression(Compression::Lz4)
        .open()
        .await
        .unwrap();
    let record = |n: usize| {
        numbered(n)
            .key("k")
            .tag("g")
            .header("h", vec![b'x'; 30])
            .timestamp(WallMs(5))
    };
    let run = producer.enqueue_run(0, (0..100).map(record)).await.unwrap();
    run.wait().await.unwrap();
    let reader = client.reader("t").from(Start::Offset(17)).until_end();
    let deliveries: Vec<_> = reader.open().await.unwrap().collect().await;
    assert_eq!(deliveries.len(), 83);
    for (n, delivery) in (17..).zip(deliveries) {
        let delivery = delivery.unwrap();
        assert_eq!(delivery.offset, n);
        assert_eq!(delivery.value.as_ref(), n.to_string().as_bytes());
        assert_eq!(delivery.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(delivery.tag.as_deref(), Some("g"));
        assert_eq!(delivery.headers[0].0, "h");
        assert_eq!((delivery.time_ms, delivery.timestamp_ms), (77, 5));
    }
    let beyond = client.reader("t").from(Start::Offset(101)).open().await;
    assert_eq!(beyond.unwrap_err().code(), "offset-out-of-range");
    let beyond = client.reader("t").partition(1).open().await;
    assert_eq!(beyond.unwrap_err().code(), "partition-out-of-range");
}

#[tokio::test]
async fn a_reader_goes_on_where_it_was_when_the_connection_is_lost() {
    let broker = FakeBroker::start(&[("t", 2)]);
    let client = client(&broker).await;
    let producer = client.producer("t").batch_bytes(400).open().await.unwrap();
    let mut reader = client.reader("t").open().await.unwrap();
    let mut seen = [Vec::new(), Vec::new()];
    for round in 0..4 {
        for partition in 0..2 {
            let records = (round * 50..round * 50 + 50).map(numbered);
            let run = producer.enqueue_run(partition, records).await.unwrap();
            run.wait().await.unwrap();
        }
        for taken in 0..100 {
            if taken == 30 {
                broker.hang_up();
            }
            let delivery = reader.next().await.unwrap().unwrap();
            let value = String::from_utf8(delivery.value.to_vec()).unwrap();
            seen[delivery.partition as usize].push(value);
        }
    }
    assert_eq!(seen[0], expected(200));
    assert_eq!(seen[1], expected(200));
    assert!(broker.connected() >= 4);
}

#[tokio::test]
async fn a_reader_that_is_not_polled_is_sent_no_more_than_its_credit() {
    let broker = FakeBroker::start(&[("t", 1)]);
    let client = client(&broker).await;
    let producer = client
        .producer("t")
        .batch_bytes(2_000)
        .open()
        .await
        .unwrap();
    let records = (0..500).map(|_| Record::new(vec![7u8; 900]));
    let run = producer.enqueue_run(0, records).await.unwrap();
    run.wait().await.unwrap();
    let mut reader = client
        .reader("t")
        .credit_bytes(20_000)
        .open()
        .await
        .unwrap();
    while broker.delivered().0 < 20_000 {
        tokio::task::yield_now().await;
    }
    // A round trip: whatever would be sent without credit would have been.
    client.status(false).await.unwrap();
    let (delivered, overdrawn) = broker.delivered();
    assert!(delivered < 23_000, "{delivered}");
    for _ in 0..500 {
        reader.next().await.unwrap().unwrap();
    }
    assert!(overdrawn < 3_000, "{overdrawn}");
    assert!(broker.delivered().1 < 3_000);
}

#[tokio::test]
async fn pulling_takes_what_is_there_and_waits_no_longer_than_told() {
    let broker = FakeBroker::start(&[("t", 1)]);
    let client = client(&broker).await;
    let mut reader = client.reader("t").open().await.unwrap();
    let none = reader.next_batch(10, Duration::from_millis(10)).await;
    assert!(none.unwrap().is_empty());
    let producer = client.producer("t").open().await.unwrap();
    let run = producer
        .enqueue_run(0, (0..25).map(numbered))
        .await
        .unwrap();
    run.wait().await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 25 {
        let batch = reader
            .next_batch(10, Duration::from_secs(10))
            .await
            .unwrap();
        assert!((1..=10).contains(&batch.len()));
        seen.extend(batch.into_iter().map(|delivery| delivery.offset));
    }
    assert_eq!(seen, (0..25).collect::<Vec<u64>>());

    let fetch = |from| client.reader("t").from(Start::Offset(from));
    let fetched = fetch(3).fetch(4, Duration::ZERO).await.unwrap();
    let offsets: Vec<u64> = fetched.deliveries.iter().map(|d| d.offset).collect();
    assert_eq!(offsets, [3, 4, 5, 6]);
    assert_eq!((fetched.next_offset, fetched.high_watermark), (7, 25));
    let fetched = fetch(25).fetch(4, Duration::ZERO).await.unwrap();
    assert_eq!((fetched.deliveries.len(), fetched.next_offset), (0, 25));
}

#[tokio::test]
async fn damage_is_reported_and_the_rest_is_read() {
    let broker = FakeBroker::start(&[("t", 1)]);
    let client = client(&broker).await;
    let batch = |value: &'static str| {
        let mut builder = BatchBuilder::new(1_000, Compression::None);
        builder
            .push(&Record::new(value), MessageId([1; 16]), WallMs(0))
            .unwrap();
        builder.finish(BatchStamp::default()).unwrap()
    };
    let mut rotten = batch("b").to_vec();
    *rotten.last_mut().unwrap() ^= 1;
    broker.plant(1, 0, batch("a"), 1);
    broker.plant(1, 0, rotten.into(), 1);
    broker.plant(1, 0, batch("c"), 1);
    let mut reader = client.reader("t").until_end().open().await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap().value, "a");
    let error = reader.next().await.unwrap().unwrap_err();
    assert_eq!(error.code(), "damaged-batch");
    assert!(error.to_string().contains("offset 1 of partition 0"));
    let third = reader.next().await.unwrap().unwrap();
    assert_eq!((third.offset, third.value.as_ref()), (2, &b"c"[..]));
    assert!(reader.next().await.is_none());
}

#[tokio::test]
async fn admin_requests_are_answered_and_outlive_a_lost_connection() {
    let broker = FakeBroker::start(&[("t", 3)]);
    let client = client(&broker).await;
    assert_eq!(client.topics().await.unwrap().len(), 1);
    let made = client.create_topic("u", TopicConfig::new(2)).await.unwrap();
    assert_eq!((made.name.as_str(), made.config.partitions), ("u", 2));
    let twice = client.create_topic("u", TopicConfig::new(2)).await;
    assert_eq!(twice.unwrap_err().code(), "topic-exists");
    let error = client.producer("nowhere").open().await.unwrap_err();
    assert_eq!(error.code(), "unknown-topic");
    assert!(error.to_string().contains("there is no topic 'nowhere'"));
    assert_eq!(client.status(true).await.unwrap().actors.len(), 1);
    assert_eq!(client.broker().version, "fake");
    let unsupported = client.delete_topic("t").await.unwrap_err();
    assert_eq!(unsupported.code(), "unsupported");
    broker.hang_up();
    assert_eq!(client.topics().await.unwrap().len(), 2);
}

#[tokio::test]
async fn who_cannot_be_trusted_or_found_is_told_apart() {
    let broker = FakeBroker::start(&[]);
    let other = FakeBroker::start(&[]);
    let wrong = Client::connect(&broker.address()).ca_pem(other.ca_pem.as_str());
    let error = wrong.await.unwrap_err();
    assert_eq!(error.code(), "tls", "{error}");
    let wrong = Client::connect(&broker.address())
        .ca_pem(broker.ca_pem.as_str())
        .server_name("elsewhere");
    assert_eq!(wrong.await.unwrap_err().code(), "tls");
    let none = Client::connect(&broker.address()).ca("/nowhere/ca.pem");
    assert_eq!(none.await.unwrap_err().code(), "certificate-file");
    let none = Client::connect(&broker.address()).ca_pem("rubbish");
    assert_eq!(none.await.unwrap_err().code(), "certificate-file");
    let none = Client::connect("no port").ca_pem(broker.ca_pem.as_str());
    assert_eq!(none.await.unwrap_err().code(), "address");
    // A socket that never answers.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let nobody = Client::connect(&address)
        .ca_pem(broker.ca_pem.as_str())
        .timeout(Duration::from_millis(100));
    let error = nobody.await.unwrap_err();
    assert_eq!((error.code(), error.is_retriable()), ("unreachable", true));
}
