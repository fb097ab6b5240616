//! The store actor: the one thread that calls the views.
//!
//! A failed write or sync leaves the views useless: they are not written again, the mark stays where it
//! is, and the next start folds the log behind it, or all of it. The log goes on undisturbed, and index
//! runs that partitions hand over and let go of are kept here, up to `UNWRITTEN_BYTES_MAX`.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::{Actor, Context, Handler};
use bytes::Bytes;
use tokio::sync::oneshot;

use super::Link;
use super::checkpoint::{CheckpointActor, Marked};
use super::partition::{BodiesLoaded, PartitionActor, RunLoaded};
use super::stats::ActorStats;
use super::vigil::Watched;
use super::wheel::LevelLink;
use crate::domain::id::{LogPosition, Offset, OwnerId, RecordNumber};
use crate::domain::partition::index::BatchPlace;
use crate::domain::partition::rows::decode_run;
use crate::domain::rejection::Rejection;
use crate::store::{Row, RowChange, RowKey, Tree, Views, ViewsError, layout};

tells!(
    LoadOwner, LoadRun, LoadBodies, Write, FindHomes, LoadHomes, WriteHomes, WriteMark
);

/// The views' owner.
#[derive(Debug)]
pub struct StoreActor {
    views: Views,
    /// How far the views hold the log.
    mark: LogPosition,
    failed: Option<String>,
    /// Index runs handed over since the views failed: their owners let go of them.
    unwritten: Unwritten,
    stats: Arc<ActorStats>,
    crash: super::CrashPoints,
    _watched: Option<Watched>,
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
            unwritten: Unwritten::default(),
            stats,
            crash,
            _watched: None,
        }
    }

    /// Says when it is gone.
    #[must_use]
    pub fn watched(mut self, watched: Watched) -> Self {
        self._watched = Some(watched);
        self
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

impl StoreActor {
    fn write(&mut self, changes: &[RowChange]) {
        if changes.is_empty() {
            return;
        }
        if self.failed.is_none() {
            match self.views.write(changes) {
                Ok(()) => return,
                Err(error) => self.fail("writing", &error),
            }
        }
        self.unwritten.keep(changes);
    }

    /// An index run: as it was handed over last, whether the views took it or not.
    fn run(&self, owner: OwnerId, first: Offset) -> Result<Vec<BatchPlace>, Rejection> {
        let key = RowKey {
            owner,
            kind: layout::PARTITION_INDEX_RUN,
            id: first.0,
        };
        if let Some(value) = self.unwritten.rows.get(&key) {
            return Ok(decode_run(value).unwrap_or_default());
        }
        let rebuild = |why: String| {
            Rejection::Damaged(format!(
                "the view of this partition ({why}); restart the broker to rebuild it"
            ))
        };
        match (self.views.row(Tree::Partition, key), &self.failed) {
            (Ok(Some(row)), _) => Ok(decode_run(&row.payload).unwrap_or_default()),
            (Ok(None), Some(why)) => Err(rebuild(why.clone())),
            (Ok(None), None) => Ok(Vec::new()),
            (Err(error), _) => Err(rebuild(error.to_string())),
        }
    }
}

/// What unwritten index runs may take of memory, in bytes: some 1 500 of them, 800 000 batches.
const UNWRITTEN_BYTES_MAX: usize = 16 << 20;

/// Index runs the views did not take, so that what their owners let go of can still be read.
#[derive(Debug, Default)]
struct Unwritten {
    rows: BTreeMap<RowKey, Bytes>,
    bytes: usize,
    is_full: bool,
}

impl Unwritten {
    fn keep(&mut self, changes: &[RowChange]) {
        for change in changes {
            if change.key.kind == layout::HEAD && change.value.is_none() {
                self.rows.retain(|key, _| key.owner != change.key.owner);
                self.bytes = self.rows.values().map(Bytes::len).sum();
            }
        }
        let runs = changes.iter().filter(|change| {
            change.tree == Tree::Partition && change.key.kind == layout::PARTITION_INDEX_RUN
        });
        for change in runs {
            if let Some(old) = self.rows.remove(&change.key) {
                self.bytes = self.bytes.saturating_sub(old.len());
            }
            let Some((_, value)) = &change.value else {
                continue;
            };
            if self.bytes + value.len() > UNWRITTEN_BYTES_MAX {
                if !self.is_full {
                    tracing::error!(
                        target: "waterwheel::store",
                        "no room for more of what the views do not take: of newer records only the last \
                         can be read; restart the broker to rebuild the views"
                    );
                }
                self.is_full = true;
                continue;
            }
            self.bytes += value.len();
            self.rows.insert(change.key, value.clone());
        }
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

impl Handler<LoadRun> for StoreActor {
    type Result = ();

    fn handle(&mut self, message: LoadRun, _: &mut Self::Context) {
        self.stats.handled();
        let run = self.run(message.owner, message.first);
        message.reply.tell(RunLoaded {
            first: message.first,
            run,
        });
    }
}

/// Read a row of a partition's stored bodies.
#[derive(Debug)]
pub struct LoadBodies {
    /// The partition.
    pub owner: OwnerId,
    /// The row.
    pub first: RecordNumber,
    /// Where it goes.
    pub reply: Link<PartitionActor>,
}

impl Handler<LoadBodies> for StoreActor {
    type Result = ();

    fn handle(&mut self, message: LoadBodies, _: &mut Self::Context) {
        self.stats.handled();
        let key = RowKey {
            owner: message.owner,
            kind: layout::PARTITION_BODIES,
            id: message.first.0,
        };
        let row = match self.views.row(Tree::Partition, key) {
            Ok(row) => Ok(row.map(|row| row.payload.to_vec()).unwrap_or_default()),
            Err(error) => Err(Rejection::Damaged(format!(
                "the view of this partition ({error}); restart the broker to rebuild it"
            ))),
        };
        message.reply.tell(BodiesLoaded {
            first: message.first,
            row,
        });
    }
}

/// Write rows of one owner.
#[derive(Debug)]
pub struct Write(pub Vec<RowChange>);

impl Handler<Write> for StoreActor {
    type Result = ();

    fn handle(&mut self, message: Write, _: &mut Self::Context) {
        self.stats.handled();
        self.write(&message.0);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::CrashPoints;
    use crate::actors::stats::Registry;
    use crate::domain::id::{ClusterId, OwnerSequence, RecordNumber};
    use crate::domain::partition::rows::encode;
    use crate::domain::time::WallMs;

    const OWNER: OwnerId = OwnerId(1024);

    fn run(first: u64) -> Vec<BatchPlace> {
        vec![BatchPlace {
            first_offset: Offset(first),
            count: 1,
            first_number: RecordNumber(first),
            position: LogPosition(first),
            length: 1,
            appended: WallMs(0),
            tags: 0,
            reference: None,
        }]
    }

    fn change(first: u64, value: Option<Bytes>) -> RowChange {
        RowChange {
            tree: Tree::Partition,
            key: RowKey {
                owner: OWNER,
                kind: layout::PARTITION_INDEX_RUN,
                id: first,
            },
            value: value.map(|value| (OwnerSequence(1), value)),
        }
    }

    fn actor(dir: &std::path::Path) -> StoreActor {
        let views = Views::open(dir, 1 << 20, ClusterId([7; 16])).unwrap().views;
        let stats = Registry::default().enter("store", OwnerId(0), "store".to_owned(), 16);
        StoreActor::new(views, LogPosition(0), stats, CrashPoints::default())
    }

    #[test]
    fn what_the_views_do_not_take_can_be_read_until_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut actor = actor(dir.path());
        let head = |value| RowChange {
            key: RowKey::head(OWNER),
            ..change(0, value)
        };
        actor.write(&[
            change(0, Some(encode(&run(0)))),
            change(1, Some(encode(&run(1)))),
            head(Some(Bytes::from_static(b"head"))),
        ]);
        assert_eq!(actor.run(OWNER, Offset(0)), Ok(run(0)));
        assert_eq!(actor.run(OWNER, Offset(9)), Ok(Vec::new()));
        actor.fail("writing", &ViewsError::Panicked("no disk".to_owned()));
        // A run that grew, one that is new, and one that retention took.
        actor.write(&[
            change(1, Some(encode(&run(11)))),
            change(2, Some(encode(&run(2)))),
        ]);
        assert_eq!(actor.run(OWNER, Offset(0)), Ok(run(0)));
        assert_eq!(actor.run(OWNER, Offset(1)), Ok(run(11)));
        assert_eq!(actor.run(OWNER, Offset(2)), Ok(run(2)));
        let missing = actor.run(OWNER, Offset(3)).unwrap_err().to_string();
        assert!(missing.contains("restart the broker"), "{missing}");
        actor.write(&[change(2, None)]);
        assert!(actor.run(OWNER, Offset(2)).is_err());
        // Bounded, and what was kept stays.
        let large = Bytes::from(vec![0; UNWRITTEN_BYTES_MAX]);
        actor.write(&[change(3, Some(large))]);
        assert!(actor.run(OWNER, Offset(3)).is_err());
        assert_eq!(actor.run(OWNER, Offset(1)), Ok(run(11)));
        assert!(actor.unwritten.bytes < UNWRITTEN_BYTES_MAX && actor.unwritten.is_full);
        actor.write(&[head(None)]);
        assert_eq!((actor.unwritten.rows.len(), actor.unwritten.bytes), (0, 0));
    }
}
