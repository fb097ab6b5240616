//! The credit of readers: what each may still be sent, and what a connection's readers may together.

use std::cell::Cell;

use tokio::sync::Notify;

use super::session::Session;
use crate::wire::code::{Code, Refused};
use crate::wire::reader::Credit;

/// What the session can do to a reader.
#[derive(Debug, Default)]
pub(super) struct Control {
    credit: Cell<i64>,
    closed: Cell<bool>,
    changed: Notify,
}

impl Control {
    /// Ends it.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.changed.notify_one();
    }

    /// Whether it was ended.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Waits until there is more credit, or it is ended. Cancelled, it has not waited.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What may still be sent: nothing while it is overdrawn.
    pub(super) fn balance(&self) -> u64 {
        u64::try_from(self.credit.get()).unwrap_or(0)
    }

    /// By how much a grant would raise the balance: less than itself where it settles an overdraft.
    fn raised_by(&self, bytes: u64) -> u64 {
        u64::try_from(self.with(bytes)).unwrap_or(0) - self.balance()
    }

    /// Adds to it.
    pub(super) fn grant(&self, bytes: u64) {
        self.credit.set(self.with(bytes));
        self.changed.notify_one();
    }

    fn with(&self, bytes: u64) -> i64 {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.credit.get().saturating_add(bytes)
    }

    /// Takes all that is left, and says how much that was.
    fn withdraw(&self) -> u64 {
        self.spend(self.balance())
    }

    /// Takes what is sent, and says by how much that lowers the balance: an overdraft never counted.
    pub(super) fn spend(&self, bytes: u64) -> u64 {
        let before = self.balance();
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.credit.set(self.credit.get().saturating_sub(bytes));
        before - self.balance()
    }
}

/// Adds to a reader's credit; void for one that has ended.
///
/// # Errors
/// More than a connection may have outstanding: the connection ends.
pub(super) fn add(session: &Session, credit: Credit) -> Result<(), Refused> {
    let reader = session.readers.borrow().get(&credit.reader).cloned();
    if let Some(reader) = reader {
        take_credit(session, reader.raised_by(credit.bytes))?;
        reader.grant(credit.bytes);
    }
    Ok(())
}

/// Takes of what a connection's readers may have outstanding together.
///
/// # Errors
/// More than that.
pub(super) fn take_credit(session: &Session, bytes: u64) -> Result<(), Refused> {
    let total = session.credit.get().saturating_add(bytes);
    let max = session.shared.limits.credit_bytes_max;
    if total > max {
        return Err(Refused::new(
            Code::CreditExceeded,
            format!("the credit of a connection's readers may sum up to {max} bytes"),
        ));
    }
    session.credit.set(total);
    Ok(())
}

/// Gives back what was sent.
pub(super) fn give_back(session: &Session, bytes: u64) {
    session
        .credit
        .set(session.credit.get().saturating_sub(bytes));
}

/// Gives back what a reader will not be sent any more.
pub(super) fn give_up(session: &Session, reader: &Control) {
    give_back(session, reader.withdraw());
}

/// Closes a reader; one that has ended already is none. Its credit is another's from now on: whoever closes
/// a reader opens the next in the same breath.
pub(super) fn close(session: &Session, reader: u64) {
    if let Some(control) = session.readers.borrow().get(&reader) {
        control.close();
        give_up(session, control);
    }
}

#[cfg(test)]
mod tests {
    use super::Control;

    #[test]
    fn an_overdraft_counts_neither_when_it_is_made_nor_when_it_is_settled() {
        let control = Control::default();
        let mut total = control.raised_by(100);
        control.grant(100);
        // A batch may overdraw once; the client gives back all of what it was sent.
        for sent in [60, 90, 1, 250] {
            total -= control.spend(sent);
            total += control.raised_by(sent);
            control.grant(sent);
            assert_eq!((total, control.balance()), (100, 100));
        }
        total -= control.spend(150);
        assert_eq!((total, control.balance()), (0, 0));
        total += control.raised_by(30);
        control.grant(30);
        assert_eq!((total, control.balance()), (0, 0));
    }

    #[test]
    fn a_grant_that_comes_while_a_batch_is_fetched_is_counted_once() {
        let control = Control::default();
        let mut total = control.raised_by(10);
        control.grant(10);
        total += control.raised_by(40);
        control.grant(40);
        total -= control.spend(50);
        assert_eq!((total, control.balance()), (0, 0));
    }

    #[test]
    fn what_is_withdrawn_is_given_back_once() {
        let control = Control::default();
        let mut total = control.raised_by(100);
        control.grant(100);
        total -= control.withdraw();
        // A group that was being fetched is sent all the same.
        total -= control.spend(60);
        total -= control.withdraw();
        assert_eq!((total, control.balance()), (0, 0));
    }

    #[test]
    fn no_grant_is_too_large_to_be_counted() {
        let control = Control::default();
        assert!(control.raised_by(u64::MAX) >= u64::MAX / 2);
        control.grant(u64::MAX);
        assert!(control.raised_by(u64::MAX) == 0);
    }
}
