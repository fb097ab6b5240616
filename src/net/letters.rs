//! Requests about dead letters: each walks one page of one partition of a dead-letter topic, and what it
//! settles is one decision of the group that keeps account of them.
//!
//! - N9 A letter is brought back once: the session reads and copies, the group alone decides whether the
//!   letter was open, in the same tied run as the copy.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of many answers one or two are hoped for"
)]

use std::collections::HashSet;

use serde_bytes::ByteBuf;

use super::group::{ask, topic};
use super::member::{find_group, persist, topics};
use super::out::Out;
use super::refusal::{refused, unknown_topic};
use super::requests::unexpected;
use super::session::Session;
use crate::actors::Link;
use crate::actors::find::Finder;
use crate::actors::group::GroupActor;
use crate::actors::letters::{Letter, Page, SCANNED_MAX};
use crate::actors::reply::Answer;
use crate::domain::group::command::{self, Command};
use crate::domain::group::letters::{GROUP, Returned};
use crate::domain::group::rejection::GroupRejection;
use crate::domain::group::subscription::{Mode, SubscriptionSpec};
use crate::domain::id::{Lane, Offset, PartitionId, PartitionIndex, TopicId};
use crate::domain::partition::Bounds;
use crate::domain::rejection::Rejection;
use crate::domain::topics::Topic;
use crate::wire::code::{Code, Refused};
use crate::wire::letters::{
    DeadLetterInfo, DeadLettersOk, DeadLettersSettled, IDS_MAX, LETTERS_MAX, LetterAction,
    LetterFault, LetterOrigin, LetterPlace, LetterSelection, ListDeadLetters, SettleDeadLetters,
};
use crate::wire::topic::encode_list;

/// The page of a walk that is asked for.
struct Walk {
    topic: Topic,
    place: PartitionId,
    bounds: Bounds,
    /// From here to there.
    from: Offset,
    to: Offset,
    /// Where the walk of this partition ends.
    end: Offset,
    select: LetterSelection,
}

impl Walk {
    async fn begin(
        session: &Session,
        name: &str,
        select: LetterSelection,
        from: Option<LetterPlace>,
    ) -> Result<Self, Refused> {
        if select.ids.len() > IDS_MAX {
            let why = format!("at most {IDS_MAX} message ids can be named at once");
            return Err(Refused::new(Code::InvalidConfig, why));
        }
        let (_, topics) = topic(session, name).await?;
        let topic = topics
            .into_iter()
            .next()
            .ok_or_else(|| unknown_topic(name))?;
        let first = select.partition.unwrap_or(PartitionIndex(0));
        let from = from.unwrap_or(LetterPlace {
            partition: first,
            ..LetterPlace::default()
        });
        if from.partition.0 >= topic.partitions {
            let partitions = topic.partitions;
            return Err(refused(&Rejection::PartitionOutOfRange { partitions }));
        }
        let place = PartitionId {
            topic: topic.id,
            partition: from.partition,
            lane: Lane::ZERO,
        };
        let bounds = finder(session)
            .extent(place)
            .await
            .map_err(|rejection| refused(&rejection))?;
        let end = from
            .end
            .map_or(bounds.high_watermark, |end| end.min(bounds.high_watermark));
        let at = from.offset.max(bounds.start);
        Ok(Self {
            topic,
            place,
            from: at,
            to: Offset(at.0.saturating_add(SCANNED_MAX)).min(end),
            end,
            bounds,
            select,
        })
    }

    /// Nothing but the partition narrows it: no letter has to be looked at.
    fn takes_all(&self) -> bool {
        let LetterSelection {
            group, origin, ids, ..
        } = &self.select;
        group.is_none() && origin.is_none() && ids.is_empty()
    }

    async fn read(
        &self,
        session: &Session,
        group: Option<&Link<GroupActor>>,
        max: u32,
    ) -> Result<Page, Refused> {
        let open = match group {
            None => vec![(self.from, self.to.0.saturating_sub(self.from.0))],
            Some(group) => self.open(group).await?,
        };
        let ids: HashSet<&str> = self.select.ids.iter().map(String::as_str).collect();
        let wanted = |letter: &Letter| {
            let origin = letter.origin.as_ref();
            let is_of = |group: &String| origin.is_some_and(|origin| origin.group == *group);
            let is_from = |topic: &String| origin.is_some_and(|origin| origin.topic == *topic);
            self.select.group.as_ref().is_none_or(is_of)
                && self.select.origin.as_ref().is_none_or(is_from)
                && (ids.is_empty() || ids.contains(letter.body.id.to_string().as_str()))
        };
        let max = usize::try_from(max.clamp(1, LETTERS_MAX)).unwrap_or(1);
        let (range, finder) = ((self.from, self.to), finder(session));
        finder
            .letters(self.place, range, &open, max, wanted)
            .await
            .map_err(|rejection| refused(&rejection))
    }

    /// What of the page is open.
    async fn open(&self, group: &Link<GroupActor>) -> Result<Vec<(Offset, u64)>, Refused> {
        let open = async || {
            let look = Command::OpenLetters {
                place: self.place,
                from: self.from,
                to: self.to,
            };
            ask(group, look).await
        };
        match persist(open).await {
            Answer::Group(command::Answer::OpenLetters(open)) => Ok(open),
            // Nobody has settled any.
            Answer::Refused(Rejection::Group(GroupRejection::UnknownSubscription)) => {
                Ok(vec![(self.from, self.to.0.saturating_sub(self.from.0))])
            }
            other => Err(unexpected(other, &self.topic.name)),
        }
    }

    /// Where the walk goes on.
    fn next(&self, within: Option<Offset>) -> Option<LetterPlace> {
        let offset = within.or((self.to < self.end).then_some(self.to));
        if let Some(offset) = offset {
            return Some(LetterPlace {
                partition: self.place.partition,
                offset,
                end: Some(self.end),
            });
        }
        let partition = PartitionIndex(self.place.partition.0.saturating_add(1));
        let is_more = self.select.partition.is_none() && partition.0 < self.topic.partitions;
        is_more.then_some(LetterPlace {
            partition,
            ..LetterPlace::default()
        })
    }
}

fn finder(session: &Session) -> Finder {
    Finder {
        house: session.shared.house.clone(),
        directory: session.shared.directory.clone(),
    }
}

/// Lists a page of dead letters.
pub(super) async fn list(
    session: &Session,
    request: ListDeadLetters,
    correlation: u64,
    out: &Out,
) -> Result<(), Refused> {
    let walk = Walk::begin(session, &request.topic, request.select, request.from).await?;
    let group = match find_group(session, GROUP, false).await {
        Ok(group) => Some(group),
        Err(refused) if refused.code() == Code::UnknownGroup => None,
        Err(refused) => return Err(refused),
    };
    let page = walk.read(session, group.as_ref(), request.max).await?;
    let next = walk.next(page.next);
    let partition = walk.place.partition;
    let list: Vec<DeadLetterInfo> = page
        .letters
        .into_iter()
        .map(|letter| info(partition, letter))
        .collect();
    out.send(&DeadLettersOk { next }, correlation, encode_list(&list));
    Ok(())
}

fn info(partition: PartitionIndex, letter: Letter) -> DeadLetterInfo {
    DeadLetterInfo {
        partition,
        offset: letter.offset,
        id: letter.body.id.to_string(),
        time: letter.appended,
        key: letter.body.key.map(|key| ByteBuf::from(key.to_vec())),
        value_bytes: letter.body.value.len() as u64,
        origin: letter.origin.map(|origin| LetterOrigin {
            group: origin.group,
            reason: origin.reason,
            attempts: origin.attempts,
            topic: origin.topic,
            partition: origin.partition,
            lane: origin.lane,
            offset: origin.offset,
        }),
    }
}

/// Brings a page of dead letters back, or clears them.
pub(super) async fn settle(
    session: &Session,
    request: SettleDeadLetters,
    correlation: u64,
    out: &Out,
) -> Result<(), Refused> {
    if *session.shared.stopping.borrow() {
        return Err(refused(&Rejection::ShuttingDown));
    }
    let max = match request.max {
        0 => LETTERS_MAX,
        max => max,
    };
    let walk = Walk::begin(session, &request.topic, request.select, request.from).await?;
    let group = subscribed(session, walk.topic.id).await?;
    let (mut faults, mut within) = (Vec::new(), None);
    let (mut cleared, mut returned) = (Vec::new(), Vec::new());
    let mut to_end = false;
    match &request.action {
        LetterAction::Purge if walk.takes_all() && request.max == 0 => {
            to_end = true;
            cleared.push((walk.from, walk.end.0.saturating_sub(walk.from.0)));
        }
        LetterAction::Purge => {
            let page = walk.read(session, Some(&group), max).await?;
            within = page.next;
            cleared.extend(page.letters.iter().map(|letter| (letter.offset, 1)));
        }
        LetterAction::Redrive(to) => {
            let targets = Targets::find(session, to.as_deref(), &walk.topic).await?;
            let page = walk.read(session, Some(&group), max).await?;
            within = page.next;
            let damaged = Rejection::Damaged("the letter".to_owned());
            for offset in &page.unreadable {
                faults.push(fault(&walk, *offset, &refused(&damaged)));
            }
            for letter in &page.letters {
                match targets.copy(letter) {
                    Ok(copied) => returned.push(copied),
                    Err(refused) => faults.push(fault(&walk, letter.offset, &refused)),
                }
            }
        }
    }
    let done = if cleared.is_empty() && returned.is_empty() {
        0
    } else {
        // Not asked again by itself: what it rests on may have changed, and the caller's walk is at hand.
        let command = Command::SettleLetters {
            place: walk.place,
            start: walk.bounds.start,
            cleared,
            returned,
        };
        match ask(&group, command).await {
            Answer::Group(command::Answer::LettersSettled(done)) => done,
            other => return Err(unexpected(other, &request.topic)),
        }
    };
    let next = match to_end {
        true => Walk {
            to: walk.end,
            ..walk
        }
        .next(None),
        false => walk.next(within),
    };
    let settled = DeadLettersSettled { done, next };
    out.send(&settled, correlation, encode_list(&faults));
    Ok(())
}

fn fault(walk: &Walk, offset: Offset, refused: &Refused) -> LetterFault {
    LetterFault {
        partition: walk.place.partition,
        offset,
        code: refused.code().name().to_owned(),
        message: refused.message.clone(),
    }
}

/// The group of letters, with an account of this topic.
async fn subscribed(session: &Session, topic: TopicId) -> Result<Link<GroupActor>, Refused> {
    let group = find_group(session, GROUP, true).await?;
    let place = PartitionId {
        topic,
        partition: PartitionIndex(0),
        lane: Lane::ZERO,
    };
    let known = async || {
        let look = Command::OpenLetters {
            place,
            from: Offset(0),
            to: Offset(0),
        };
        match ask(&group, look).await {
            Answer::Refused(Rejection::Group(GroupRejection::UnknownSubscription)) => {}
            answer => return answer,
        }
        let spec = SubscriptionSpec::new(topic, Mode::Shared);
        match ask(&group, Command::Subscribe(spec)).await {
            // It is there in a moment, whoever has made it.
            Answer::Group(_)
            | Answer::Refused(Rejection::Group(GroupRejection::SubscriptionExists)) => {
                Answer::Refused(Rejection::Retry)
            }
            other => other,
        }
    };
    match persist(known).await {
        Answer::Group(_) => Ok(group),
        other => Err(unexpected(other, "")),
    }
}

/// Where letters go back to.
struct Targets {
    topics: Vec<Topic>,
    /// All to this one.
    to: Option<String>,
    /// The dead-letter topic.
    letters: String,
}

impl Targets {
    async fn find(session: &Session, to: Option<&str>, letters: &Topic) -> Result<Self, Refused> {
        let names = to.map(str::to_owned).into_iter().collect();
        let targets = Self {
            topics: topics(session, names).await?,
            to: to.map(str::to_owned),
            letters: letters.name.clone(),
        };
        match to {
            Some(to) if to == letters.name => Err(to_itself(to)),
            _ => Ok(targets),
        }
    }

    fn copy(&self, letter: &Letter) -> Result<Returned, Refused> {
        let name = match (&self.to, &letter.origin) {
            (Some(to), _) => to,
            (None, Some(origin)) => &origin.topic,
            (None, None) => {
                return Err(Refused::new(
                    Code::UnknownTopic,
                    "nothing says which topic the record comes from: name one to bring it to",
                ));
            }
        };
        if *name == self.letters {
            return Err(to_itself(name));
        }
        let topic = self.topics.iter().find(|topic| topic.name == *name);
        let topic = topic.ok_or_else(|| unknown_topic(name))?;
        let copy = letter
            .back_to(topic, self.to.is_none())
            .map_err(|rejection| refused(&rejection))?;
        Ok((letter.offset, vec![copy]))
    }
}

fn to_itself(name: &str) -> Refused {
    let why = format!("the letters are in {name} already; name another topic to bring them to");
    Refused::new(Code::InvalidConfig, why)
}
