//! A pipeline that consumes, transforms and produces exactly once, and the audit of what came out: one for the
//! crash test and the load harness, which torment it each in its own way.
//!
//! In: numbers from 0 on, number n in partition n modulo their count, in order. Out: each with what one loop
//! over them makes of it. The source is consumed in order, so that the results of each partition must come in the
//! order of their sources, through every kill.

use std::convert::Infallible;
use std::error::Error;
use std::time::Duration;

use waterwheel::client::{Client, Delivery, Mode, Record, Start, TopicConfig};

/// The group that consumes.
pub(crate) const GROUP: &str = "squares";
const SOURCE: &str = "numbers";
const RESULTS: &str = "squares";
const PARTITIONS: u32 = 4;
/// Records of one transaction, at most.
const BATCH: usize = 400;

/// What went wrong, for whoever torments.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// What is made of a number; the number stays with it, so that the audit knows each by its source.
fn transform(number: u64) -> String {
    let square = number.wrapping_mul(number).wrapping_add(1);
    format!("{number} {square}")
}

fn number(text: &[u8]) -> Result<u64, Failure> {
    let text = std::str::from_utf8(text)?;
    let number = text.split(' ').next().unwrap_or_default();
    Ok(number.parse()?)
}

/// Makes the topics and fills the source.
pub(crate) async fn fill(client: &Client, records: u64) -> Result<(), Failure> {
    for topic in [SOURCE, RESULTS] {
        client
            .create_topic(topic, TopicConfig::new(PARTITIONS))
            .await?;
    }
    let producer = client.producer(SOURCE).open().await?;
    for number in 0..records {
        let partition = u32::try_from(number % u64::from(PARTITIONS))?;
        let record = Record::new(number.to_string());
        drop(producer.enqueue_to(partition, record).await?);
    }
    Ok(producer.close().await?)
}

/// How many results there are.
pub(crate) async fn results(client: &Client) -> Result<u64, Failure> {
    let topic = client.describe_topic(RESULTS).await?;
    let ends = topic.partitions.iter().map(|one| one.high_watermark.0);
    Ok(ends.sum())
}

/// Works until something goes wrong, which a kill of the broker is: then begins anew, as a worker would that
/// takes over. Even workers attach records, odd ones positions.
pub(crate) async fn work(client: &Client, index: usize) -> Result<Infallible, Failure> {
    let name = format!("worker-{index}");
    // First the session, which rolls back what its predecessor left; then what that held comes again.
    let producer = client
        .transactional_producer(&name)
        .timeout(Duration::from_secs(20))
        .open()
        .await?;
    // By its name it takes over at once from the one that was killed.
    let consumer = client.consumer(GROUP).topic(SOURCE).name(&name);
    let mut consumer = consumer.mode(Mode::Exclusive).open().await?;
    loop {
        let batch = consumer.next_batch(BATCH, Duration::from_secs(5)).await?;
        let mut transaction = producer.transaction();
        for delivery in &batch {
            let result = Record::new(transform(number(&delivery.value)?));
            transaction
                .send_to(RESULTS, delivery.partition, result)
                .await?;
        }
        let settler = consumer.settler();
        if index.is_multiple_of(2) {
            transaction.attach(&settler, &batch)?;
        } else {
            for last in last_of_each_partition(&batch) {
                transaction.attach_up_to(&settler, last)?;
            }
        }
        transaction.commit().await?;
    }
}

fn last_of_each_partition(batch: &[Delivery]) -> impl Iterator<Item = &Delivery> {
    (0..PARTITIONS).filter_map(|partition| {
        batch
            .iter()
            .rfind(|delivery| delivery.partition == partition)
    })
}

/// How the results differ from those of one loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Audit {
    /// Numbers without a result.
    pub(crate) lost: u64,
    /// Results beyond the first of a number.
    pub(crate) duplicated: u64,
    /// Results that no number has, or not there.
    pub(crate) wrong: u64,
    /// Results that come before one they belong behind.
    pub(crate) disordered: u64,
}

impl Audit {
    /// Whether the output is that of one loop, record by record.
    pub(crate) fn is_equal(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads all results and puts them beside those of one loop.
pub(crate) async fn audit(client: &Client, records: u64) -> Result<Audit, Failure> {
    let mut found = Audit::default();
    for partition in 0..PARTITIONS {
        let reader = client.reader(RESULTS).partition(partition);
        let mut reader = reader.from(Start::Earliest).until_end().open().await?;
        let mut values = Vec::new();
        while let Some(deliveries) = reader.next_deliveries().await? {
            values.extend(deliveries.into_iter().map(|delivery| delivery.value));
        }
        let values = values.iter().map(AsRef::as_ref);
        compare(values, partition.into(), records, &mut found);
    }
    Ok(found)
}

fn compare<'a>(
    values: impl Iterator<Item = &'a [u8]>,
    partition: u64,
    records: u64,
    found: &mut Audit,
) {
    let step = u64::from(PARTITIONS);
    let sources = (partition..records).step_by(PARTITIONS as usize);
    let mut seen = vec![false; sources.count()];
    let mut last = None;
    for value in values {
        let source = number(value)
            .ok()
            .filter(|source| source % step == partition && transform(*source).as_bytes() == value);
        let place = source.and_then(|source| usize::try_from(source / step).ok());
        let Some(seen) = place.and_then(|place| seen.get_mut(place)) else {
            found.wrong += 1;
            continue;
        };
        if std::mem::replace(seen, true) {
            found.duplicated += 1;
        } else if last > source {
            found.disordered += 1;
        } else {
            last = source;
        }
    }
    found.lost += seen.iter().filter(|seen| !**seen).count() as u64;
}

#[test]
fn an_audit_finds_what_is_lost_doubled_wrong_or_out_of_order() {
    let of = |numbers: &[u64]| {
        let values: Vec<String> = numbers.iter().map(|number| transform(*number)).collect();
        let mut found = Audit::default();
        let values = values.iter().map(String::as_bytes);
        compare(values, 1, 14, &mut found);
        found
    };
    assert!(of(&[1, 5, 9, 13]).is_equal());
    let differs = |lost, duplicated, wrong, disordered| Audit {
        lost,
        duplicated,
        wrong,
        disordered,
    };
    assert_eq!(of(&[1, 5, 13]), differs(1, 0, 0, 0));
    assert_eq!(of(&[1, 5, 9, 13, 5]), differs(0, 1, 0, 0));
    assert_eq!(of(&[1, 5, 9, 13, 17, 2]), differs(0, 0, 2, 0));
    assert_eq!(of(&[1, 9, 5, 13]), differs(0, 0, 0, 1));
    let mut foreign = Audit::default();
    compare([b"1 3".as_slice()].into_iter(), 1, 2, &mut foreign);
    assert_eq!(foreign, differs(1, 0, 1, 0));
}
