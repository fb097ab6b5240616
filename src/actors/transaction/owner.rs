//! What a coordinator owes the log and the views, as every owner does: it folds what is applied, goes back
//! when it is fenced, hands over its rows, and states its state anew before old segments are recycled.

use actix::Handler;

use super::{CoordinatorActor, Resume};
use crate::actors::{Applied, Fenced, Restate, WriteRows, load};
use crate::domain::id::OwnerId;
use crate::domain::rejection::Rejection;
use crate::domain::transaction::Coordinator;
use crate::domain::transaction::rows::RowId;
use crate::store::{RowChange, RowKey, Tree, layout};

impl Handler<Applied> for CoordinatorActor {
    type Result = ();

    fn handle(&mut self, message: Applied, ctx: &mut Self::Context) {
        self.stats.handled();
        let mut effects = Vec::new();
        for entry in &message.0 {
            self.machine.apply(entry, &mut effects);
        }
        self.machine.applied_all(&mut effects);
        self.perform(effects, ctx);
    }
}

impl Handler<Fenced> for CoordinatorActor {
    type Result = ();

    fn handle(&mut self, message: Fenced, ctx: &mut Self::Context) {
        self.stats.handled();
        if !message.ends(self.author) {
            return;
        }
        let mut effects = Vec::new();
        self.machine.reset(&message.rejection, &mut effects);
        self.perform(effects, ctx);
        if message.rejection == Rejection::LogSealed {
            return;
        }
        load::begin_again(self, ctx);
        // Taken from the mailbox only once the next life has begun.
        self.link(ctx).tell(Resume);
    }
}

impl Handler<Resume> for CoordinatorActor {
    type Result = ();

    fn handle(&mut self, _: Resume, ctx: &mut Self::Context) {
        self.stats.handled();
        self.resume(ctx);
    }
}

impl Handler<WriteRows> for CoordinatorActor {
    type Result = ();

    fn handle(&mut self, message: WriteRows, _: &mut Self::Context) {
        self.stats.handled();
        let changes = row_changes(self.owner, &mut self.machine);
        self.stats.rows(self.machine.row_count());
        self.house.hand_over(message.round, self.owner, changes);
    }
}

impl Handler<Restate> for CoordinatorActor {
    type Result = ();

    fn handle(&mut self, _: Restate, ctx: &mut Self::Context) {
        self.stats.handled();
        let mut effects = Vec::new();
        self.machine.restate(&mut effects);
        self.perform(effects, ctx);
    }
}

/// A coordinator's changed rows as the views take them.
pub fn row_changes(owner: OwnerId, machine: &mut Coordinator) -> Vec<RowChange> {
    let (folded, changes) = machine.take_rows();
    changes
        .into_iter()
        .map(|change| RowChange {
            tree: Tree::Transaction,
            key: row_key(owner, change.id),
            value: change.value.map(|value| (folded, value)),
        })
        .collect()
}

fn row_key(owner: OwnerId, id: RowId) -> RowKey {
    let (kind, id) = match id {
        RowId::Head => (layout::HEAD, 0),
        RowId::Session(id) => (layout::TRANSACTION_SESSION, id.0),
        RowId::Open(born) => (layout::TRANSACTION_OPEN, born.0),
        RowId::Finished(at) => (layout::TRANSACTION_FINISHED, at.0),
    };
    RowKey { owner, kind, id }
}
