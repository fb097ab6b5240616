//! Dead letters: a record that was delivered as often as it may be is copied to another topic, in one tied
//! run with its settlement, so that it is there or here, and never both.
//!
//! From when its copy is asked for until its settlement is applied a record is out of everybody's reach: were
//! it leased or listed meanwhile, that would be written behind its settlement, and it would be given up again.

use super::command::{CursorNumber, DeadLetter, Effect};
use super::delta::{Delta, Progress, Why};
use super::settle::Asked;
use super::subscription::{Mode, Poison};
use super::{Group, Timer};
use crate::domain::entry::Draft;
use crate::domain::id::{Offset, OwnerId};
use crate::domain::time::{MonotonicMs, Now};
use crate::domain::topics::NAME_BYTES_MAX;

/// Dead letters on their way at a time.
const BURYING_MAX: usize = 64;
/// Between two attempts at one that cannot be written now.
const AGAIN_MS: u64 = 1000;

/// What the name of a group's dead-letter topic ends with, unless its retry policy names another.
pub const SUFFIX: &str = ".dead-letters";

/// The topic a group's dead letters go to where its retry policy names none: `<group>.dead-letters`, with as
/// much of the group's name as a topic's name has room for.
#[must_use]
pub fn topic_of(group: &str) -> String {
    let mut room = NAME_BYTES_MAX - SUFFIX.len();
    while !group.is_char_boundary(room.min(group.len())) {
        room -= 1;
    }
    let name = group.get(..room.min(group.len())).unwrap_or_default();
    format!("{name}{SUFFIX}")
}

/// What became of an attempt to copy a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copied {
    /// The entries that put it into the dead-letter topic.
    To(Vec<(OwnerId, Draft)>),
    /// It cannot be read any more.
    Lost,
    /// Not now: no topic yet, no room.
    Later,
}

/// How far a dead letter has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Burial {
    /// Its copy was asked for.
    Asked,
    /// It could not be written; its timer asks again.
    Later,
    /// On its way to the log. An answer to what was asked before a fence may come now, and is ignored:
    /// the letter would be written twice.
    Written,
}

impl Group {
    /// A record has been delivered as often as it may be: it is listed as dead, durably, first.
    pub(super) fn condemn(&mut self, number: CursorNumber, offset: u64) {
        let Some(cursor) = self.cursors.get_mut(&number) else {
            return;
        };
        cursor.ready.remove(offset, offset + 1);
        let attempts = cursor.attempts(offset);
        let reason = match cursor.listed.get(&offset).map(|listed| &listed.why) {
            Some(Why::Retry { reason, .. } | Why::Dead { reason }) => reason.clone(),
            Some(Why::Attached(_) | Why::Held) | None => {
                "its member was lost every time".to_owned()
            }
        };
        self.list_record(
            number,
            offset,
            attempts,
            Why::Dead { reason },
            &mut Vec::new(),
        );
    }

    /// Whether a listed record is to be given up, by the rules as they are now.
    pub(super) fn is_doomed(&self, number: CursorNumber, offset: u64) -> bool {
        let Some(spec) = self.spec_of(number) else {
            return false;
        };
        let blocks = spec.mode == Mode::Exclusive && spec.retry.poison == Poison::Block;
        let cursor = self.cursors.get(&number);
        let listed = cursor.and_then(|cursor| cursor.listed.get(&offset));
        listed.is_some_and(|listed| match &listed.why {
            Why::Dead { .. } => true,
            Why::Retry { .. } => listed.attempts >= spec.retry.attempts_max && !blocks,
            Why::Attached(_) | Why::Held => false,
        })
    }

    /// Copies that are on their way are not waited for any more, but for those that may be written.
    pub(super) fn forget_burials(&mut self, number: CursorNumber) {
        self.dying.retain(|(cursor, _)| *cursor != number);
        self.burying
            .retain(|(cursor, _), burial| *cursor != number || *burial == Burial::Written);
    }

    /// Asks for the next dead letters to be copied.
    pub(super) fn bury(&mut self, effects: &mut Vec<Effect>) {
        while self.burying.len() < BURYING_MAX {
            let Some((number, offset)) = self.dying.pop_first() else {
                return;
            };
            // Listed once more meanwhile, it is on its way already: two copies would be two letters.
            if self.burying.contains_key(&(number, offset)) {
                continue;
            }
            // One that stands still asks for what is left when it begins again.
            let Some(cursor) = self.cursors.get(&number).filter(|c| !c.resetting) else {
                continue;
            };
            let Some(listed) = cursor.listed.get(&offset) else {
                continue;
            };
            let (Why::Dead { reason } | Why::Retry { reason, .. }) = &listed.why else {
                continue;
            };
            let to = self
                .spec_of(number)
                .and_then(|spec| spec.retry.dead_letter_topic.clone());
            effects.push(Effect::DeadLetter(DeadLetter {
                cursor: number,
                place: cursor.place,
                offset: Offset(offset),
                to,
                attempts: listed.attempts,
                reason: reason.clone(),
            }));
            self.burying.insert((number, offset), Burial::Asked);
        }
    }

    /// A record was copied, or was not: the answer to [`Effect::DeadLetter`].
    pub fn dead_letter(
        &mut self,
        now: Now,
        number: CursorNumber,
        offset: Offset,
        copied: Copied,
        effects: &mut Vec<Effect>,
    ) {
        self.now = now;
        if self.burying.get(&(number, offset.0)) != Some(&Burial::Asked) {
            return self.finish(effects);
        }
        let is_free = self.cursors.get(&number).is_some_and(|cursor| {
            let in_hand = cursor.leased.contains(offset.0) || cursor.deciding.contains(offset.0);
            !in_hand && !cursor.resetting
        });
        if !is_free || !self.is_doomed(number, offset.0) {
            // Reset, gone, or decided otherwise, meanwhile.
            self.burying.remove(&(number, offset.0));
            self.activate(number, offset.0);
            return self.finish(effects);
        }
        let Some(burial) = self.burying.get_mut(&(number, offset.0)) else {
            return self.finish(effects);
        };
        *burial = match copied {
            Copied::Later => Burial::Later,
            Copied::To(_) | Copied::Lost => Burial::Written,
        };
        let is_written = *burial == Burial::Written;
        let cursor = self.cursors.get_mut(&number);
        let durable = cursor.is_some_and(|cursor| {
            if is_written && cursor.durable {
                cursor.deciding.insert(offset.0, offset.0 + 1);
            }
            cursor.durable
        });
        let progress = Progress {
            cursor: number,
            settled: vec![(offset, 1)],
            dead_lettered: u64::from(matches!(copied, Copied::To(_))),
            expired: u64::from(matches!(copied, Copied::Lost)),
            ..Progress::default()
        };
        match copied {
            Copied::To(drafts) if durable => {
                self.persist(
                    drafts,
                    &Delta::Progress(vec![progress]),
                    Asked::default(),
                    effects,
                );
            }
            // A nameless broadcast member leaves nothing behind.
            Copied::To(_) | Copied::Lost if !durable => self.apply_progress(&progress, effects),
            Copied::To(_) | Copied::Lost => {
                let delta = Delta::Progress(vec![progress]);
                self.persist(Vec::new(), &delta, Asked::default(), effects);
            }
            Copied::Later => {
                let due = MonotonicMs(self.now.monotonic.0.saturating_add(AGAIN_MS));
                self.timers.insert((due, Timer::Retry(number, offset.0)));
            }
        }
        self.finish(effects);
    }
}
