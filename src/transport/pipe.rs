//! One direction of a stream in memory: pieces of bytes, in order, never more than a window of them.
//!
//! In: pieces from one writer. Out: the same pieces, uncopied, to one reader. Each end may be on a
//! thread and a runtime of its own.
//!
//! - M1 At most [`PIPE_BYTES`] wait unread, overdrawn by one piece at most.
//! - M2 What was written before the connection ended can still be read; then the end is told.
//! - M3 A waiting end is always woken: by the other end, by its being dropped, by the connection's end.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::task::coop::poll_proceed;

use super::{Ended, StreamEnded};

/// What waits unread in one direction of a stream before its writer waits, in bytes.
pub(super) const PIPE_BYTES: usize = 1024 * 1024;

#[derive(Debug, Default)]
struct State {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    /// The writer sends nothing more.
    is_finished: bool,
    /// The reader wants nothing more.
    is_stopped: bool,
    ended: Option<Ended>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    /// Why nothing more may be written, if so.
    fn broken(&self) -> Option<StreamEnded> {
        match &self.ended {
            Some(ended) => Some(StreamEnded::Connection(ended.clone())),
            None => self.is_stopped.then_some(StreamEnded::Stopped),
        }
    }
}

/// What both ends share.
#[derive(Debug, Default)]
pub(super) struct Pipe(Mutex<State>);

impl Pipe {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot have left it half done: nothing in here calls out but wakers, at the end.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection has ended (M3).
    pub(super) fn end(&self, ended: &Ended) {
        let mut state = self.state();
        state.ended.get_or_insert_with(|| ended.clone());
        state.wake_reader();
        state.wake_writer();
    }
}

/// Both ends of a new pipe.
pub(super) fn pipe() -> (Writer, Reader, Arc<Pipe>) {
    let pipe = Arc::new(Pipe::default());
    (
        Writer(Arc::clone(&pipe)),
        Reader(Arc::clone(&pipe)),
        Arc::clone(&pipe),
    )
}

/// The writing end; dropped, it finishes.
#[derive(Debug)]
pub(super) struct Writer(Arc<Pipe>);

impl Writer {
    /// Writes pieces, each as soon as there is room; those written are left empty. Cancelled, it has
    /// written some of them.
    pub(super) async fn write(&mut self, pieces: &mut [Bytes]) -> Result<(), StreamEnded> {
        let mut at = 0;
        poll_fn(|context| self.poll_write(context, pieces, &mut at)).await
    }

    fn poll_write(
        &self,
        context: &mut Context<'_>,
        pieces: &mut [Bytes],
        at: &mut usize,
    ) -> Poll<Result<(), StreamEnded>> {
        // An end that is always ready must not keep its thread from others.
        let proceed = ready!(poll_proceed(context));
        let mut state = self.0.state();
        if let Some(broken) = state.broken() {
            return Poll::Ready(Err(broken));
        }
        if state.is_finished {
            return Poll::Ready(Err(StreamEnded::Stopped));
        }
        let before = *at;
        while state.bytes < PIPE_BYTES
            && let Some(piece) = pieces.get_mut(*at)
        {
            let piece = std::mem::take(piece);
            *at += 1;
            if !piece.is_empty() {
                state.bytes += piece.len();
                state.pieces.push_back(piece);
            }
        }
        if *at != before {
            proceed.made_progress();
            state.wake_reader();
        }
        if *at >= pieces.len() {
            return Poll::Ready(Ok(()));
        }
        remember(&mut state.writer, context);
        Poll::Pending
    }

    /// Says that nothing follows.
    pub(super) fn finish(&mut self) {
        let mut state = self.0.state();
        state.is_finished = true;
        state.wake_reader();
    }

    /// Waits until the reader has everything, wants no more, or is gone.
    pub(super) async fn stopped(&mut self) {
        poll_fn(|context| {
            let mut state = self.0.state();
            let all_read = state.is_finished && state.bytes == 0;
            if all_read || state.broken().is_some() {
                return Poll::Ready(());
            }
            remember(&mut state.writer, context);
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The reading end; dropped, it stops the writer.
#[derive(Debug)]
pub(super) struct Reader(Arc<Pipe>);

impl Reader {
    /// Fills `pieces` from the front and says how many; none at the end. Cancelling loses nothing.
    pub(super) async fn read(&mut self, pieces: &mut [Bytes]) -> Result<Option<usize>, Ended> {
        poll_fn(|context| self.poll_read(context, pieces)).await
    }

    fn poll_read(
        &self,
        context: &mut Context<'_>,
        pieces: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, Ended>> {
        let proceed = ready!(poll_proceed(context));
        let mut state = self.0.state();
        let was_full = state.bytes >= PIPE_BYTES;
        let mut count = 0;
        for place in pieces {
            let Some(piece) = state.pieces.pop_front() else {
                break;
            };
            state.bytes -= piece.len();
            *place = piece;
            count += 1;
        }
        if count > 0 {
            proceed.made_progress();
            if (was_full && state.bytes < PIPE_BYTES) || (state.is_finished && state.bytes == 0) {
                state.wake_writer();
            }
            return Poll::Ready(Ok(Some(count)));
        }
        if state.is_finished || state.is_stopped {
            return Poll::Ready(Ok(None));
        }
        if let Some(ended) = &state.ended {
            return Poll::Ready(Err(ended.clone()));
        }
        remember(&mut state.reader, context);
        Poll::Pending
    }

    /// Wants nothing more: what waits is dropped, and the writer is told.
    pub(super) fn stop(&mut self) {
        let mut state = self.0.state();
        state.is_stopped = true;
        state.bytes = 0;
        let dropped = std::mem::take(&mut state.pieces);
        state.wake_writer();
        drop(state);
        drop(dropped);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop();
    }
}

fn remember(place: &mut Option<Waker>, context: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(context.waker()),
        None => *place = Some(context.waker().clone()),
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn piece(bytes: usize, fill: u8) -> Bytes {
        Bytes::from(vec![fill; bytes])
    }

    #[tokio::test]
    async fn a_writer_waits_for_room_and_goes_on_when_there_is_some() {
        let (mut writer, mut reader, _) = pipe();
        let mut pieces = [
            piece(PIPE_BYTES - 1, 1),
            piece(PIPE_BYTES, 2),
            piece(1, 3),
            piece(1, 4),
        ];
        let mut write = Box::pin(writer.write(&mut pieces));
        assert!(write.as_mut().now_or_never().is_none(), "M1");
        let mut read = [const { Bytes::new() }; 8];
        assert_eq!(
            reader.read(&mut read[..1]).await,
            Ok(Some(1)),
            "the first is there"
        );
        assert!(write.as_mut().now_or_never().is_none(), "still full");
        assert_eq!(reader.read(&mut read[1..2]).await, Ok(Some(1)));
        write.await.unwrap();
        assert_eq!(reader.read(&mut read[2..]).await, Ok(Some(2)));
        let firsts: Vec<u8> = read.iter().filter_map(|p| p.first().copied()).collect();
        assert_eq!(firsts, [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn what_was_written_is_read_after_the_end_and_then_the_end_is_told() {
        let (mut writer, mut reader, shared) = pipe();
        writer.write(&mut [piece(3, 1)]).await.unwrap();
        shared.end(&Ended::Here);
        let mut read = [Bytes::new()];
        assert_eq!(reader.read(&mut read).await, Ok(Some(1)), "M2");
        assert_eq!(reader.read(&mut read).await, Err(Ended::Here));
        assert_eq!(
            writer.write(&mut [piece(3, 1)]).await,
            Err(StreamEnded::Connection(Ended::Here))
        );
    }

    #[tokio::test]
    async fn either_end_hears_when_the_other_is_dropped() {
        let (mut writer, reader, _) = pipe();
        let mut pieces = [piece(PIPE_BYTES, 1), piece(1, 1)];
        let write = tokio::spawn(async move { writer.write(&mut pieces).await });
        tokio::task::yield_now().await;
        drop(reader);
        assert_eq!(write.await.unwrap(), Err(StreamEnded::Stopped));

        let (writer, mut reader, _) = pipe();
        let read = tokio::spawn(async move { reader.read(&mut [Bytes::new()]).await });
        tokio::task::yield_now().await;
        drop(writer);
        assert_eq!(read.await.unwrap(), Ok(None));
    }

    #[tokio::test]
    async fn a_finished_writer_hears_when_everything_was_read() {
        let (mut writer, mut reader, _) = pipe();
        writer.write(&mut [piece(3, 1)]).await.unwrap();
        writer.finish();
        let mut stopped = Box::pin(writer.stopped());
        assert!(stopped.as_mut().now_or_never().is_none());
        reader.read(&mut [Bytes::new()]).await.unwrap();
        stopped.await;
    }

    #[test]
    fn an_end_that_is_always_ready_yields_to_others() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (mut writer, mut reader, _) = pipe();
            let filler = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build();
                runtime
                    .unwrap()
                    .block_on(async { while writer.write(&mut [piece(100, 1)]).await.is_ok() {} });
            });
            let reading = tokio::spawn(async move {
                loop {
                    let _ = reader.read(&mut [const { Bytes::new() }; 4]).await;
                }
            });
            // Would never be polled if the reader kept the only thread.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            reading.abort();
            let _ = reading.await;
            filler.join().unwrap();
        });
    }

    proptest! {
        #[test]
        fn however_it_is_cut_and_cancelled_the_bytes_come_once_and_in_order(
            sizes in prop::collection::vec(0_usize..400_000, 1..20),
            reads in prop::collection::vec((1_usize..5, any::<bool>()), 1..20),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let sent: Vec<(usize, u8)> = sizes.into_iter().zip(0..).collect();
            let expected: Vec<(usize, u8)> =
                sent.iter().copied().filter(|(size, _)| *size > 0).collect();
            let found = runtime.block_on(async move {
                let (mut writer, mut reader, _) = pipe();
                let writing = tokio::spawn(async move {
                    let mut pieces: Vec<Bytes> =
                        sent.iter().map(|(size, fill)| piece(*size, *fill)).collect();
                    writer.write(&mut pieces).await.unwrap();
                });
                let mut found = Vec::new();
                let mut reads = reads.into_iter().cycle();
                loop {
                    let (count, cancel) = reads.next().unwrap();
                    let mut pieces = vec![Bytes::new(); count];
                    let read = reader.read(&mut pieces);
                    let read = if cancel {
                        // Given up after one look.
                        match read.now_or_never() {
                            Some(read) => read,
                            None => {
                                tokio::task::yield_now().await;
                                continue;
                            }
                        }
                    } else {
                        read.await
                    };
                    let Ok(Some(count)) = read else { break };
                    found.extend(pieces.iter().take(count).map(|p| (p.len(), p[0])));
                }
                writing.await.unwrap();
                found
            });
            prop_assert_eq!(found, expected);
        }
    }
}
