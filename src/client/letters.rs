//! Dead letters: records a consumer group gave up, as they lie in their topic.
//!
//! A letter is open until it is brought back or cleared, each of which happens once, however often it is
//! asked for and whatever is killed meanwhile. Reading the dead-letter topic, or consuming it with a group,
//! changes nothing about that.

use bytes::Bytes;

use super::error::AdminError;
use super::{Client, MessageId};
use crate::domain::id::PartitionIndex;
use crate::wire::letters::{
    DeadLetterInfo, DeadLettersOk, DeadLettersSettled, IDS_MAX, LETTERS_MAX, LetterAction,
    LetterPlace, LetterSelection, ListDeadLetters, SettleDeadLetters,
};
pub use crate::wire::letters::{LetterFault, LetterOrigin};
use crate::wire::topic::decode_list;

/// Letters a page has unless asked otherwise.
const PAGE_DEFAULT: u32 = 100;

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The partition of the dead-letter topic it is in.
    pub partition: u32,
    /// Its offset there.
    pub offset: u64,
    /// Its message id, the one it always had.
    pub id: MessageId,
    /// When it became a dead letter, in Unix milliseconds.
    pub time_ms: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Bytes of its value; to see it, read the dead-letter topic at this partition and offset.
    pub value_bytes: u64,
    /// Group, reason, attempts, and where it comes from; none for a record that somebody else put into the
    /// topic.
    pub origin: Option<LetterOrigin>,
}

/// What came of bringing letters back, or of clearing them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LettersDone {
    /// So many were open, and are back or cleared now, durably.
    pub done: u64,
    /// Those that stay where they are, and why. At most 1 000 are listed.
    pub faults: Vec<LetterFault>,
    /// How many stay where they are.
    pub faulty: u64,
}

/// Which letters of one dead-letter topic, and what to do with them; made by [`Client::dead_letters`].
/// Where nothing narrows it, all that are open are meant.
///
/// ```no_run
/// # async fn example(client: waterwheel::Client) -> Result<(), Box<dyn std::error::Error>> {
/// for topic in client.dead_letter_topics("kitchen").await? {
///     for letter in client.dead_letters(&topic).of_group("kitchen").list().await? {
///         if let Some(origin) = &letter.origin {
///             println!("{}: {} after {} attempts", letter.id, origin.reason, origin.attempts);
///         }
///     }
///     let done = client.dead_letters(&topic).of_group("kitchen").max(100).redrive().await?;
///     println!("{} are back, {} stay", done.done, done.faulty);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing happens before `page`, `redrive` or `purge` is called"]
pub struct DeadLetters {
    client: Client,
    topic: String,
    select: LetterSelection,
    page: u32,
    max: u64,
    from: Option<LetterPlace>,
    is_over: bool,
}

impl Client {
    /// The letters of a dead-letter topic: `<group>.dead-letters`, unless the retry policy of the
    /// subscription names another ([`Client::dead_letter_topics`]).
    pub fn dead_letters(&self, topic: &str) -> DeadLetters {
        DeadLetters {
            client: self.clone(),
            topic: topic.to_owned(),
            select: LetterSelection::default(),
            page: PAGE_DEFAULT,
            max: u64::MAX,
            from: None,
            is_over: false,
        }
    }

    /// The topics a group's dead letters go to, by its subscriptions; some may not be there yet.
    ///
    /// # Errors
    /// Refused with `unknown-group`; otherwise as for all requests.
    pub async fn dead_letter_topics(&self, group: &str) -> Result<Vec<String>, AdminError> {
        let subscriptions = self.describe_group(group).await?.state.subscriptions;
        let mut topics: Vec<String> = subscriptions
            .into_iter()
            .map(|subscription| {
                let named = subscription.retry.and_then(|retry| retry.dead_letter_topic);
                named.unwrap_or_else(|| crate::domain::group::dead::topic_of(group))
            })
            .collect();
        topics.sort_unstable();
        topics.dedup();
        Ok(topics)
    }
}

impl DeadLetters {
    /// Only those in this partition of the dead-letter topic.
    pub fn partition(mut self, partition: u32) -> Self {
        self.select.partition = Some(PartitionIndex(partition));
        self
    }

    /// Only those this consumer group gave up.
    pub fn of_group(mut self, group: &str) -> Self {
        self.select.group = Some(group.to_owned());
        self
    }

    /// Only those that come from this topic.
    pub fn of_topic(mut self, topic: &str) -> Self {
        self.select.origin = Some(topic.to_owned());
        self
    }

    /// Only those with one of these message ids, at most 1 000.
    pub fn ids(mut self, ids: impl IntoIterator<Item = MessageId>) -> Self {
        self.select.ids = ids.into_iter().map(|id| id.to_string()).collect();
        self
    }

    /// So many at most. Default: all.
    pub fn max(mut self, letters: u64) -> Self {
        self.max = letters;
        self
    }

    /// So many a page at most. Default 100; the broker gives up to 1 000.
    pub fn page_size(mut self, letters: u32) -> Self {
        self.page = letters.clamp(1, LETTERS_MAX);
        self
    }

    /// The next page of open letters, in the order of partition and offset; none after the last. A page may
    /// be empty, where none of many was wanted.
    ///
    /// # Errors
    /// Refused with `unknown-topic`, `partition-out-of-range`; otherwise as for all requests.
    pub async fn page(&mut self) -> Result<Option<Vec<DeadLetter>>, AdminError> {
        if self.is_over || self.max == 0 {
            return Ok(None);
        }
        self.check()?;
        let request = ListDeadLetters {
            topic: self.topic.clone(),
            select: self.select.clone(),
            from: self.from,
            max: self.wanted(self.page),
        };
        let (DeadLettersOk { next }, body) = self.client.ask(&request).await?;
        let list: Vec<DeadLetterInfo> = decode_list(&body).map_err(AdminError::Protocol)?;
        self.max = self.max.saturating_sub(list.len() as u64);
        self.go_on(next);
        let letters: Result<Vec<DeadLetter>, AdminError> = list.into_iter().map(letter).collect();
        letters.map(Some)
    }

    /// All of them, or as many as [`DeadLetters::max`] says.
    ///
    /// # Errors
    /// As [`DeadLetters::page`].
    pub async fn list(mut self) -> Result<Vec<DeadLetter>, AdminError> {
        let mut letters = Vec::new();
        while let Some(page) = self.page().await? {
            letters.extend(page);
        }
        Ok(letters)
    }

    /// Publishes them again, under their message ids, each to the topic and partition it comes from: there
    /// its attempts count from one. Those that have been brought back or cleared before are left out, so
    /// that this may be called again after an error or a crash. What becomes a dead letter again meanwhile
    /// is not brought back a second time.
    ///
    /// # Errors
    /// Refused with `unknown-topic`, `partition-out-of-range`; otherwise as for all requests. Pages that were
    /// done before stay done.
    pub async fn redrive(self) -> Result<LettersDone, AdminError> {
        self.settle(LetterAction::Redrive(None)).await
    }

    /// As [`DeadLetters::redrive`], but all to one topic: where a letter has a key that decides about its
    /// partition.
    ///
    /// # Errors
    /// As [`DeadLetters::redrive`]; and `invalid-config` for the dead-letter topic itself.
    pub async fn redrive_to(self, topic: &str) -> Result<LettersDone, AdminError> {
        self.settle(LetterAction::Redrive(Some(topic.to_owned())))
            .await
    }

    /// Clears them: they are done with, and are not listed any more. Their records stay in the dead-letter
    /// topic until its retention takes them.
    ///
    /// # Errors
    /// As [`DeadLetters::redrive`].
    pub async fn purge(self) -> Result<LettersDone, AdminError> {
        self.settle(LetterAction::Purge).await
    }

    async fn settle(mut self, action: LetterAction) -> Result<LettersDone, AdminError> {
        self.check()?;
        let mut done = LettersDone::default();
        while !self.is_over && self.max > 0 {
            let request = SettleDeadLetters {
                topic: self.topic.clone(),
                select: self.select.clone(),
                from: self.from,
                max: match self.max {
                    u64::MAX => 0,
                    _ => self.wanted(LETTERS_MAX),
                },
                action: action.clone(),
            };
            let (DeadLettersSettled { done: now, next }, body) = self.client.ask(&request).await?;
            let faults: Vec<LetterFault> = decode_list(&body).map_err(AdminError::Protocol)?;
            done.done += now;
            done.faulty += faults.len() as u64;
            let room = IDS_MAX.saturating_sub(done.faults.len());
            done.faults.extend(faults.into_iter().take(room));
            if self.max != u64::MAX {
                self.max = self.max.saturating_sub(now);
            }
            self.go_on(next);
        }
        Ok(done)
    }

    fn check(&self) -> Result<(), AdminError> {
        if self.select.ids.len() > IDS_MAX {
            let why = format!("at most {IDS_MAX} message ids can be named at once");
            return Err(AdminError::Protocol(why));
        }
        Ok(())
    }

    fn wanted(&self, page: u32) -> u32 {
        u32::try_from(self.max).unwrap_or(u32::MAX).min(page)
    }

    fn go_on(&mut self, next: Option<LetterPlace>) {
        self.is_over = next.is_none();
        self.from = next;
    }
}

fn letter(info: DeadLetterInfo) -> Result<DeadLetter, AdminError> {
    let id = uuid::Uuid::parse_str(&info.id)
        .map_err(|_| AdminError::Protocol(format!("{} is no message id", info.id)))?;
    Ok(DeadLetter {
        partition: info.partition.0,
        offset: info.offset.0,
        id: MessageId(*id.as_bytes()),
        time_ms: info.time.0,
        key: info.key.map(|key| Bytes::from(key.into_vec())),
        value_bytes: info.value_bytes,
        origin: info.origin,
    })
}
