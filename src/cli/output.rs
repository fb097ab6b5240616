//! What goes to stdout in bulk, and what is said on stderr.
//!
//! In: chunks. Out: the same, each flushed, by a thread of its own: whoever reads slowly, or not at
//! all, holds back who produces the chunks and nothing else. At most `CHUNKS_MAX` wait.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::thread;

use tokio::sync::{mpsc, oneshot};

/// Chunks that may wait for the writer.
const CHUNKS_MAX: usize = 4;

/// A chunk is worth handing over at this size.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// The other end does not take any more: [`Output::finish`] knows why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

/// A writer behind a thread.
#[derive(Debug)]
pub struct Output {
    chunks: mpsc::Sender<Vec<u8>>,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// Stdout.
    #[must_use]
    pub fn stdout() -> Self {
        Self::to(io::stdout())
    }

    /// Any writer.
    pub fn to(mut writer: impl Write + Send + 'static) -> Self {
        let (chunks, mut waiting) = mpsc::channel::<Vec<u8>>(CHUNKS_MAX);
        let (end, ended) = oneshot::channel();
        thread::spawn(move || {
            let mut result = Ok(());
            while let Some(chunk) = waiting.blocking_recv() {
                result = writer.write_all(&chunk).and_then(|()| writer.flush());
                if result.is_err() {
                    break;
                }
            }
            // Nobody waits for the answer when the command has ended otherwise.
            let _ = end.send(result);
        });
        Self { chunks, ended }
    }

    /// Hands a chunk over, waiting for room. An empty one is nothing.
    ///
    /// # Errors
    /// [`Closed`] where an earlier chunk could not be written.
    pub async fn write(&self, chunk: Vec<u8>) -> Result<(), Closed> {
        if chunk.is_empty() {
            return Ok(());
        }
        self.chunks.send(chunk).await.map_err(|_| Closed)
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// Why a chunk could not be written.
    pub async fn finish(self) -> io::Result<()> {
        drop(self.chunks);
        self.ended
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the writing thread ended early")))
    }
}

/// Says a line on stderr; a stderr that is gone is nobody's loss.
pub fn say(line: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Whether stderr shows colours: on a terminal, unless `NO_COLOR` is set to anything.
#[must_use]
pub fn in_colour() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal() && !refused
}

/// A word of stderr that is to be seen first: red where there are colours.
#[must_use]
pub fn alarming(word: &str) -> String {
    match in_colour() {
        true => format!("\x1b[1;31m{word}\x1b[0m"),
        false => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            self.0.lock().unwrap().push(b'|');
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn chunks_are_written_in_order_and_flushed_one_by_one() {
        let sink = Shared::default();
        let output = Output::to(sink.clone());
        for chunk in ["one ", "", "two "] {
            output.write(chunk.into()).await.unwrap();
        }
        output.finish().await.unwrap();
        assert_eq!(*sink.0.lock().unwrap(), b"one |two |");
    }

    #[tokio::test]
    async fn a_closed_pipe_is_told_to_the_writer_and_named_at_the_end() {
        let output = Output::to(Broken);
        while output.write(b"x".to_vec()).await.is_ok() {}
        let error = output.finish().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
