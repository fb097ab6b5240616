//! The raw server: accepts, discards, answers, pumps. As in the broker, an accepted connection is
//! handed to a worker before its handshake is driven there.

use std::path::Path;

use bytes::Bytes;
use quinn::{Connection, Incoming, RecvStream, SendStream};
use tokio::sync::mpsc;

use super::settings::Door;
use super::{Settings, TASK_BYTES, Task};
use crate::load::Outcome;
use crate::load::environment::cores;
use crate::load::payload::Noise;
use crate::load::role::announce;

/// How many pieces of a stream one read takes at most.
const CHUNKS: usize = 64;
/// What a pump hands over at a time.
const PUMP_BYTES: usize = 1 << 20;

/// Serves until the process ends.
pub(crate) fn serve(settings: Settings, dir: &Path) -> Outcome<()> {
    runtime()?.block_on(async {
        let door = settings.listen(dir)?;
        let workers: Vec<_> = (0..cores()).map(|_| worker(door.clone())).collect();
        announce(door.endpoint().local_addr()?)?;
        for worker in workers.iter().cycle() {
            let Some(incoming) = door.endpoint().accept().await else {
                break;
            };
            worker.send(incoming)?;
        }
        Ok(())
    })
}

/// A runtime of one thread, as every arbiter has.
pub(crate) fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// A thread that drives the connections it is handed.
fn worker(door: Door) -> mpsc::UnboundedSender<Incoming> {
    let (sender, mut receiver) = mpsc::unbounded_channel::<Incoming>();
    std::thread::spawn(move || {
        let Ok(runtime) = runtime() else { return };
        runtime.block_on(async {
            while let Some(incoming) = receiver.recv().await {
                let door = door.clone();
                tokio::spawn(async move {
                    if let Ok(accepting) = door.admit(incoming)
                        && let Ok(connection) = accepting.await
                    {
                        converse(connection).await;
                    }
                });
            }
        });
    });
    sender
}

async fn converse(connection: Connection) {
    loop {
        tokio::select! {
            stream = connection.accept_uni() => match stream {
                Ok(stream) => drop(tokio::spawn(discard(stream))),
                Err(_) => return,
            },
            stream = connection.accept_bi() => match stream {
                Ok((send, receive)) => drop(tokio::spawn(async move {
                    // A peer that is gone has nothing to hear of it.
                    let _ = perform(send, receive).await;
                })),
                Err(_) => return,
            },
        }
    }
}

/// Reads a stream to its end and throws it away; says how many bytes there were.
pub(crate) async fn discard(mut stream: RecvStream) -> u64 {
    let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
    let mut total = 0;
    while let Ok(Some(count)) = stream.read_chunks(&mut chunks).await {
        let read: usize = chunks.iter().take(count).map(Bytes::len).sum();
        total += read as u64;
    }
    total
}

async fn perform(mut send: SendStream, mut receive: RecvStream) -> Outcome<()> {
    let mut task = [0; TASK_BYTES];
    receive.read_exact(&mut task).await?;
    match Task::decode(&task).ok_or("no such task")? {
        Task::Echo { request, answer } => {
            let mut asked = vec![0; usize::try_from(request)?];
            let answer = Noise::new(1).bytes(usize::try_from(answer)?);
            while receive.read_exact(&mut asked).await.is_ok() {
                send.write_chunk(answer.clone()).await?;
            }
        }
        Task::Pump { mut bytes } => {
            let noise = Noise::new(2).bytes(PUMP_BYTES);
            while bytes > 0 {
                let length = noise.len().min(usize::try_from(bytes)?);
                send.write_chunk(noise.slice(..length)).await?;
                bytes -= length as u64;
            }
            send.finish()?;
            let _ = send.stopped().await;
        }
    }
    Ok(())
}
