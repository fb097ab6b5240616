//! Keys that do not move, in key-ordered mode: what waits behind them is listed, so that others can be looked
//! at.
//!
//! A window full of records that wait behind their keys is not a reason by itself: where members take as many
//! records as there are keys, every key is busy and every window is full, and all of it flows. Listing costs an
//! entry in the log and a search for the batch when the record's turn comes. So only lines that stand still
//! for [`STUCK_MS`] (a record in a long backoff, a handler that takes its time) are listed, and lines that take
//! up most of a window by themselves.
//!
//! Before that, a window does not grow to its bound without need: see [`Group::waits_for_keys`].

use super::command::CursorNumber;
use super::delta::{Listed, Why};
use super::{Group, Timer};
use crate::domain::time::MonotonicMs;

/// A key whose oldest record has been so for so long does not move.
const STUCK_MS: u64 = 100;
/// A line longer than the window over this is one too many are in.
const LONG_LINE: u64 = 8;
/// Records listed at once.
const LISTED_AT_ONCE: usize = 1024;
/// With fewer in hand than the window over this, it is looked for more in any case.
const WINDOW_LOW: u64 = 16;
/// A window that [`STUCK_MS`] takes more records from than its bound over this is seen to move by itself: at
/// this pace it takes a few seconds until a full one is looked behind.
const MOVES: u64 = 128;

impl Group {
    /// Whether most busy keys have their next record in hand: what is found beyond that waits behind them too,
    /// and the further apart the records lie that are delivered next, the more of them is read again. Where
    /// little is consumed although members could take more, it is looked all the same, now and then: keys
    /// that hardly move must not hide others. Where much is, the window shrinks by itself until it is looked.
    pub(super) fn waits_for_keys(&mut self, number: CursorNumber) -> bool {
        let now = self.now.monotonic;
        let window_max = self.limits.window_max;
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return false;
        };
        let again = MonotonicMs(cursor.looked_at.0.saturating_add(STUCK_MS));
        if cursor.window.len() >= window_max / WINDOW_LOW && cursor.has_lines() {
            if now >= again && cursor.moved > window_max / MOVES {
                (cursor.looked_at, cursor.moved) = (now, 0);
            }
            let again = MonotonicMs(cursor.looked_at.0.saturating_add(STUCK_MS));
            if now < again {
                self.timers.insert((again, Timer::Stuck(number)));
                return true;
            }
        }
        (cursor.looked_at, cursor.moved) = (now, 0);
        false
    }

    /// The window is full, and nothing in it is ready.
    pub(super) fn list_stuck(&mut self, number: CursorNumber) {
        let now = self.now.monotonic;
        // Half of the list stays for what members refuse: full of waiting records, it would leave no room
        // for the very ones they wait for.
        let room = u64::from(self.limits.listed_max / 2)
            .saturating_sub(self.listed + self.pending.listed());
        let room = if self.listed_bytes < self.limits.snapshot_bytes_max / 4 {
            usize::try_from(room).unwrap_or(usize::MAX)
        } else {
            0
        };
        let max = LISTED_AT_ONCE.min(room);
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        if max == 0 {
            return;
        }
        if now < cursor.stuck_look_at {
            self.timers
                .insert((cursor.stuck_look_at, Timer::Stuck(number)));
            return;
        }
        let long = usize::try_from(self.limits.window_max / LONG_LINE).unwrap_or(usize::MAX);
        let (stuck, next) = cursor.stuck_in_window(now, STUCK_MS, long, max);
        if stuck.len() < max {
            // What moves is looked at now and then only.
            cursor.stuck_look_at = MonotonicMs(now.0.saturating_add(STUCK_MS));
            if let Some(next) = next {
                let next = cursor.stuck_look_at.max(next);
                self.timers.insert((next, Timer::Stuck(number)));
            }
        }
        for offset in stuck {
            let listed = Listed {
                key_hash: cursor.key_of(offset),
                attempts: cursor.attempts(offset),
                why: Why::Held,
            };
            cursor.deciding.insert(offset, offset + 1);
            self.pending.list(number, offset, listed);
        }
    }

    /// Keys that moved then may be stuck now.
    pub(super) fn look_for_stuck(&mut self, number: CursorNumber) {
        self.touched.insert(number);
    }
}
