//! How an owner's actor comes to its state: rows, then the log behind them, then a life of its own.
//!
//! The order matters. The sequencer is told first who the owner's mailbox is; from then on everything
//! durable is put there. What is older is read from the views and, where they are behind (the actor
//! before this one failed between two checkpoints), from the log up to where the life began.

use actix::{Actor, ActorFutureExt, Context, ContextFutureSpawner, WrapFuture};
use tokio::sync::oneshot;

use super::commit::{self, Begin};
use super::store::{LoadOwner, OwnerRows};
use super::{House, OwnerLink};
use crate::domain::entry::{AppliedEntry, Author};
use crate::domain::id::{Offset, OwnerId, ProducerId, RecordNumber};
use crate::domain::partition::rows::RowId;
use crate::domain::partition::{Effect, Limits, Partition};
use crate::log::Scanned;
use crate::store::{Row, Tree, layout};

/// Loads a partition lane and begins its life.
///
/// # Errors
/// Why it cannot be loaded: a row that does not read, the log behind it damaged, an actor gone.
pub async fn partition(
    house: House,
    owner: OwnerId,
    limits: Limits,
    link: OwnerLink,
) -> Result<(Partition, Author, Vec<Effect>), String> {
    let life = begin(&house, owner, link).await?;
    let OwnerRows { rows, mark } = rows(&house, Tree::Partition, owner).await?;
    let mut machine = partition_from_rows(limits, &rows).ok_or_else(|| {
        "a row of its view does not read; restart the broker to rebuild".to_owned()
    })?;
    let mut effects = Vec::new();
    if machine.head().sequence < life.counters.sequence {
        machine.begun(&mut effects);
        let reader = house.reader.clone();
        // Reading the log blocks: not on an arbiter.
        let folded = tokio::task::spawn_blocking(move || {
            for scanned in reader.scan(mark, Some(life.end)) {
                if let Scanned::Entry {
                    header,
                    place,
                    facts,
                    body,
                } = scanned
                    && header.owner == owner
                {
                    let body = body.unwrap_or_default();
                    machine.apply(
                        &AppliedEntry {
                            header,
                            place,
                            body,
                            facts,
                        },
                        &mut effects,
                    );
                }
            }
            (machine, effects)
        });
        (machine, effects) = folded.await.map_err(|error| error.to_string())?;
        if machine.head().sequence < life.counters.sequence {
            return Err(format!(
                "the log is damaged where its last entries lie: {} of {} could be folded",
                machine.head().sequence,
                life.counters.sequence
            ));
        }
    }
    Ok((machine, life.author, effects))
}

/// Builds a partition from rows of the views.
#[must_use]
pub fn partition_from_rows(limits: Limits, rows: &[Row]) -> Option<Partition> {
    let rows = rows.iter().filter_map(|row| {
        let id = match row.kind {
            layout::HEAD => RowId::Head,
            layout::PARTITION_INDEX_RUN => RowId::Run(Offset(row.id)),
            layout::PARTITION_PRODUCER => RowId::Producer(ProducerId(row.id)),
            layout::PARTITION_CHUNK => RowId::Chunk(row.id),
            layout::PARTITION_BODIES => RowId::Bodies(RecordNumber(row.id)),
            layout::PARTITION_OPEN => RowId::Open(RecordNumber(row.id)),
            _ => return None,
        };
        Some((id, &*row.payload))
    });
    Partition::from_rows(limits, rows)
}

async fn begin(house: &House, owner: OwnerId, link: OwnerLink) -> Result<commit::Life, String> {
    let (reply, life) = oneshot::channel();
    house.commit.tell(Begin { owner, link, reply });
    life.await
        .map_err(|_| "the commit actor is gone".to_owned())
}

async fn rows(house: &House, tree: Tree, owner: OwnerId) -> Result<OwnerRows, String> {
    let (reply, rows) = oneshot::channel();
    house.store.tell(LoadOwner { tree, owner, reply });
    rows.await
        .map_err(|_| "the store actor is gone".to_owned())?
}

/// An owner's shell that can begin another life without losing its applied state.
pub trait Begins: Actor<Context = Context<Self>> {
    /// Who.
    fn owner(&self) -> OwnerId;
    /// Where.
    fn house(&self) -> &House;
    /// Its mailbox.
    fn owner_link(&self, ctx: &Context<Self>) -> OwnerLink;
    /// The life it speaks in from now on; none while it has none.
    fn begun(&mut self, author: Option<Author>);
}

/// After a refusal of the log: the machine is back at its applied state, which is up to date, because
/// whatever was durable came through the mailbox before the refusal. It only needs another incarnation.
pub fn begin_again<A: Begins>(actor: &mut A, ctx: &mut Context<A>) {
    actor.begun(None);
    let (house, owner, link) = (actor.house().clone(), actor.owner(), actor.owner_link(ctx));
    async move { begin(&house, owner, link).await }
        .into_actor(actor)
        .map(|life, actor, _| actor.begun(life.ok().map(|life| life.author)))
        .wait(ctx);
}
