//! The signals that end a client command in order: SIGINT (Ctrl-C) and SIGTERM.
//!
//! The first lets the command come to its end, so that it leaves the broker nothing to find out by itself; a
//! second ends the process at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::exit::CliError;

/// What a second signal ends the process with, as shells count it: 128 and SIGINT.
const HURRIED_EXIT: i32 = 130;

/// Whether a signal has come.
#[derive(Debug)]
pub(super) struct Interrupt {
    came: watch::Receiver<bool>,
}

impl Interrupt {
    /// Listens from now on.
    ///
    /// # Errors
    /// [`CliError::Failed`] where the process cannot listen for signals.
    pub(super) fn listen() -> Result<Self, CliError> {
        let broken =
            |fault: io::Error| CliError::Failed(format!("cannot listen for signals: {fault}"));
        let interrupt = signal(SignalKind::interrupt()).map_err(broken)?;
        let terminate = signal(SignalKind::terminate()).map_err(broken)?;
        let (tell, came) = watch::channel(false);
        tokio::spawn(watch_over(interrupt, terminate, tell));
        Ok(Self { came })
    }

    /// Waits until one comes; for ever where none does. Cancelling the wait loses nothing.
    pub(super) async fn wait(&mut self) {
        if self.came.wait_for(|came| *came).await.is_err() {
            // Nobody listens any more.
            std::future::pending().await
        }
    }
}

async fn watch_over(mut interrupt: Signal, mut terminate: Signal, tell: watch::Sender<bool>) {
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if tell.send_replace(true) {
            std::process::exit(HURRIED_EXIT);
        }
    }
}
