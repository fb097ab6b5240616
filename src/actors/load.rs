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
use crate::domain::group::command::CursorNumber;
use crate::domain::group::{self, Group};
use crate::domain::id::{
    LogPosition, Offset, OwnerId, OwnerSequence, ProducerId, RecordNumber, TopicId,
};
use crate::domain::partition::rows::RowId;
use crate::domain::partition::{Effect, Limits, Partition};
use crate::domain::time::{MonotonicMs, Now};
use crate::domain::transaction::{self, Coordinator};
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
    let machine = partition_from_rows(limits, &rows).ok_or_else(|| {
        "a row of its view does not read; restart the broker to rebuild".to_owned()
    })?;
    let mut state = (machine, Vec::new());
    if state.0.head().sequence < life.counters.sequence {
        let (machine, effects) = &mut state;
        machine.begun(effects);
    }
    let folds = Folds {
        sequence: |(machine, _): &(Partition, Vec<Effect>)| machine.head().sequence,
        apply: |(machine, effects), entry| machine.apply(entry, effects),
    };
    let (machine, effects) = fold_behind(&house, owner, mark, life, state, folds).await?;
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

/// Loads a coordinator and begins its life.
///
/// # Errors
/// Why it cannot be loaded: a row that does not read, the log behind it damaged, an actor gone.
pub async fn coordinator(
    house: House,
    shard: u8,
    limits: transaction::Limits,
    link: OwnerLink,
) -> Result<(Coordinator, Author), String> {
    let owner = transaction::shard_owner(shard);
    let life = begin(&house, owner, link).await?;
    let OwnerRows { rows, mark } = rows(&house, Tree::Transaction, owner).await?;
    let machine = coordinator_from_rows(shard, limits, &rows).ok_or_else(|| {
        "a row of its view does not read; restart the broker to rebuild".to_owned()
    })?;
    let folded = fold_behind(
        &house,
        owner,
        mark,
        life,
        machine,
        Folds {
            sequence: |machine| machine.head().sequence,
            apply: |machine, entry| machine.apply(entry, &mut Vec::new()),
        },
    );
    Ok((folded.await?, life.author))
}

/// Builds a coordinator from rows of the views.
#[must_use]
pub fn coordinator_from_rows(
    shard: u8,
    limits: transaction::Limits,
    rows: &[Row],
) -> Option<Coordinator> {
    use transaction::rows::RowId;
    let mut machine = Coordinator::new(shard, limits);
    for row in rows {
        let id = match row.kind {
            layout::HEAD => RowId::Head,
            layout::TRANSACTION_SESSION => RowId::Session(ProducerId(row.id)),
            layout::TRANSACTION_OPEN => RowId::Open(OwnerSequence(row.id)),
            layout::TRANSACTION_FINISHED => RowId::Finished(OwnerSequence(row.id)),
            _ => continue,
        };
        if !machine.restore(id, &row.payload) {
            return None;
        }
    }
    Some(machine)
}

/// How a machine folds.
struct Folds<M> {
    /// What it has folded.
    sequence: fn(&M) -> OwnerSequence,
    /// Takes in an entry.
    apply: fn(&mut M, &AppliedEntry),
}

/// Folds what the log holds of an owner behind its rows, up to where its life began.
async fn fold_behind<M: Send + 'static>(
    house: &House,
    owner: OwnerId,
    mark: LogPosition,
    life: commit::Life,
    mut machine: M,
    folds: Folds<M>,
) -> Result<M, String> {
    if (folds.sequence)(&machine) >= life.counters.sequence {
        return Ok(machine);
    }
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
                let entry = AppliedEntry {
                    header,
                    place,
                    body: body.unwrap_or_default(),
                    facts,
                };
                (folds.apply)(&mut machine, &entry);
            }
        }
        (machine, folds)
    });
    let (machine, folds) = folded.await.map_err(|error| error.to_string())?;
    let reached = (folds.sequence)(&machine);
    if reached < life.counters.sequence {
        return Err(format!(
            "the log is damaged where its last entries lie: {reached} of {} could be folded",
            life.counters.sequence
        ));
    }
    Ok(machine)
}

/// Loads a consumer group and begins its life.
///
/// # Errors
/// As [`partition`].
pub async fn group(
    house: House,
    owner: OwnerId,
    limits: group::Limits,
    link: OwnerLink,
) -> Result<(Group, Author), String> {
    let life = begin(&house, owner, link).await?;
    let OwnerRows { rows, mark } = rows(&house, Tree::Group, owner).await?;
    let lives = lives(house.clock.now());
    let machine = group_from_rows(owner, limits, lives, &rows).ok_or_else(|| {
        "a row of its view does not read; restart the broker to rebuild".to_owned()
    })?;
    let folds = Folds {
        sequence: |machine: &Group| machine.head().sequence,
        apply: fold_group,
    };
    let machine = fold_behind(&house, owner, mark, life, machine, folds).await?;
    Ok((machine, life.author))
}

/// Takes an entry into a group nobody is served by yet.
pub fn fold_group(machine: &mut Group, entry: &AppliedEntry) {
    let now = Now {
        wall: entry.header.wall,
        monotonic: MonotonicMs(0),
    };
    machine.apply(now, entry, &mut Vec::new());
}

/// Higher in every life of a group: milliseconds of the wall clock since 2020.
#[must_use]
pub fn lives(now: Now) -> u64 {
    const SINCE: i64 = 1_577_836_800_000;
    u64::try_from(now.wall.0.saturating_sub(SINCE)).unwrap_or(0)
}

/// Builds a group from rows of the views.
#[must_use]
pub fn group_from_rows(
    owner: OwnerId,
    limits: group::Limits,
    lives: u64,
    rows: &[Row],
) -> Option<Group> {
    let rows = rows.iter().filter_map(|row| {
        let id = match row.kind {
            layout::HEAD => group::rows::RowId::Head,
            layout::GROUP_SUBSCRIPTION => group::rows::RowId::Subscription(TopicId(row.id)),
            layout::GROUP_CURSOR => group::rows::RowId::Cursor(CursorNumber(row.id)),
            layout::GROUP_LIST => group::rows::RowId::List(row.id),
            _ => return None,
        };
        Some((id, &*row.payload))
    });
    Group::from_rows(owner, limits, lives, rows)
}

/// Begins another life of an owner whose machine is as it should be.
///
/// # Errors
/// The commit actor is gone.
pub async fn begin_life(
    house: House,
    owner: OwnerId,
    link: OwnerLink,
) -> Result<commit::Life, String> {
    begin(&house, owner, link).await
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
