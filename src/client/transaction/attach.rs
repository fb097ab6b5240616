//! Consuming within a transaction: records count as consumed if and when it commits.
//!
//! ```no_run
//! # async fn example(client: waterwheel::client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use waterwheel::client::Record;
//!
//! let mut consumer = client.consumer("squares").topic("numbers").open().await?;
//! let producer = client.transactional_producer("squares-1").open().await?;
//! loop {
//!     let batch = consumer.next_batch(100, Duration::from_secs(1)).await?;
//!     let mut transaction = producer.transaction();
//!     for delivery in &batch {
//!         transaction.send("results", Record::new(delivery.value.clone())).await?;
//!     }
//!     transaction.attach(&consumer.settler(), &batch)?;
//!     transaction.commit().await?;
//! }
//! # }
//! ```

use super::{Transaction, TransactionError};
use crate::client::error::Refusal;
use crate::client::settle::{SettleError, Settlement};
use crate::client::{Code, Delivery, Settler};

impl Transaction {
    /// These records are consumed if and when the transaction commits; where it is rolled back they come again.
    ///
    /// Said at once, over the connection of the consumer they came to, whose [`Settler`] this takes; the
    /// commit waits until the broker has confirmed it. From then on its group holds the records until the
    /// decision, though their lease expires, the consumer ends or the broker is killed. A record can be
    /// attached to one transaction only, and is not acknowledged beside that.
    ///
    /// # Errors
    /// [`TransactionError::NotLeased`] for a record of a reader, or of a consumer whose records are settled
    /// before they come; whatever failed earlier. What the broker says comes with the next flush or the
    /// commit: refused with `unknown-lease` where a lease has expired or is another member's, `unknown-member`
    /// where the consumer is no member of the group any more, `transaction-decided`. The transaction can then
    /// only be rolled back.
    ///
    /// Where records are consumed in order, a rollback takes back what the consumer has behind those it was
    /// about: they come again behind them, and one that is attached meanwhile is refused with `unknown-lease`.
    pub fn attach<'a>(
        &mut self,
        settler: &Settler,
        deliveries: impl IntoIterator<Item = &'a Delivery>,
    ) -> Result<(), TransactionError> {
        self.check()?;
        let said = settler.attach(self.id, deliveries);
        self.note(said)
    }

    /// The same for a record and every one before it in its partition (and priority level) that the consumer
    /// has: the position of a partition that is consumed in order.
    ///
    /// # Errors
    /// As [`Transaction::attach`]; `stale-generation` where the partition has moved to another member.
    pub fn attach_up_to(
        &mut self,
        settler: &Settler,
        delivery: &Delivery,
    ) -> Result<(), TransactionError> {
        self.check()?;
        let said = settler.attach_up_to(self.id, delivery);
        self.note(said)
    }

    fn note(&mut self, mut said: Settlement) -> Result<(), TransactionError> {
        match said.answered() {
            // Nothing was sent: the transaction is as it was.
            Some(Err(error)) => Err(error.into()),
            Some(Ok(())) => Ok(()),
            None => {
                self.sent = true;
                self.attaching.push(said);
                Ok(())
            }
        }
    }

    /// Waits until everything attached is durable.
    pub(super) async fn attached(&mut self) -> Result<(), TransactionError> {
        while let Some(said) = self.attaching.last_mut() {
            // Cancelled, the wait goes on with the next flush.
            let outcome = said.await;
            self.attaching.pop();
            if let Err(error) = outcome {
                return self.fail(error.into());
            }
        }
        Ok(())
    }
}

/// Waits until nothing that was said of attachments is on its way: what came behind the end of its
/// transaction would begin it anew.
pub(super) async fn settle_all(attaching: &mut Vec<Settlement>) {
    for said in attaching.drain(..) {
        let _ = said.await;
    }
}

impl From<SettleError> for TransactionError {
    fn from(error: SettleError) -> Self {
        match error {
            SettleError::Lost => Self::Refused(Refusal {
                code: Code::UnknownLease,
                message: SettleError::Lost.to_string(),
                after_ms: None,
            }),
            SettleError::NotLeased => Self::NotLeased,
            SettleError::Refused(refusal) => Self::Refused(refusal),
            SettleError::Protocol(reason) => Self::Protocol(reason),
        }
    }
}
