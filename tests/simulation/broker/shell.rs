//! The shell of a partition: loads it, tells it, performs its effects.

use std::collections::BTreeMap;

use waterwheel::domain::commit::{Counters, Need};
use waterwheel::domain::entry::{AppliedEntry, Author, EntryKind};
use waterwheel::domain::id::{LogPosition, Offset, OwnerId, Token};
use waterwheel::domain::partition::{self, Effect, Partition};
use waterwheel::domain::rejection::Rejection;
use waterwheel::log::Scanned;

use super::house::{House, LIMITS};
use super::message::{Answer, Message, Reply, To};
use super::recovery::partition_changes;
use super::wheel::{Said, Step};

pub(crate) struct Shell {
    pub(crate) address: u64,
    pub(crate) machine: Partition,
    /// None while it waits for a life, and takes nothing else meanwhile.
    pub(crate) author: Option<Author>,
    pub(crate) asks: BTreeMap<Token, Reply>,
    pub(crate) loaded: bool,
    life: Option<(Author, Counters, LogPosition)>,
    trimmed: Offset,
}

impl Shell {
    pub(crate) fn new(address: u64) -> Self {
        Self {
            address,
            machine: Partition::new(LIMITS),
            author: None,
            asks: BTreeMap::new(),
            loaded: false,
            life: None,
            trimmed: Offset(0),
        }
    }
}

impl House {
    pub(crate) fn owner(&mut self, owner: OwnerId, message: Message) {
        let mut effects = Vec::new();
        let token = self.token();
        let Some(shell) = self.shells.get_mut(&owner) else {
            return;
        };
        let address = shell.address;
        let machine = &mut shell.machine;
        match message {
            Message::Life { author, .. } if shell.loaded => shell.author = Some(author),
            Message::Life {
                author,
                counters,
                end,
            } => {
                shell.life = Some((author, counters, end));
                return self.tell(To::Store, Message::LoadOwner { owner, address });
            }
            Message::Rows { rows, mark } => {
                let rows = rows.iter().map(|(id, value)| (*id, value.as_ref()));
                *machine = Partition::from_rows(LIMITS, rows).expect("rows read");
                let (author, counters, end) = shell.life.take().expect("a life before rows");
                if machine.head().sequence < counters.sequence {
                    // What it folds now its predecessor perhaps did not arm.
                    machine.begun(&mut effects);
                }
                for scanned in self.reader.scan(mark, Some(end)) {
                    let Scanned::Entry {
                        header,
                        place,
                        facts,
                        body,
                    } = scanned
                    else {
                        self.unreadable = true;
                        return;
                    };
                    if header.owner == owner {
                        let body = body.unwrap_or_default();
                        machine.apply(
                            &AppliedEntry {
                                header,
                                place,
                                body,
                                facts,
                            },
                            &mut effects,
                        );
                    }
                }
                // Of an owner that was deleted a moment ago the sequencer knows nothing any more.
                assert!(
                    machine.head().sequence >= counters.sequence,
                    "folded up to its life"
                );
                // What the fold armed was perhaps never handed over by the life before.
                effects.retain(|effect| matches!(effect, Effect::Arm { .. }));
                machine.begun(&mut effects);
                shell.author = Some(author);
                shell.loaded = true;
                self.enter_wheel(owner, address);
            }
            Message::Applied(entries) => {
                entries
                    .iter()
                    .for_each(|entry| machine.apply(entry, &mut effects));
                machine.applied_all(&mut effects);
            }
            Message::Fenced {
                incarnation,
                rejection,
            } => {
                if shell
                    .author
                    .is_none_or(|author| author.incarnation > incarnation)
                {
                    return;
                }
                machine.reset(&mut effects);
                if rejection != Rejection::LogSealed {
                    shell.author = None;
                    self.tell(To::Commit, Message::Begin { owner, address });
                }
            }
            Message::WriteRows { round, marked } => {
                machine.rows_due(round, marked);
                let changes = partition_changes(owner, machine);
                self.tell(To::Store, Message::Write(changes));
                self.tell(To::Checkpoint, Message::RowsWritten { round, owner });
            }
            Message::Restate => machine.restate(&mut effects),
            Message::Retain {
                now,
                retention_bytes,
            } => {
                machine.retain(now, None, retention_bytes, &mut effects);
            }
            Message::Append {
                facts,
                count,
                batch,
                reply,
            } => {
                shell.asks.insert(token, reply);
                let tell_accepted = false;
                let append = partition::Append {
                    token,
                    batch: batch.into(),
                    count,
                    facts,
                    tell_accepted,
                    now: self.now,
                    timers: partition::TimerLimits::default(),
                    tied: Vec::new(),
                };
                machine.append(append, &mut effects);
            }
            Message::Read { from, reply } => {
                shell.asks.insert(token, reply);
                let read = partition::Read {
                    token,
                    from,
                    bytes_max: 20_000,
                    wait: true,
                };
                machine.read(read, &mut effects);
            }
            Message::Alarm(Said::Due(batch, alarms)) => machine.due(batch, &alarms, &mut effects),
            Message::Alarm(Said::Near(alarms)) => machine.near(&alarms, &mut effects),
            Message::Alarm(Said::Armed(count)) => machine.armed(count, &mut effects),
            Message::Alarm(Said::Began) => machine.wheel_began(&mut effects),
            Message::AskTimer {
                number,
                command,
                reply,
            } => {
                shell.asks.insert(token, reply);
                let limits = partition::TimerLimits::default();
                machine.timer(token, number, command, self.now, limits, &mut effects);
            }
            Message::BodiesLoaded { first, row } => {
                machine.bodies_loaded(first, Ok(&row), &mut effects);
            }
            Message::Inspect { segment, from, end } => {
                let needed = machine.needs(from, end);
                self.tell(
                    To::Cleaner,
                    Message::Inspected {
                        owner,
                        segment,
                        needed,
                    },
                );
            }
            Message::RunLoaded { first, run } => machine.run_loaded(first, Ok(run), &mut effects),
            other => panic!("not for a partition: {other:?}"),
        }
        self.act(owner, effects);
        self.tell_trimmed(owner);
    }

    fn tell_trimmed(&mut self, owner: OwnerId) {
        let Some(shell) = self.shells.get_mut(&owner) else {
            return;
        };
        let start = shell.machine.head().start_offset;
        if start > shell.trimmed {
            shell.trimmed = start;
            self.tell(To::Cleaner, Message::Trimmed { owner, start });
        }
    }

    fn act(&mut self, owner: OwnerId, effects: Vec<Effect>) {
        for effect in effects {
            let Some(shell) = self.shells.get_mut(&owner) else {
                return;
            };
            match effect {
                Effect::Persist { token, drafts, .. } => {
                    let ticket = token.and_then(|token| shell.asks.remove(&token));
                    let Some(author) = shell.author else {
                        assert!(drafts.is_empty(), "it asks for entries only with a life");
                        continue;
                    };
                    let is_payload = drafts.iter().any(|draft| draft.kind == EntryKind::Payload);
                    let need = if is_payload {
                        Need::Payload
                    } else {
                        Need::Housekeeping
                    };
                    let drafts = drafts.into_iter().map(|draft| (owner, draft)).collect();
                    self.tell(
                        To::Commit,
                        Message::Persist {
                            author,
                            drafts,
                            need,
                            ticket,
                        },
                    );
                }
                Effect::Accepted(_) => {}
                Effect::Stored(token, stored) => {
                    let (offset, number) = (stored.first_offset, stored.first_number);
                    self.answer_token(owner, token, Answer::Stored { offset, number });
                }
                Effect::Batches(token, answer) => {
                    self.answer_token(owner, token, Answer::Batches(answer));
                }
                Effect::Found(..) => {}
                Effect::Refuse(token, why) => self.answer_token(owner, token, Answer::Refused(why)),
                Effect::Timer(token, answer) => {
                    self.answer_token(owner, token, Answer::Timer(answer));
                }
                Effect::Arm { mut alarms, .. } => {
                    alarms.iter_mut().for_each(|alarm| alarm.owner = owner);
                    self.tell(To::Level(0), Message::Level(Step::Arm(owner, alarms)));
                }
                Effect::Returned { batch, again_ms } => {
                    let step = Step::Returned(owner, batch, again_ms);
                    self.tell(To::Level(0), Message::Level(step));
                }
                Effect::LoadBodies(first) => {
                    let address = shell.address;
                    self.tell(
                        To::Store,
                        Message::LoadBodies {
                            owner,
                            address,
                            first,
                        },
                    );
                }
                // Nothing is read ahead here.
                Effect::Ahead(_) => {}
                Effect::LoadRun(first) => {
                    let address = shell.address;
                    self.tell(
                        To::Store,
                        Message::LoadRun {
                            owner,
                            address,
                            first,
                        },
                    );
                }
            }
        }
    }

    fn answer_token(&mut self, owner: OwnerId, token: Token, answer: Answer) {
        let shell = self.shells.get_mut(&owner);
        if let Some(reply) = shell.and_then(|shell| shell.asks.remove(&token)) {
            self.answer(reply, answer);
        }
    }
}
