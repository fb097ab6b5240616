//! What the directory has done as time passes: partitions drop what is too old or too much, and producers that
//! nobody heard of for long are forgotten.

use actix::Handler;

use super::DirectoryActor;
use crate::actors::partition::Retain;
use crate::domain::time::WallMs;

tells!(RetainAll);

/// An unused producer is remembered longer than it must be by at most this part.
const FORGET_PARTS: u64 = 64;

impl DirectoryActor {
    /// Where no retention is looked at, producers are forgotten all the same, but less often, and only
    /// by partitions that run: one that does not has no new ones either.
    fn forget_producers(&mut self, now: WallMs) {
        let monotonic = self.house.clock.now().monotonic;
        let every = self.house.settings.producer_state_ms / FORGET_PARTS;
        if monotonic.0.saturating_sub(self.forgot.0) < every {
            return;
        }
        self.forgot = monotonic;
        let retain = Retain {
            now,
            retention_ms: None,
            retention_bytes: None,
        };
        for running in self.running.values().filter(|running| !running.stopped) {
            running.link.tell(retain);
        }
    }
}

/// Let every partition drop what its topic's retention takes, and forget unused producers.
#[derive(Debug, Clone, Copy)]
pub struct RetainAll {
    /// The wall clock.
    pub now: WallMs,
}

impl Handler<RetainAll> for DirectoryActor {
    type Result = ();

    fn handle(&mut self, message: RetainAll, ctx: &mut Self::Context) {
        self.stats.handled();
        let limited: Vec<_> = self
            .machine
            .iter()
            .filter(|topic| {
                topic.config.retention_ms.is_some() || topic.config.retention_bytes.is_some()
            })
            .cloned()
            .collect();
        for topic in limited {
            let retain = Retain {
                now: message.now,
                retention_ms: topic.config.retention_ms,
                retention_bytes: topic.config.retention_bytes,
            };
            for (partition, lane) in topic.lanes() {
                let located = self.locate(topic.id, partition, lane, ctx);
                if let Ok((_, link)) = located {
                    link.tell(retain);
                }
            }
        }
        self.forget_producers(message.now);
    }
}
