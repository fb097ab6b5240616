//! Attaching what a member has to a transaction: on its way to the group it goes through the transaction's
//! coordinator, as batches do.
//!
//! N9 A member attaches only what is leased to it, over the connection it joined on; whose transaction it
//! is does not matter: only its coordinator says whether it still takes anything.

use std::rc::Rc;

use super::member::ranges;
use super::out::Out;
use super::session::Session;
use super::transactions::of_transaction;
use crate::actors::transaction::{Attach, Attachment};
use crate::domain::group::command::Attached;
use crate::domain::id::PartitionId;
use crate::wire::transaction;

/// What a member attaches.
pub(super) enum AttachSaid {
    /// These.
    These(transaction::Attach),
    /// All up to a place.
    UpTo(transaction::AttachUpTo),
}

/// Takes it to the transaction's coordinator; the group answers when it is durable.
pub(super) fn attach(session: &Rc<Session>, said: AttachSaid, correlation: u64, out: &Out) {
    let (consumer, id, what) = match said {
        AttachSaid::These(said) => (
            said.consumer,
            said.transaction,
            Attached::Ranges(ranges(said.ranges)),
        ),
        AttachSaid::UpTo(said) => {
            let place = PartitionId {
                topic: said.topic,
                partition: said.partition,
                lane: said.lane,
            };
            let what = Attached::UpTo {
                place,
                end: said.end,
            };
            (said.consumer, said.transaction, what)
        }
    };
    let found = match session.members.find(consumer) {
        Ok(found) => found,
        Err(refused) => return out.refuse(&refused, correlation),
    };
    let (session, out) = (Rc::clone(session), out.clone());
    actix_rt::spawn(async move {
        match of_transaction(&session, id).await {
            Ok(coordinator) => coordinator.tell(Attach {
                owner: found.owner,
                attachment: Attachment {
                    member: found.id,
                    what,
                    transaction: id,
                },
                to: found.group.clone(),
                reply: out.reply(correlation),
            }),
            Err(refused) => out.refuse(&refused, correlation),
        }
    });
}
