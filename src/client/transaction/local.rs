//! Local transactions: the side of a half message that lives elsewhere, and questions for its outcome.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::TransactionId;
use crate::client::Record;
use crate::client::link::Link;
use crate::domain::batch::{BatchView, Slot};
use crate::domain::record::RecordBody;
use crate::wire::frame::Frame;
use crate::wire::transaction::{CheckBack, CheckedBack, Outcome};

/// What a local transaction came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LocalOutcome {
    /// It happened: the message becomes visible.
    Commit,
    /// It did not, and will not.
    Rollback,
    /// Not known (yet): the broker asks later.
    Unknown,
}

impl From<LocalOutcome> for Outcome {
    fn from(outcome: LocalOutcome) -> Self {
        match outcome {
            LocalOutcome::Commit => Self::Commit,
            LocalOutcome::Rollback => Self::Rollback,
            LocalOutcome::Unknown => Self::Unknown,
        }
    }
}

/// A half message whose outcome is asked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HalfMessage {
    /// Its transaction.
    pub id: TransactionId,
    /// The producer group.
    pub group: String,
    /// The topic of its first batch; empty where it is gone.
    pub topic: String,
    /// The records of its first batch; empty where they could not be read.
    pub records: Vec<Record>,
}

/// The side of a half message that lives elsewhere: a database's transaction, a call.
///
/// ```no_run
/// use futures::future::BoxFuture;
/// use waterwheel::client::{HalfMessage, LocalOutcome, LocalTransaction, Record, TransactionId};
///
/// struct Payments; // with a connection to the database
///
/// impl LocalTransaction for Payments {
///     fn execute<'a>(&'a self, id: TransactionId, payment: &'a Record) -> BoxFuture<'a, LocalOutcome> {
///         Box::pin(async move {
///             // INSERT INTO payments (transaction_id, ...): the id in the same transaction.
///             println!("{id}: {} bytes", payment.value.len());
///             LocalOutcome::Commit
///         })
///     }
///
///     fn check<'a>(&'a self, half: &'a HalfMessage) -> BoxFuture<'a, LocalOutcome> {
///         Box::pin(async move {
///             // SELECT 1 FROM payments WHERE transaction_id = ...: `Commit` if it is there, `Rollback` if it
///             // is not and never will be.
///             println!("{}", half.id);
///             LocalOutcome::Unknown
///         })
///     }
/// }
///
/// # async fn example(client: waterwheel::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let till = client.transactional_producer("till-7").group("tills").local(Payments).open().await?;
/// till.send_half("points", Record::new("+42").key("customer-3")).await?;
/// # Ok(())
/// # }
/// ```
pub trait LocalTransaction: Send + Sync + 'static {
    /// Does it. Called only once the half message is durable. A panic, or the end of the process, leaves
    /// the outcome to [`LocalTransaction::check`].
    fn execute<'a>(&'a self, id: TransactionId, record: &'a Record) -> BoxFuture<'a, LocalOutcome>;

    /// Says what it came to, possibly in another process of the same producer group than the one that
    /// executed it, possibly long after. Must not guess: `Unknown` is asked about again.
    fn check<'a>(&'a self, half: &'a HalfMessage) -> BoxFuture<'a, LocalOutcome>;
}

/// Answers a question for an outcome; a checker that panics does not know.
pub(super) async fn answer_check(
    checker: Arc<dyn LocalTransaction>,
    link: Arc<Link>,
    question: Frame,
) {
    let Ok(check) = question.decode::<CheckBack>() else {
        return;
    };
    let half = HalfMessage {
        id: TransactionId {
            producer: check.producer,
            epoch: check.epoch,
            number: check.number,
        },
        group: check.group,
        topic: check.topic,
        records: records_of(&question.body),
    };
    let checking = tokio::spawn(async move { checker.check(&half).await });
    let outcome = checking.await.unwrap_or(LocalOutcome::Unknown);
    let answer = CheckedBack {
        producer: check.producer,
        epoch: check.epoch,
        number: check.number,
        outcome: outcome.into(),
        nobody_of: None,
    };
    // Lost with its connection, it is asked again.
    let _ = link.send(&answer, 0);
}

fn records_of(batch: &Bytes) -> Vec<Record> {
    let Ok(view) = BatchView::parse(batch) else {
        return Vec::new();
    };
    let Ok(bodies) = view.bodies() else {
        return Vec::new();
    };
    let bodies = bodies.enumerate().filter_map(|(index, body)| {
        let body = RecordBody::decode(&body.ok()?.1).ok()?;
        Some(record_of(body, view.slot(index)?))
    });
    bodies.collect()
}

fn record_of(body: RecordBody, slot: Slot) -> Record {
    Record {
        value: body.value,
        key: body.key,
        tag: body.tag,
        headers: body.headers,
        id: Some(body.id),
        timestamp: Some(slot.timestamp),
        delivery: slot.delivery,
        priority: slot.priority,
    }
}
