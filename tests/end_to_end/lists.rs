//! Lists that are longer than any batch may be.

use futures::future::join_all;
use waterwheel::client::{Client, Record, TopicConfig, TransactionId};

use crate::rig::{Rig, run};

const BATCH_BYTES_MAX: u32 = 64 << 10;

async fn rig() -> (Rig, Client) {
    let rig = Rig::start_with(|config| config.batch_bytes_max = BATCH_BYTES_MAX).await;
    let client = rig.node.connect().await.unwrap();
    (rig, client)
}

#[test]
fn more_topics_than_a_batch_has_room_for_are_listed() {
    run(async {
        let (_rig, client) = rig().await;
        let names: Vec<String> = (0..700).map(|n| format!("{n:0>200}")).collect();
        for some in names.chunks(50) {
            let config = TopicConfig::new(1);
            let made = some.iter().map(|name| client.create_topic(name, config.clone()));
            assert!(join_all(made).await.iter().all(Result::is_ok));
        }
        let listed = client.topics().await.unwrap();
        let mut listed: Vec<String> = listed.into_iter().map(|topic| topic.name).collect();
        listed.sort_unstable();
        assert_eq!(listed, names);
    });
}

#[test]
fn more_transactions_than_one_answer_takes_are_listed_page_by_page() {
    run(async {
        let (_rig, client) = rig().await;
        let mut topic = TopicConfig::new(4);
        topic.levels = 2;
        client.create_topic("t", topic).await.unwrap();
        let name = "n".repeat(200);
        let till = client.transactional_producer(&name).open().await.unwrap();
        let mut open = Vec::new();
        for _ in 0..4 {
            let opened = (0..100).map(|_| async {
                let mut transaction = till.transaction();
                for to in 0..8 {
                    let record = Record::new("x").priority(to / 4);
                    transaction.send_to("t", u32::from(to % 4), record).await.unwrap();
                }
                transaction.flush().await.unwrap();
                transaction
            });
            open.extend(join_all(opened).await);
        }
        let (mut listed, mut pages) = (Vec::<TransactionId>::new(), 0);
        loop {
            let page = client.transactions(listed.last().copied()).await.unwrap();
            if page.is_empty() {
                break;
            }
            pages += 1;
            assert!(page.iter().all(|one| one.participants.len() == 8));
            listed.extend(page.into_iter().map(|one| one.id));
        }
        let mut ids: Vec<TransactionId> = open.iter().map(waterwheel::client::Transaction::id).collect();
        ids.sort_unstable();
        assert_eq!(listed, ids);
        assert!(pages > 1, "so many are more than a page");
    });
}
