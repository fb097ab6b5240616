//! What breaks, breaks alone: actors that fail, views in any state, rotten bytes, a second broker.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use waterwheel::actors::directory::{FailOwner, StartOwner};
use waterwheel::broker::StartError;
use waterwheel::domain::batch::BatchStamp;
use waterwheel::domain::id::{Offset, OwnerId};
use waterwheel::wire::code::Code;
use waterwheel::wire::produce::Ack;
use waterwheel::wire::topic::{At, PartitionInfo, TopicInfo};

use crate::client::{Client, Producer, batch, owner_of, push, to, values};
use crate::disk::FaultyDisk;
use crate::rig::{Node, Rig, config, run};

/// Makes a partition's actor fail and waits until the directory has made another, or given it up.
pub(crate) async fn fail_and_wait(node: &Node, client: &mut Client, owner: OwnerId) {
    let before = restarts(client, owner).await.1;
    node.shared.directory.tell(FailOwner { owner });
    loop {
        let (topic, restarts) = restarts(client, owner).await;
        let stopped =
            |refused: waterwheel::wire::code::Refused| refused.code() == Code::OwnerStopped;
        if restarts > before || client.describe(&topic).await.is_err_and(stopped) {
            return;
        }
    }
}

/// The topic of a partition's actor, and how often it was made again.
async fn restarts(client: &mut Client, owner: OwnerId) -> (String, u64) {
    let actors = client.actors("partition").await;
    let actor = actors
        .into_iter()
        .find(|actor| actor.id == owner.0)
        .expect("it was started");
    (
        actor.name.rsplit_once('/').unwrap().0.to_owned(),
        actor.restarts,
    )
}

/// Flips a bit in every place of the log where these bytes are.
pub(crate) fn spoil(data: &Path, needle: &[u8]) {
    let mut found = 0;
    for entry in std::fs::read_dir(data.join("log")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let places = bytes
            .windows(needle.len())
            .enumerate()
            .filter(|(_, at)| *at == needle);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        for (at, _) in places {
            file.write_all_at(&[needle[0] ^ 1], at as u64).unwrap();
            file.sync_all().unwrap();
            found += 1;
        }
    }
    assert!(found > 0, "what is to be spoilt is on the disk");
}

#[test]
fn a_partition_that_fails_under_load_is_re_created_alone_and_nothing_is_lost_or_twice() {
    run(async {
        // Checkpoints all the time: it comes back from rows and log, cut anywhere.
        let rig = Rig::start_with(|config| config.checkpoint_ms = 10).await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 8).await;
        let mut producers = Vec::new();
        for partition in 0..8 {
            let mut producer = client.producer().await;
            producer.store(&topic, partition, &["0"]).await;
            producers.push(producer);
        }
        let owner = owner_of(&mut client, "orders", 3).await;
        let (_, mut reader) = client
            .open_reader(&push(topic.id, 3, At::Earliest, 1 << 20))
            .await
            .unwrap();
        let loads = (0..)
            .zip(&mut producers)
            .map(|(partition, producer)| load(producer, &topic, partition));
        let failures = async {
            for reached in [LOAD / 4, LOAD / 2] {
                while !client
                    .lookup(topic.id, 3, At::Latest)
                    .await
                    .is_ok_and(|at| at.high_watermark.0 >= reached)
                {
                    tokio::task::yield_now().await;
                }
                rig.node.shared.directory.tell(FailOwner { owner });
            }
        };
        let (refusals, ()) = futures::join!(futures::future::join_all(loads), failures);
        let expected: Vec<String> = (0..=LOAD).map(|round| round.to_string()).collect();
        let mut pushed = Vec::new();
        while pushed.len() < expected.len() {
            let (deliver, batch) = reader.batch().await;
            pushed.extend(values(&deliver, &batch));
        }
        assert_eq!(
            pushed, expected,
            "a reader that was open all the time saw each once"
        );
        for partition in 0..8 {
            assert_eq!(client.read_all(topic.id, partition).await, expected);
        }
        let actors = client.actors("partition").await;
        assert_eq!(actors.len(), 8, "eight partitions, eight actors");
        for actor in actors {
            let expected = if actor.id == owner.0 { 2 } else { 0 };
            assert_eq!(actor.restarts, expected, "{}", actor.name);
        }
        for (partition, refusals) in refusals.into_iter().enumerate() {
            assert!(
                refusals == 0 || partition == 3,
                "only the one that failed refused anything"
            );
        }
    });
}

/// Batches of a load, after the first.
const LOAD: u64 = 400;

/// Keeps sixteen batches under way and sends again, in order, from the first that was refused. Returns how
/// often that was.
async fn load(producer: &mut Producer, topic: &TopicInfo, partition: u32) -> u32 {
    let header = to(topic.id, partition, Ack::Durable);
    let (mut next, mut refusals) = (1, 0);
    let mut under_way = VecDeque::new();
    while next <= LOAD || !under_way.is_empty() {
        while next <= LOAD && under_way.len() < 16 {
            let batch = batch(producer.stamp(next), &[next.to_string()]);
            under_way.push_back((next, producer.stream.request(&header, batch).await));
            next += 1;
        }
        let (sequence, correlation) = under_way.pop_front().unwrap();
        match producer.stream.stored(correlation).await {
            Ok(stored) => assert_eq!(stored.first_offset, Some(Offset(sequence))),
            Err(refused) => {
                assert_eq!(refused.code(), Code::Retry);
                refusals += 1;
                for (_, later) in under_way.drain(..) {
                    let refused = producer.stream.stored(later).await.unwrap_err();
                    assert!(
                        matches!(refused.code(), Code::Retry | Code::SequenceGap),
                        "{refused:?}"
                    );
                }
                next = sequence;
            }
        }
    }
    refusals
}

#[test]
fn three_failures_in_a_minute_stop_a_partition_and_nobody_else() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 2).await;
        let mut producer = client.producer().await;
        for partition in 0..2 {
            producer.store(&topic, partition, &["a"]).await;
        }
        let (_, mut reader) = client
            .open_reader(&push(topic.id, 0, At::Latest, 1 << 20))
            .await
            .unwrap();
        let owner = owner_of(&mut client, "orders", 0).await;
        for _ in 0..3 {
            fail_and_wait(&rig.node, &mut client, owner).await;
        }
        let refused = client.lookup(topic.id, 0, At::Latest).await.unwrap_err();
        assert_eq!(refused.code(), Code::OwnerStopped);
        assert!(refused.message.contains("orders/0"), "{}", refused.message);
        // A reader that waits there is told so.
        let (_, end) = reader.read_to_end().await;
        let waterwheel::wire::reader::EndReason::Refused(refused) = end.reason else {
            panic!("ended: {end:?}");
        };
        assert_eq!(refused.code(), Code::OwnerStopped);
        producer.store(&topic, 1, &["b"]).await;
        drop(client);
        let rig = rig.restart().await;
        let mut client = rig.client().await;
        assert_eq!(client.read_all(topic.id, 0).await, ["a"]);
        assert_eq!(client.read_all(topic.id, 1).await, ["a", "b"]);
    });
}

#[test]
fn the_mark_does_not_pass_what_a_stopped_partition_has_not_folded() {
    run(async {
        let rig = Rig::start().await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let mut producer = client.producer().await;
        producer.store(&topic, 0, &["a"]).await;
        let owner = owner_of(&mut client, "orders", 0).await;
        for _ in 0..3 {
            fail_and_wait(&rig.node, &mut client, owner).await;
        }
        // While the last checkpoint waits for it, the log asks for the owner.
        let directory = rig.node.shared.directory.clone();
        let asking = tokio::spawn(async move {
            loop {
                directory.tell(StartOwner { owner });
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        });
        drop(client);
        let rig = rig.restart().await;
        asking.abort();
        let mut client = rig.client().await;
        assert_eq!(client.read_all(topic.id, 0).await, ["a"]);
    });
}

#[test]
fn a_second_broker_on_one_directory_is_refused() {
    run(async {
        let rig = Rig::start().await;
        let second = Node::try_start(rig.config.clone(), None).await;
        assert!(matches!(second, Err(StartError::Locked(_))));
        rig.node.assert_serves().await;
        // Neither a stop nor a kill leaves the directory locked.
        let rig = rig.restart().await.kill_and_restart(|_| {}).await;
        rig.node.assert_serves().await;
    });
}

#[test]
fn a_stop_that_a_disk_holds_up_ends_in_time_but_frees_the_directory_only_with_the_last_write() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let (disk, faults) = FaultyDisk::of(dir.path());
        let node = Node::try_start(config(dir.path()), Some(disk))
            .await
            .unwrap();
        let mut client = node.client().await;
        let topic = client.create("orders", 1).await;
        let mut producer = client.producer().await;
        faults.hold();
        producer.offer(&topic, 0, &["late"], Ack::Durable).await;
        faults.is_holding().await;
        let started = Instant::now();
        node.stop().await;
        assert!(started.elapsed() < Duration::from_secs(8));
        let second = Node::try_start(config(dir.path()), None).await;
        assert!(matches!(second, Err(StartError::Locked(_))));
        faults.release();
        let node = loop {
            match Node::try_start(config(dir.path()), None).await {
                Ok(node) => break node,
                Err(StartError::Locked(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
        let mut client = node.client().await;
        assert_eq!(client.read_all(topic.id, 0).await, ["late"]);
    });
}

/// What clients can see of a broker, and what it does next with a known producer.
async fn state(
    rig: &Rig,
    topics: &[&str],
) -> Vec<(TopicInfo, Vec<PartitionInfo>, Vec<Vec<String>>)> {
    let mut client = rig.client().await;
    let mut state = Vec::new();
    for name in topics {
        let (topic, partitions) = client.describe(name).await.unwrap();
        let mut records = Vec::new();
        for partition in 0..topic.config.partitions {
            records.push(client.read_all(topic.id, partition).await);
        }
        state.push((topic, partitions, records));
    }
    state
}

/// Fills a broker: several topics, a deleted one, several producers. Returns the last batches.
async fn fill(rig: &Rig, round: u64) -> Vec<(u64, bytes::Bytes)> {
    let mut client = rig.client().await;
    let gone = client.create(&format!("gone-{round}"), 2).await;
    let mut last = Vec::new();
    for name in ["orders", "returns"] {
        let topic = match client.describe(name).await {
            Ok((topic, _)) => topic,
            Err(_) => client.create(name, 3).await,
        };
        let mut producer = client.producer().await;
        for sequence in 0..30 {
            let partition = u32::try_from(sequence % 3).unwrap();
            producer
                .store(&topic, partition, &[format!("{round}:{sequence}")])
                .await;
        }
        producer.store(&gone, 0, &["gone"]).await;
        // The tenth batch of this producer in partition 0.
        let again = batch(producer.stamp(9), &[format!("{round}:27")]);
        last.push((topic.id.0, again));
    }
    let delete = waterwheel::wire::topic::DeleteTopic { name: gone.name };
    client
        .ask::<_, waterwheel::wire::topic::TopicOk>(&delete)
        .await
        .unwrap();
    last
}

fn views(data: &Path) -> PathBuf {
    data.join("views")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path);
        }
    }
    all.sort();
    all
}

#[test]
fn whatever_happens_to_the_views_the_state_is_that_of_the_log() {
    run(async {
        let rig = Rig::start().await;
        fill(&rig, 0).await;
        // Views as they once were, then more of the log.
        let old = tempfile::tempdir().unwrap();
        let rig = rig
            .restart_after(|data| copy(&views(data), old.path()))
            .await;
        let mut last = fill(&rig, 1).await;
        last.truncate(1);
        let names = ["orders", "returns"];
        let expected = state(&rig, &names).await;
        let old = old.path().to_path_buf();
        type Harm = Box<dyn Fn(&Path)>;
        let harms: Vec<(&str, Harm)> = vec![
            ("untouched", Box::new(|_| {})),
            (
                "missing",
                Box::new(|data| std::fs::remove_dir_all(views(data)).unwrap()),
            ),
            ("older", {
                let old = old.clone();
                Box::new(move |data| {
                    std::fs::remove_dir_all(views(data)).unwrap();
                    copy(&old, &views(data));
                })
            }),
            ("mixed", {
                let old = old.clone();
                Box::new(move |data| {
                    // Some files of then among those of now.
                    for path in files(&old).iter().step_by(2) {
                        let name = path.strip_prefix(&old).unwrap();
                        std::fs::copy(path, views(data).join(name)).unwrap();
                    }
                })
            }),
            (
                "truncated",
                Box::new(|data| {
                    for path in files(&views(data)) {
                        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
                        let bytes = file.metadata().unwrap().len();
                        file.set_len(bytes / 2).unwrap();
                    }
                }),
            ),
            (
                "rotten",
                Box::new(|data| {
                    for path in files(&views(data)) {
                        let mut bytes = std::fs::read(&path).unwrap();
                        for at in (0..bytes.len()).step_by(509) {
                            bytes[at] ^= 0x40;
                        }
                        std::fs::write(&path, bytes).unwrap();
                    }
                }),
            ),
        ];
        let mut rig = rig;
        for (what, harm) in harms {
            rig = rig.kill_and_restart(&harm).await;
            assert_eq!(state(&rig, &names).await, expected, "{what}, after a kill");
            rig = rig.restart_after(&harm).await;
            assert_eq!(state(&rig, &names).await, expected, "{what}, after a stop");
            // The producers are remembered too.
            let mut client = rig.client().await;
            for (topic, again) in &last {
                let header = to(waterwheel::domain::id::TopicId(*topic), 0, Ack::Durable);
                let stored = client.control.produce(header, again.clone()).await.unwrap();
                assert_eq!(
                    (stored.first_offset, stored.duplicate),
                    (Some(Offset(19)), true),
                    "{what}"
                );
            }
            assert!(client.describe("gone-0").await.is_err(), "{what}");
        }
    });
}

#[test]
fn a_bit_that_rotted_anywhere_in_the_views_changes_nothing() {
    run(async {
        let mut rig = Rig::start().await;
        fill(&rig, 0).await;
        let names = ["orders", "returns"];
        let expected = state(&rig, &names).await;
        for part in 1..8 {
            rig = rig
                .restart_after(|data| {
                    for path in files(&views(data)) {
                        let mut bytes = std::fs::read(&path).unwrap();
                        // Sled makes room ahead: only what is written can rot.
                        let written: Vec<usize> =
                            (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
                        if let Some(at) = written.get(written.len() * part / 8) {
                            bytes[*at] ^= 4;
                            std::fs::write(&path, bytes).unwrap();
                        }
                    }
                })
                .await;
            assert_eq!(
                state(&rig, &names).await,
                expected,
                "{part} eighths into every file"
            );
        }
    });
}

#[test]
fn views_that_are_ahead_of_the_log_are_not_believed() {
    run(async {
        let rig = Rig::start().await;
        fill(&rig, 0).await;
        let old = tempfile::tempdir().unwrap();
        let rig = rig
            .restart_after(|data| copy(&data.join("log"), old.path()))
            .await;
        let expected = state(&rig, &["orders", "returns"]).await;
        fill(&rig, 1).await;
        // The log of then, the views of now.
        let rig = rig
            .restart_after(|data| {
                std::fs::remove_dir_all(data.join("log")).unwrap();
                copy(old.path(), &data.join("log"));
            })
            .await;
        assert_eq!(state(&rig, &["orders", "returns"]).await, expected);
        rig.node.assert_serves().await;
    });
}

#[test]
fn a_rotten_record_costs_itself_across_a_restart_too() {
    run(async {
        let rig = Rig::start_with(|config| config.tail_cache_bytes = 1).await;
        let mut client = rig.client().await;
        let topic = client.create("orders", 1).await;
        let mut producer = client.producer().await;
        for value in ["before", "precious", "after"] {
            producer.store(&topic, 0, &[value]).await;
        }
        drop(client);
        let rig = rig.restart_after(|data| spoil(data, b"precious")).await;
        let mut client = rig.client().await;
        let (_, mut reader) = client
            .open_reader(&push(topic.id, 0, At::Earliest, 1 << 20))
            .await
            .unwrap();
        let (batches, end) = reader.read_to_end().await;
        assert_eq!(batches.len(), 1, "what lies before it is delivered");
        assert_eq!(end.next_offset, Offset(1));
        let waterwheel::wire::reader::EndReason::Refused(refused) = end.reason else {
            panic!("not refused: {:?}", end.reason);
        };
        assert_eq!(refused.code(), Code::Damaged);
        let after = At::Offset(Offset(refused.detail["end_offset"].parse().unwrap()));
        let rest = client.read_from(topic.id, 0, after).await.unwrap();
        assert_eq!(values(&rest[0].0, &rest[0].1), ["after"]);
        // Its offset is not given out again.
        let mut stream = client.stream().await;
        let more = batch(BatchStamp::default(), &["more"]);
        let stored = stream
            .produce(to(topic.id, 0, Ack::Durable), more)
            .await
            .unwrap();
        assert_eq!(stored.first_offset, Some(Offset(3)));
    });
}
