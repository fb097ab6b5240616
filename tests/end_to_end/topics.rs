//! Topics: made, changed, described, deleted; names are aliases, ids are for ever.

use waterwheel::domain::id::{Lane, Offset, PARTITIONS_MAX, PartitionIndex};
use waterwheel::wire::code::{Code, Refused};
use waterwheel::wire::produce::Ack;
use waterwheel::wire::reader::EndReason;
use waterwheel::wire::topic::{
    AlterTopic, At, DeleteTopic, FlushMode, LookupOffset, Metadata, MetadataOk, OffsetOk,
    TopicConfig, TopicInfo, TopicOk, decode_list,
};

use crate::client::{Client, batch, pull, push, to};
use crate::rig::{Rig, run};

async fn list(client: &mut Client, names: &[&str]) -> Vec<TopicInfo> {
    let topics = names.iter().map(|name| (*name).to_owned()).collect();
    let question = Metadata { topics };
    let (ok, body) = client
        .control
        .ask_with_body::<_, MetadataOk>(&question)
        .await
        .unwrap();
    let list = decode_list::<TopicInfo>(&body).unwrap();
    assert_eq!(ok.topics as usize, list.len());
    list
}

async fn alter(client: &mut Client, alter: AlterTopic) -> Result<TopicInfo, Refused> {
    client.ask::<_, TopicOk>(&alter).await.map(|ok| ok.topic)
}

async fn delete(client: &mut Client, name: &str) -> Result<TopicInfo, Refused> {
    let question = DeleteTopic {
        name: name.to_owned(),
    };
    client.ask::<_, TopicOk>(&question).await.map(|ok| ok.topic)
}

fn unkeyed(partitions: u32) -> TopicConfig {
    TopicConfig {
        keyed: false,
        ..TopicConfig::new(partitions)
    }
}

#[test]
fn a_topic_is_what_it_was_made_changed_and_restarted_as() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let config = TopicConfig {
            flush: FlushMode::Async,
            retention_ms: Some(3_600_000),
            retention_bytes: Some(1 << 30),
            ..TopicConfig::new(3)
        };
        let made = client.create_with("orders", config.clone()).await.unwrap();
        assert_eq!((made.name.as_str(), &made.config), ("orders", &config));
        let other = client.create("returns", 1).await;
        assert_ne!(made.id, other.id);
        assert_eq!(list(&mut client, &[]).await, [made.clone(), other.clone()]);
        assert_eq!(
            list(&mut client, &["returns", "none"]).await,
            std::slice::from_ref(&other)
        );
        let (described, partitions) = client.describe("orders").await.unwrap();
        assert_eq!(described, made);
        let indexes: Vec<u32> = partitions.iter().map(|info| info.partition.0).collect();
        assert_eq!(indexes, [0, 1, 2]);
        let change = AlterTopic {
            name: "orders".to_owned(),
            flush: Some(FlushMode::Sync),
            retention_ms: Some(None),
            ..AlterTopic::default()
        };
        let altered = alter(&mut client, change).await.unwrap();
        let expected = TopicConfig {
            flush: FlushMode::Sync,
            retention_ms: None,
            ..config
        };
        assert_eq!((altered.id, &altered.config), (made.id, &expected));
        drop(client);
        let rig = rig.kill_and_restart(|_| {}).await;
        let mut client = rig.client().await;
        assert_eq!(list(&mut client, &[]).await, [altered, other]);
    });
}

#[test]
fn a_keyed_topic_keeps_its_partitions_and_an_unkeyed_one_may_get_more() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let raise = |name: &str, partitions| AlterTopic {
            name: name.to_owned(),
            partitions: Some(partitions),
            ..AlterTopic::default()
        };
        client.create("keyed", 2).await;
        for partitions in [1, 3] {
            let refused = alter(&mut client, raise("keyed", partitions))
                .await
                .unwrap_err();
            assert_eq!(refused.code(), Code::KeyedTopic);
        }
        let topic = client.create_with("loose", unkeyed(2)).await.unwrap();
        let mut producer = client.producer().await;
        producer.store(&topic, 1, &["before"]).await;
        let refused = client.lookup(topic.id, 2, At::Latest).await.unwrap_err();
        assert_eq!(refused.code(), Code::PartitionOutOfRange);
        assert_eq!(refused.detail["partitions"], "2");
        let more = alter(&mut client, raise("loose", 5)).await.unwrap();
        assert_eq!((more.id, more.config.partitions), (topic.id, 5));
        producer.store(&more, 4, &["after"]).await;
        let refused = alter(&mut client, raise("loose", 4)).await.unwrap_err();
        assert_eq!(
            refused.code(),
            Code::InvalidConfig,
            "fewer would lose records"
        );
        drop(client);
        let rig = rig.kill_and_restart(|_| {}).await;
        let mut client = rig.client().await;
        assert_eq!(client.read_all(topic.id, 1).await, ["before"]);
        assert_eq!(client.read_all(topic.id, 4).await, ["after"]);
    });
}

#[test]
fn a_topic_made_again_under_an_old_name_is_another_topic() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let old = client.create("orders", 2).await;
        let mut producer = client.producer().await;
        producer.store(&old, 0, &["old"]).await;
        let (_, mut waiting) = client
            .open_reader(&push(old.id, 1, At::Latest, 1 << 20))
            .await
            .unwrap();
        assert_eq!(delete(&mut client, "orders").await.unwrap().id, old.id);
        // Whoever reads it is told.
        let EndReason::Refused(refused) = waiting.read_to_end().await.1.reason else {
            panic!("the topic is gone");
        };
        assert_eq!(refused.code(), Code::UnknownTopic);
        assert_eq!(
            delete(&mut client, "orders").await.unwrap_err().code(),
            Code::UnknownTopic
        );
        let new = client.create("orders", 2).await;
        assert_ne!(new.id, old.id);
        let check = async |client: &mut Client| {
            assert!(client.read_all(new.id, 0).await.is_empty());
            let refused = client.read_from(old.id, 0, At::Earliest).await.unwrap_err();
            assert_eq!(refused.code(), Code::UnknownTopic);
            let stale = batch(Default::default(), &["stale"]);
            let answer = client
                .control
                .produce(to(old.id, 0, Ack::Durable), stale)
                .await;
            assert_eq!(answer.unwrap_err().code(), Code::UnknownTopic);
        };
        check(&mut client).await;
        drop(client);
        let rig = rig.kill_and_restart(|_| {}).await;
        check(&mut rig.client().await).await;
        let rig = rig
            .restart_after(|data| std::fs::remove_dir_all(data.join("views")).unwrap())
            .await;
        check(&mut rig.client().await).await;
        assert_eq!(
            rig.client().await.create("third", 1).await.id.0,
            new.id.0 + 1
        );
    });
}

#[test]
fn a_topic_deleted_under_load_answers_every_batch_and_stays_gone() {
    run(async {
        let rig = Rig::start_with(|config| config.checkpoint_ms = 10).await;
        let mut client = rig.client().await;
        let kept = client.create("kept", 1).await;
        let mut keeper = client.producer().await;
        for round in 0..5_u64 {
            let topic = client.create("orders", 4).await;
            let mut producer = client.producer().await;
            let mut sent = Vec::new();
            for at in 0..60_u32 {
                sent.push(producer.offer(&topic, at % 4, &["x"], Ack::Durable).await);
                if at == 30 {
                    delete(&mut client, "orders").await.unwrap();
                }
            }
            for correlation in sent {
                match producer.stream.stored(correlation).await {
                    Ok(_) => {}
                    // On its way when its partition went, or behind one that was: behind a producer's
                    // first batch that means that the partition has not heard of the producer.
                    Err(refused) => assert!(
                        matches!(
                            refused.code(),
                            Code::UnknownTopic
                                | Code::Retry
                                | Code::SequenceGap
                                | Code::ProducerStateLost
                        ),
                        "{refused:?}"
                    ),
                }
            }
            assert_eq!(
                keeper.store(&kept, 0, &[round.to_string()]).await,
                Offset(round)
            );
        }
        drop(client);
        let rig = rig.kill_and_restart(|_| {}).await;
        assert_eq!(
            list(&mut rig.client().await, &[]).await,
            std::slice::from_ref(&kept)
        );
        let rig = rig
            .restart_after(|data| std::fs::remove_dir_all(data.join("views")).unwrap())
            .await;
        let mut client = rig.client().await;
        assert_eq!(list(&mut client, &[]).await, std::slice::from_ref(&kept));
        assert_eq!(client.read_all(kept.id, 0).await, ["0", "1", "2", "3", "4"]);
        let again = client.create("orders", 4).await;
        assert!(client.read_all(again.id, 0).await.is_empty());
    });
}

#[test]
fn a_topic_of_ten_thousand_partitions_is_described_whole() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("wide", PARTITIONS_MAX).await;
        client
            .producer()
            .await
            .store(&topic, 9_999, &["last"])
            .await;
        let (_, partitions) = client.describe("wide").await.unwrap();
        assert_eq!(partitions.len(), PARTITIONS_MAX as usize);
        for (index, info) in (0..).zip(&partitions) {
            assert_eq!(
                (info.partition, info.lane),
                (PartitionIndex(index), Lane::ZERO)
            );
            assert_eq!(info.high_watermark, Offset(u64::from(index == 9_999)));
        }
        assert_eq!(client.read_all(topic.id, 9_999).await, ["last"]);
        rig.node.assert_serves().await;
        delete(&mut client, "wide").await.unwrap();
        rig.node.assert_serves().await;
    });
}

#[test]
fn bounds_hold() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let retention = |ms, bytes| TopicConfig {
            retention_ms: ms,
            retention_bytes: bytes,
            ..TopicConfig::new(1)
        };
        let bad = [
            TopicConfig::new(0),
            TopicConfig::new(PARTITIONS_MAX + 1),
            TopicConfig::new(u32::MAX),
            retention(Some(0), None),
            retention(None, Some(0)),
        ];
        for config in bad {
            let refused = client.create_with("bad", config.clone()).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidConfig, "{config:?}");
        }
        client
            .create_with("odd", retention(Some(u64::MAX), Some(u64::MAX)))
            .await
            .unwrap();
        let refused = client
            .create_with("odd", TopicConfig::new(1))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::TopicExists);
        let topic = client.create("orders", 1).await;
        for (partition, lane) in [(1, 0), (u32::MAX, 0), (0, 1), (0, 31), (0, 255)] {
            let (partition, lane) = (PartitionIndex(partition), Lane(lane));
            let question = LookupOffset {
                topic: topic.id,
                partition,
                lane,
                at: At::Latest,
            };
            let refused = client.ask::<_, OffsetOk>(&question).await.unwrap_err();
            assert_eq!(
                refused.code(),
                Code::PartitionOutOfRange,
                "{partition}, {lane}"
            );
        }
        let refused = client
            .ask::<_, TopicOk>(&pull(topic.id, 9, At::Latest))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::PartitionOutOfRange);
        let name = "none".to_owned();
        let refused = alter(
            &mut client,
            AlterTopic {
                name,
                ..AlterTopic::default()
            },
        )
        .await;
        assert_eq!(refused.unwrap_err().code(), Code::UnknownTopic);
        rig.node.assert_serves().await;
    });
}

#[test]
fn two_who_make_the_same_topic_at_once_get_one() {
    run(async {
        let rig = Rig::start().await;
        let mut clients = Vec::new();
        for _ in 0..6 {
            clients.push(rig.client().await);
        }
        let made = futures::future::join_all(
            clients
                .iter_mut()
                .map(|client| client.create_with("orders", TopicConfig::new(1))),
        )
        .await;
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
        for refused in made.into_iter().filter_map(Result::err) {
            // Too early to say, or too late.
            assert!(
                matches!(refused.code(), Code::Throttled | Code::TopicExists),
                "{refused:?}"
            );
        }
        assert_eq!(list(&mut clients[0], &[]).await.len(), 1);
    });
}
