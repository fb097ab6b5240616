//! The directory's shell: answers, starts owners, ends them, and makes those that fail anew.

use waterwheel::domain::commit::Need;
use waterwheel::domain::id::{Lane, OwnerId, PartitionIndex, Token};
use waterwheel::domain::rejection::Rejection;
use waterwheel::domain::time::WallMs;
use waterwheel::domain::topics;

use super::house::House;
use super::message::{Answer, Message, To};
use super::recovery::{directory_changes, no_head};
use super::shell::Shell;

impl House {
    pub(crate) fn directory(&mut self, message: Message) {
        let mut effects = Vec::new();
        match message {
            Message::Do { command, reply } => {
                let token = self.token();
                self.asks.insert(token, reply);
                self.directory.handle(token, command, &mut effects);
            }
            Message::Applied(entries) => {
                entries
                    .iter()
                    .for_each(|entry| self.directory.apply(entry, &mut effects));
            }
            Message::Fenced {
                incarnation,
                rejection,
            } => {
                if self
                    .author
                    .is_none_or(|author| author.incarnation > incarnation)
                {
                    return;
                }
                self.directory.reset(&rejection, &mut effects);
                if rejection != Rejection::LogSealed {
                    self.author = None;
                    self.tell(
                        To::Commit,
                        Message::Begin {
                            owner: OwnerId::DIRECTORY,
                            address: 0,
                        },
                    );
                }
            }
            Message::WriteRows { round, .. } => {
                let changes = directory_changes(&mut self.directory);
                self.tell(To::Store, Message::Write(changes));
                let owner = OwnerId::DIRECTORY;
                self.tell(To::Checkpoint, Message::RowsWritten { round, owner });
            }
            Message::StartOwner { owner } => {
                if self.start(owner).is_none() {
                    self.leave_wheel(owner);
                    self.tell(To::Checkpoint, Message::Gone { owner });
                }
            }
            Message::RestateOwner {
                owner: OwnerId::DIRECTORY,
            } => {
                effects.push(self.directory.restate());
            }
            Message::RestateOwner { owner } => {
                if let Some(to) = self.start(owner) {
                    self.tell(to, Message::Restate);
                }
            }
            Message::InspectOwner {
                owner,
                segment,
                from,
                end,
            } => {
                if let Some(to) = self.start(owner) {
                    self.tell(to, Message::Inspect { segment, from, end });
                }
            }
            Message::RetainAll { now } => self.retain_all(now),
            other => panic!("not for the directory: {other:?}"),
        }
        self.perform(effects);
    }

    fn retain_all(&mut self, now: WallMs) {
        let limited: Vec<_> = self
            .directory
            .iter()
            .filter(|topic| topic.config.retention_bytes.is_some())
            .map(|topic| {
                (
                    topic.name.clone(),
                    topic.partitions,
                    topic.config.retention_bytes,
                )
            })
            .collect();
        for (name, partitions, retention_bytes) in limited {
            for partition in 0..partitions {
                if let Some(to) = self.locate(&name, partition) {
                    self.tell(
                        to,
                        Message::Retain {
                            now,
                            retention_bytes,
                        },
                    );
                }
            }
        }
    }

    fn perform(&mut self, effects: Vec<topics::Effect>) {
        for effect in effects {
            match effect {
                topics::Effect::Persist(drafts) => {
                    let author = self.author.expect("it takes messages only with a life");
                    let drafts = drafts
                        .into_iter()
                        .map(|draft| (OwnerId::DIRECTORY, draft))
                        .collect();
                    let (need, ticket) = (Need::Housekeeping, None);
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
                topics::Effect::Topic(token, topic) => self.answers(token, Answer::Topic(topic)),
                topics::Effect::Producer(token, id) => self.answers(token, Answer::Producer(id)),
                topics::Effect::Refuse(token, why) => self.answers(token, Answer::Refused(why)),
                // This simulation asks for no groups; topics are watched by groups alone.
                topics::Effect::Group(..)
                | topics::Effect::GroupDeleted(_)
                | topics::Effect::Changed(_) => {}
                topics::Effect::Dropped(ranges) => {
                    let gone: Vec<_> = self.shells.keys().copied().collect();
                    let is_gone = |owner: &OwnerId| ranges.iter().any(|r| r.contains(*owner));
                    gone.into_iter()
                        .filter(is_gone)
                        .for_each(|owner| self.dismiss(owner));
                }
            }
        }
    }

    fn answers(&mut self, token: Token, answer: Answer) {
        if let Some(reply) = self.asks.remove(&token) {
            self.answer(reply, answer);
        }
    }

    /// The partition's mailbox, its actor started if need be.
    pub(crate) fn locate(&mut self, name: &str, partition: u32) -> Option<To> {
        let owner = self
            .directory
            .named(name)?
            .owner(PartitionIndex(partition), Lane::ZERO)?;
        if !self.shells.contains_key(&owner) {
            self.addresses += 1;
            let address = self.addresses;
            self.shells.insert(owner, Shell::new(address));
            self.tell(To::Commit, Message::Begin { owner, address });
        }
        Some(To::Owner(owner, self.shells[&owner].address))
    }

    fn start(&mut self, owner: OwnerId) -> Option<To> {
        let id = self
            .directory
            .iter()
            .find_map(|topic| topic.partition_of(owner))?;
        let name = self.directory.topic(id.topic)?.name.clone();
        self.locate(&name, id.partition.0)
    }

    /// An actor's end: whoever waits for it hears of it.
    fn end(&mut self, owner: OwnerId, rejection: &Rejection) {
        let Some(shell) = self.shells.remove(&owner) else {
            return;
        };
        for reply in shell.asks.into_values() {
            self.answer(reply, Answer::Refused(rejection.clone()));
        }
        for to in [
            To::Owner(owner, shell.address),
            To::Awaiting(owner, shell.address),
        ] {
            self.boxes
                .remove(&to)
                .into_iter()
                .flatten()
                .for_each(|message| self.lost(message));
        }
    }

    fn dismiss(&mut self, owner: OwnerId) {
        self.end(owner, &Rejection::UnknownTopic);
        self.links.remove(&owner);
        self.leave_wheel(owner);
        self.tell(To::Store, Message::Write(vec![no_head(owner)]));
        self.tell(To::Checkpoint, Message::Gone { owner });
    }

    /// An actor fails: another is made from its rows and the log.
    pub(crate) fn fail(&mut self, owner: OwnerId) {
        self.end(owner, &Rejection::Retry);
        self.start(owner);
    }
}
