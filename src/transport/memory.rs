//! A connection within the process: pipes, and a queue of new streams in each direction.
//!
//! Both sides look the same. A side that is dropped closes the connection, as does [`Side::close`];
//! either way every pipe ends, so nobody waits for a side that is gone.
//!
//! - M4 At most [`STREAMS_MAX`] streams that one side opened in one way are open at a time; who opens
//!   one more waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use super::Ended;
use super::pipe::{Pipe, Reader, Writer, pipe};

/// Streams of one kind that either side may have open.
const STREAMS_MAX: usize = 1024;

/// Entries of the list of pipes before the dead ones are looked for.
const PIPES_MIN: usize = 64;

/// One end of a stream; holds the stream's place among those that may be open.
#[derive(Debug)]
pub(super) struct Held<T> {
    pub(super) end: T,
    _place: Option<Arc<OwnedSemaphorePermit>>,
}

impl<T> Held<T> {
    fn new(end: T, place: Option<Arc<OwnedSemaphorePermit>>) -> Self {
        Self { end, _place: place }
    }
}

type TwoWay = (Held<Writer>, Held<Reader>);
type OneWay = Held<Reader>;

/// What both sides share.
#[derive(Debug)]
struct Middle {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// How it ended, as each side sees it.
    ended: Option<[Ended; 2]>,
    /// Whatever is to be told of the end, at least.
    pipes: Vec<Weak<Pipe>>,
    prune_at: usize,
}

impl Middle {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it, unless it has ended; `by` is the side that did.
    fn end(&self, by: usize, code: u32, reason: &str) {
        let peer = Ended::ByPeer {
            code: u64::from(code),
            reason: reason.to_owned(),
        };
        let ended = match by {
            0 => [Ended::Here, peer.clone()],
            _ => [peer.clone(), Ended::Here],
        };
        let mut state = self.state();
        if state.ended.is_some() {
            return;
        }
        state.ended = Some(ended);
        let pipes = std::mem::take(&mut state.pipes);
        drop(state);
        for pipe in pipes.iter().filter_map(Weak::upgrade) {
            pipe.end(&peer);
        }
        self.changed.notify_waiters();
    }

    fn enter(&self, pipes: impl IntoIterator<Item = Arc<Pipe>>) {
        let mut state = self.state();
        if state.pipes.len() >= state.prune_at {
            state.pipes.retain(|pipe| pipe.strong_count() > 0);
            state.prune_at = PIPES_MIN.max(state.pipes.len() * 2);
        }
        for pipe in pipes {
            match &state.ended {
                // The end came first: it is told here.
                Some([ended, _]) => pipe.end(ended),
                None => state.pipes.push(Arc::downgrade(&pipe)),
            }
        }
    }
}

/// One side of a connection. Its end is the connection's.
#[derive(Debug)]
pub(super) struct Side {
    middle: Arc<Middle>,
    /// Which of the two.
    number: usize,
    two_way: mpsc::Sender<TwoWay>,
    one_way: mpsc::Sender<OneWay>,
    two_way_places: Arc<Semaphore>,
    one_way_places: Arc<Semaphore>,
    new_two_way: tokio::sync::Mutex<mpsc::Receiver<TwoWay>>,
    new_one_way: tokio::sync::Mutex<mpsc::Receiver<OneWay>>,
}

impl Drop for Side {
    fn drop(&mut self) {
        self.close(0, "the other side is gone");
    }
}

/// Both sides of a new connection.
pub(super) fn sides() -> [Side; 2] {
    let middle = Arc::new(Middle {
        state: Mutex::new(State {
            ended: None,
            pipes: Vec::new(),
            prune_at: PIPES_MIN,
        }),
        changed: Notify::new(),
    });
    let (two_way_0, new_two_way_1) = mpsc::channel(STREAMS_MAX);
    let (two_way_1, new_two_way_0) = mpsc::channel(STREAMS_MAX);
    let (one_way_0, new_one_way_1) = mpsc::channel(STREAMS_MAX);
    let (one_way_1, new_one_way_0) = mpsc::channel(STREAMS_MAX);
    let side = |number, two_way, one_way, new_two_way, new_one_way| Side {
        middle: Arc::clone(&middle),
        number,
        two_way,
        one_way,
        two_way_places: Arc::new(Semaphore::new(STREAMS_MAX)),
        one_way_places: Arc::new(Semaphore::new(STREAMS_MAX)),
        new_two_way: tokio::sync::Mutex::new(new_two_way),
        new_one_way: tokio::sync::Mutex::new(new_one_way),
    };
    [
        side(0, two_way_0, one_way_0, new_two_way_0, new_one_way_0),
        side(1, two_way_1, one_way_1, new_two_way_1, new_one_way_1),
    ]
}

impl Side {
    pub(super) async fn open_bi(&self) -> Result<TwoWay, Ended> {
        let place = self.place(&self.two_way_places).await?;
        let (here_writer, there_reader, there) = pipe();
        let (there_writer, here_reader, here) = pipe();
        self.middle.enter([there, here]);
        let theirs = (
            Held::new(there_writer, Some(Arc::clone(&place))),
            Held::new(there_reader, Some(place)),
        );
        // There is room: there are as many places as the queue is long.
        self.two_way.try_send(theirs).map_err(|_| self.gone())?;
        Ok((Held::new(here_writer, None), Held::new(here_reader, None)))
    }

    pub(super) async fn open_uni(&self) -> Result<Held<Writer>, Ended> {
        let place = self.place(&self.one_way_places).await?;
        let (writer, reader, shared) = pipe();
        self.middle.enter([shared]);
        self.one_way
            .try_send(Held::new(reader, Some(place)))
            .map_err(|_| self.gone())?;
        Ok(Held::new(writer, None))
    }

    pub(super) async fn accept_bi(&self) -> Result<TwoWay, Ended> {
        self.unless_ended(async { self.new_two_way.lock().await.recv().await })
            .await
    }

    pub(super) async fn accept_uni(&self) -> Result<OneWay, Ended> {
        self.unless_ended(async { self.new_one_way.lock().await.recv().await })
            .await
    }

    async fn place(&self, places: &Arc<Semaphore>) -> Result<Arc<OwnedSemaphorePermit>, Ended> {
        let place = async { Arc::clone(places).acquire_owned().await.ok() };
        self.unless_ended(place).await.map(Arc::new)
    }

    async fn unless_ended<T>(&self, wanted: impl Future<Output = Option<T>>) -> Result<T, Ended> {
        tokio::select! {
            biased;
            ended = self.closed() => Err(ended),
            found = wanted => found.ok_or_else(|| self.gone()),
        }
    }

    pub(super) async fn closed(&self) -> Ended {
        loop {
            let changed = self.middle.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(ended) = self.ended() {
                return ended;
            }
            changed.await;
        }
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        let state = self.middle.state();
        let ended = state.ended.as_ref()?;
        ended.get(self.number).cloned()
    }

    fn gone(&self) -> Ended {
        self.ended().unwrap_or(Ended::Here)
    }

    pub(super) fn close(&self, code: u32, reason: &str) {
        self.middle.end(self.number, code, reason);
    }
}
