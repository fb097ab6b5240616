//! The store actor: the one thread that calls the views.
//!
//! A failed write or sync leaves the views useless: they are not written again, the mark stays where it
//! is, and the next start folds the log behind it, or all of it. The log goes on undisturbed.

use actix::{Actor, Context, Handler, Message};
use std::sync::Arc;
use tokio::sync::oneshot;

use super::Link;
use super::checkpoint::{CheckpointActor, Marked};
use super::partition::{PartitionActor, RunLoaded};
use super::stats::ActorStats;
use super::wheel::LevelLink;
use crate::domain::id::{LogPosition, Offset, OwnerId};
use crate::domain::partition::rows::decode_run;
use crate::domain::rejection::Rejection;
use crate::store::{Row, RowChange, RowKey, Tree, Views, ViewsError, layout};

/// The views' owner.
#[derive(Debug)]
pub struct StoreActor {
    views: Views,
    /// How far the views hold the log.
    mark: LogPosition,
    failed: Option<String>,
    stats: Arc<ActorStats>,
    crash: super::CrashPoints,
}

impl StoreActor {
    /// Serves views that have been opened and hold the log before `mark`.
    #[must_use]
    pub fn new(
        views: Views,
        mark: LogPosition,
        stats: Arc<ActorStats>,
        crash: super::CrashPoints,
    ) -> Self {
        Self {
            views,
            mark,
            failed: None,
            stats,
            crash,
        }
    }

    fn fail(&mut self, what: &str, error: &ViewsError) {
        tracing::error!(
            target: "waterwheel::store",
            %error,
            "{what} the views failed: they are not written any more; the log goes on, and a restart rebuilds them"
        );
        self.failed.get_or_insert_with(|| error.to_string());
    }
}

impl Actor for StoreActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.stats.capacity);
    }
}

/// An owner's rows and the position from which the log has to be folded behind them.
#[derive(Debug)]
pub struct OwnerRows {
    /// The rows, the head first.
    pub rows: Vec<Row>,
    /// The mark.
    pub mark: LogPosition,
}

/// Read an owner's rows.
#[derive(Debug)]
pub struct LoadOwner {
    /// The kind of owner.
    pub tree: Tree,
    /// The owner.
    pub owner: OwnerId,
    /// Where they go; an error is text.
    pub reply: oneshot::Sender<Result<OwnerRows, String>>,
}

impl Message for LoadOwner {
    type Result = ();
}

impl Handler<LoadOwner> for StoreActor {
    type Result = ();

    fn handle(&mut self, message: LoadOwner, _: &mut Self::Context) {
        self.stats.handled();
        let rows = self.views.rows(message.tree, message.owner);
        let mark = self.mark;
        let answer = rows
            .map(|rows| OwnerRows { rows, mark })
            .map_err(|error| error.to_string());
        let _ = message.reply.send(answer);
    }
}

/// Read one index run of a partition.
#[derive(Debug)]
pub struct LoadRun {
    /// The partition.
    pub owner: OwnerId,
    /// The run.
    pub first: Offset,
    /// Where it goes.
    pub reply: Link<PartitionActor>,
}

impl Message for LoadRun {
    type Result = ();
}

impl Handler<LoadRun> for StoreActor {
    type Result = ();

    fn handle(&mut self, message: LoadRun, _: &mut Self::Context) {
        self.stats.handled();
        let key = RowKey {
            owner: message.owner,
            kind: layout::PARTITION_INDEX_RUN,
            id: message.first.0,
        };
        let run = match self.views.row(Tree::Partition, key) {
            Ok(row) => Ok(row
                .and_then(|row| decode_run(&row.payload))
                .unwrap_or_default()),
            Err(error) => Err(Rejection::Damaged(format!(
                "the view of this partition ({error}); restart the broker to rebuild it"
            ))),
        };
        message.reply.tell(RunLoaded {
            first: message.first,
            run,
        });
    }
}

/// Write rows of one owner.
#[derive(Debug)]
pub struct Write(pub Vec<RowChange>);

impl Message for Write {
    type Result = ();
}

impl Handler<Write> for StoreActor {
    type Result = ();

    fn handle(&mut self, message: Write, _: &mut Self::Context) {
        self.stats.handled();
        if self.failed.is_some() || message.0.is_empty() {
            return;
        }
        if let Err(error) = self.views.write(&message.0) {
            self.fail("writing", &error);
        }
        self.crash.pass("mid-checkpoint");
    }
}

/// Which homes a level of the timing wheel has.
#[derive(Debug)]
pub struct FindHomes {
    /// The level's.
    pub owner: OwnerId,
    /// The row ids and the mark; an error is text.
    pub reply: oneshot::Sender<Result<(Vec<u64>, LogPosition), String>>,
}

impl Message for FindHomes {
    type Result = ();
}

impl Handler<FindHomes> for StoreActor {
    type Result = ();

    fn handle(&mut self, message: FindHomes, _: &mut Self::Context) {
        self.stats.handled();
        let ids = self
            .views
            .row_ids(Tree::Wheel, message.owner, layout::WHEEL_HOME);
        let mark = self.mark;
        let answer = ids
            .map(|ids| (ids, mark))
            .map_err(|error| error.to_string());
        let _ = message.reply.send(answer);
    }
}

/// Read homes of a level of the timing wheel.
#[derive(Debug)]
pub struct LoadHomes {
    /// The level's.
    pub owner: OwnerId,
    /// Which.
    pub ids: Vec<u64>,
    /// Where they go.
    pub reply: LevelLink,
}

impl Message for LoadHomes {
    type Result = ();
}

impl Handler<LoadHomes> for StoreActor {
    type Result = ();

    fn handle(&mut self, message: LoadHomes, _: &mut Self::Context) {
        self.stats.handled();
        let owner = message.owner;
        let read = message.ids.into_iter().map(|id| {
            let key = RowKey {
                owner,
                kind: layout::WHEEL_HOME,
                id,
            };
            match self.views.row(Tree::Wheel, key) {
                Ok(row) => (id, row.map(|row| row.payload)),
                Err(error) => {
                    tracing::error!(target: "waterwheel::store", %error, "a home of timers does not read");
                    (id, None)
                }
            }
        });
        message.reply.loaded(read.collect());
    }
}

/// Write homes of a level of the timing wheel.
#[derive(Debug)]
pub struct WriteHomes {
    /// The rows.
    pub changes: Vec<RowChange>,
    /// Who may forget what is written.
    pub reply: LevelLink,
}

impl Message for WriteHomes {
    type Result = ();
}

impl Handler<WriteHomes> for StoreActor {
    type Result = ();

    fn handle(&mut self, message: WriteHomes, _: &mut Self::Context) {
        self.stats.handled();
        if self.failed.is_none()
            && !message.changes.is_empty()
            && let Err(error) = self.views.write(&message.changes)
        {
            self.fail("writing", &error);
        }
        self.crash.pass("mid-homes");
        message.reply.homed(self.failed.is_none());
    }
}

/// Everything before this position has been handed over: sync, and say so.
#[derive(Debug)]
pub struct WriteMark {
    /// The round.
    pub round: u64,
    /// The position.
    pub position: LogPosition,
    /// Nothing follows: an orderly stop.
    pub clean: bool,
    /// Who hears of it.
    pub reply: Link<CheckpointActor>,
}

impl Message for WriteMark {
    type Result = ();
}

impl Handler<WriteMark> for StoreActor {
    type Result = ();

    fn handle(&mut self, message: WriteMark, _: &mut Self::Context) {
        self.stats.handled();
        let mut marked = None;
        if self.failed.is_none() {
            match self.views.sync().and_then(|()| {
                self.crash.pass("before-mark");
                self.views.mark(message.position, message.clean)
            }) {
                Ok(mark) => {
                    self.mark = mark.position;
                    marked = Some(mark.position);
                }
                Err(error) => self.fail("syncing", &error),
            }
        }
        message.reply.tell(Marked {
            round: message.round,
            position: marked,
        });
    }
}
