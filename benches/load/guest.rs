//! The broker in this process, as an application embeds it: on a thread with an actix system of its own,
//! without a listener. Its clients are in the same process.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use waterwheel::client::Connect;
use waterwheel::{Broker, Config};

use super::broker::{Home, MEMORY_BYTES};
use super::process::READY_WITHIN;
use super::{Bench, Outcome};

/// A broker in this process; stopped in good order when dropped.
pub(crate) struct Guest {
    home: Home,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Guest {
    /// A fresh one.
    pub(crate) fn fresh(bench: &Bench, name: &str) -> Outcome<Self> {
        let data = bench.dir.join(name);
        if data.exists() {
            std::fs::remove_dir_all(&data)?;
        }
        let config = Config {
            data: data.clone(),
            listen: None,
            memory_bytes: MEMORY_BYTES,
            ..Config::default()
        };
        let (ready, started) = std::sync::mpsc::channel::<Result<Connect, String>>();
        let (end, ended) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            actix_rt::System::new().block_on(async move {
                match Broker::start(config).await {
                    Ok(broker) => {
                        let _ = ready.send(Ok(broker.client()));
                        let _ = ended.await;
                        broker.stop().await;
                    }
                    Err(error) => drop(ready.send(Err(error.to_string()))),
                }
            });
        });
        let in_process = started.recv_timeout(READY_WITHIN)??;
        Ok(Self {
            home: Home {
                data,
                address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                ready_within: READY_WITHIN,
                in_process: Some(in_process),
            },
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// How its clients reach it.
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
