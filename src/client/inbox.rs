//! Each effect once, at the consumer: message ids noted in the consumer's own database, in the transaction
//! that holds the effect.
//!
//! The broker delivers at least once: a consumer that is killed between its commit and its acknowledgement is
//! given the record again. It has the same message id then, as it has after retries, among the dead letters
//! and when it is redriven. Whoever notes the id beside the effect, both or neither, can tell.
//!
//! Invariants: B1, an effect runs only behind a note that is new; B2, where the note fails, nothing ran.

use super::delivery::Delivery;
use crate::domain::id::MessageId;

/// A consumer's record of what it has consumed, in an open transaction of its own database.
///
/// One statement does it. With SQLite, over a table
/// `CREATE TABLE inbox (consumer TEXT, id BLOB, PRIMARY KEY (consumer, id)) WITHOUT ROWID`:
/// `INSERT OR IGNORE INTO inbox VALUES (?1, ?2)`, and the id is new if a row was changed. Other databases say
/// `ON CONFLICT DO NOTHING`. `examples/exactly_once.rs` is a whole program.
///
/// A message may come again for as long as its topic keeps it: that is how long a note is needed.
///
/// ```
/// use waterwheel::client::{Inbox, MessageId};
///
/// struct Sales<'t>(rusqlite::Transaction<'t>);
///
/// impl Inbox for Sales<'_> {
///     type Error = rusqlite::Error;
///
///     fn note(&mut self, consumer: &str, id: MessageId) -> Result<bool, rusqlite::Error> {
///         let sql = "INSERT OR IGNORE INTO inbox (consumer, id) VALUES (?1, ?2)";
///         Ok(self.0.execute(sql, rusqlite::params![consumer, id.0])? == 1)
///     }
/// }
///
/// let mut database = rusqlite::Connection::open_in_memory()?;
/// database.execute_batch("CREATE TABLE inbox (consumer TEXT, id BLOB, PRIMARY KEY (consumer, id))")?;
/// let mut sales = Sales(database.transaction()?);
/// assert!(sales.note("sales", MessageId([1; 16]))?);
/// assert!(!sales.note("sales", MessageId([1; 16]))?);
/// # Ok::<(), rusqlite::Error>(())
/// ```
pub trait Inbox {
    /// What the database reports.
    type Error;

    /// Notes that `consumer` has consumed the message, in the transaction that is open; whether that is new.
    ///
    /// Two transactions that note the same at a time must not both be told that it is: a unique key sees to
    /// that.
    ///
    /// # Errors
    /// What the database reports; then the transaction is to be given up.
    fn note(&mut self, consumer: &str, id: MessageId) -> Result<bool, Self::Error>;
}

/// What became of a delivery that was to have its effect once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect<T> {
    /// It was new: what the effect came to. It counts once the transaction is committed.
    Applied(T),
    /// It had its effect before: there is nothing to do but to acknowledge it.
    Repeated,
}

impl<T> Effect<T> {
    /// What the effect came to, if it ran now.
    pub fn applied(self) -> Option<T> {
        match self {
            Self::Applied(value) => Some(value),
            Self::Repeated => None,
        }
    }
}

impl Delivery {
    /// Runs `effect` unless this message had it before, as `inbox` remembers; `consumer` tells groups apart
    /// that share a database. Commit the transaction, then acknowledge the delivery, in either case.
    ///
    /// Two deliveries whose senders gave them the same id count as one message.
    ///
    /// # Errors
    /// What the inbox or the effect reports. Give the transaction up and refuse the delivery: it comes again.
    ///
    /// # Examples
    /// ```
    /// use waterwheel::client::{Delivery, Effect, Inbox, MessageId};
    ///
    /// /// What a transaction on a real database would be.
    /// struct Transaction { noted: Vec<(String, MessageId)>, stock: i64 }
    ///
    /// impl Inbox for Transaction {
    ///     type Error = std::convert::Infallible;
    ///     fn note(&mut self, consumer: &str, id: MessageId) -> Result<bool, Self::Error> {
    ///         let note = (consumer.to_owned(), id);
    ///         let is_new = !self.noted.contains(&note);
    ///         if is_new {
    ///             self.noted.push(note);
    ///         }
    ///         Ok(is_new)
    ///     }
    /// }
    ///
    /// fn sell(transaction: &mut Transaction, sold: &Delivery) -> Result<bool, std::convert::Infallible> {
    ///     let done = sold.apply_once("stock", transaction, |transaction| {
    ///         transaction.stock -= 1;
    ///         Ok(())
    ///     })?;
    ///     Ok(done == Effect::Applied(()))
    /// }
    /// ```
    pub fn apply_once<I: Inbox, T>(
        &self,
        consumer: &str,
        inbox: &mut I,
        effect: impl FnOnce(&mut I) -> Result<T, I::Error>,
    ) -> Result<Effect<T>, I::Error> {
        once(self.id, consumer, inbox, effect)
    }
}

fn once<I: Inbox, T>(
    id: MessageId,
    consumer: &str,
    inbox: &mut I,
    effect: impl FnOnce(&mut I) -> Result<T, I::Error>,
) -> Result<Effect<T>, I::Error> {
    if inbox.note(consumer, id)? {
        effect(inbox).map(Effect::Applied)
    } else {
        Ok(Effect::Repeated)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// A database with transactions: what is not committed is gone.
    #[derive(Clone, Default, PartialEq, Debug)]
    struct Database {
        noted: BTreeSet<(String, MessageId)>,
        sums: BTreeMap<String, u64>,
    }

    struct Transaction {
        database: Database,
        fails: bool,
    }

    impl Inbox for Transaction {
        type Error = &'static str;

        fn note(&mut self, consumer: &str, id: MessageId) -> Result<bool, Self::Error> {
            if self.fails {
                return Err("the database is gone");
            }
            Ok(self.database.noted.insert((consumer.to_owned(), id)))
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum End {
        Commits,
        IsCutOff,
        EffectFails,
        NoteFails,
    }

    proptest! {
        #[test]
        fn every_effect_counts_once_however_often_it_is_delivered_and_cut_off(
            deliveries in prop::collection::vec((0u8..12, 0usize..2, 0u8..4), 0..80),
        ) {
            let mut database = Database::default();
            let mut committed: BTreeSet<(usize, u8)> = BTreeSet::new();
            for (number, consumer, end) in deliveries {
                let end = [End::Commits, End::IsCutOff, End::EffectFails, End::NoteFails]
                    [usize::from(end)];
                let name = ["stock", "mail"][consumer];
                let mut transaction = Transaction {
                    database: database.clone(),
                    fails: matches!(end, End::NoteFails),
                };
                let mut ran = false;
                let done = once(MessageId([number; 16]), name, &mut transaction, |transaction| {
                    ran = true;
                    *transaction.database.sums.entry(name.to_owned()).or_default() += 1;
                    match end {
                        End::EffectFails => Err("no"),
                        End::Commits | End::IsCutOff | End::NoteFails => Ok(()),
                    }
                });
                let is_new = !committed.contains(&(consumer, number));
                prop_assert_eq!(ran, is_new && !matches!(end, End::NoteFails), "B1, B2");
                prop_assert_eq!(done.is_err(), matches!(end, End::NoteFails)
                    || is_new && matches!(end, End::EffectFails));
                if let (Ok(done), End::Commits) = (done, end) {
                    prop_assert_eq!(done.applied().is_some(), is_new);
                    database = transaction.database;
                    committed.insert((consumer, number));
                }
            }
            for (at, name) in ["stock", "mail"].into_iter().enumerate() {
                let counted = committed.iter().filter(|(consumer, _)| *consumer == at).count() as u64;
                prop_assert_eq!(database.sums.get(name).copied().unwrap_or(0), counted);
            }
        }
    }
}
