//! Dead letters as they are administered: listed, brought back, cleared; a page at a time.
//!
//! A page lies within one partition of the dead-letter topic and is one decision: what it brings back or
//! clears is done whole. Lists travel as frame bodies, MessagePack arrays of maps.

use serde::{Deserialize, Serialize};

use super::frame::header;
use crate::domain::id::{Lane, Offset, PartitionIndex};
use crate::domain::time::WallMs;

/// The most letters of one page.
pub const LETTERS_MAX: u32 = 1000;
/// The most message ids of one selection.
pub const IDS_MAX: usize = 1000;

/// Where a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LetterPlace {
    /// The partition of the dead-letter topic.
    pub partition: PartitionIndex,
    /// The offset in it.
    pub offset: Offset,
    /// Where the partition ended when its first page was made. The walk goes no further, so that it ends
    /// even where what it brings back becomes a dead letter again at once.
    #[serde(default)]
    pub end: Option<Offset>,
}

/// Which letters of a dead-letter topic are meant: all that are open, as far as it is not narrowed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LetterSelection {
    /// Those of this partition of the dead-letter topic.
    #[serde(default)]
    pub partition: Option<PartitionIndex>,
    /// Those of this consumer group.
    #[serde(default)]
    pub group: Option<String>,
    /// Those that come from this topic.
    #[serde(default)]
    pub origin: Option<String>,
    /// Those with one of these message ids; of any id where there is none. At most 1 000.
    #[serde(default)]
    pub ids: Vec<String>,
}

/// Which dead letters there are. Answered by [`DeadLettersOk`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ListDeadLetters {
    /// The dead-letter topic.
    pub topic: String,
    /// Which of its letters.
    #[serde(default)]
    pub select: LetterSelection,
    /// Where the page begins; none for the first.
    #[serde(default)]
    pub from: Option<LetterPlace>,
    /// So many at most, up to 1 000; the broker may give fewer, or none and more to come.
    pub max: u32,
}
header!(ListDeadLetters, ListDeadLetters);

/// The answer to [`ListDeadLetters`]; in the body a list of [`DeadLetterInfo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeadLettersOk {
    /// Where to go on; none at the end.
    #[serde(default)]
    pub next: Option<LetterPlace>,
}
header!(DeadLettersOk, DeadLettersOk);

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeadLetterInfo {
    /// The partition of the dead-letter topic it is in.
    pub partition: PartitionIndex,
    /// Its offset there.
    pub offset: Offset,
    /// Its message id, the one it always had.
    pub id: String,
    /// When it became a dead letter.
    pub time: WallMs,
    /// Its key.
    #[serde(default)]
    pub key: Option<serde_bytes::ByteBuf>,
    /// Bytes of its value.
    pub value_bytes: u64,
    /// Where it comes from, and why it is here; none for a record somebody else put into the topic.
    #[serde(default)]
    pub origin: Option<LetterOrigin>,
}

/// Where a dead letter comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LetterOrigin {
    /// The consumer group that could not consume it.
    pub group: String,
    /// Why, the last time.
    pub reason: String,
    /// How often it was delivered.
    pub attempts: u32,
    /// The topic it was in.
    pub topic: String,
    /// The partition.
    pub partition: PartitionIndex,
    /// The lane: its priority.
    #[serde(default)]
    pub lane: Lane,
    /// The offset.
    pub offset: Offset,
}

/// What is to become of dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LetterAction {
    /// They are published again, under their message ids: to the topic each comes from, or to this one.
    Redrive(Option<String>),
    /// They are done with.
    Purge,
}

/// Bring dead letters back, or clear them. Answered by [`DeadLettersSettled`] once durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettleDeadLetters {
    /// The dead-letter topic.
    pub topic: String,
    /// Which of its letters.
    #[serde(default)]
    pub select: LetterSelection,
    /// Where the page begins; none for the first.
    #[serde(default)]
    pub from: Option<LetterPlace>,
    /// So many at most, up to 1 000; the broker may do fewer, or none and go on. 0 for as many as it likes.
    pub max: u32,
    /// What becomes of them.
    pub action: LetterAction,
}
header!(SettleDeadLetters, SettleDeadLetters);

/// The answer to [`SettleDeadLetters`]; in the body a list of [`LetterFault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeadLettersSettled {
    /// So many were open and are settled now, each once.
    pub done: u64,
    /// Where to go on; none at the end.
    #[serde(default)]
    pub next: Option<LetterPlace>,
}
header!(DeadLettersSettled, DeadLettersSettled);

/// A dead letter that stays where it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LetterFault {
    /// The partition of the dead-letter topic.
    pub partition: PartitionIndex,
    /// The offset in it.
    pub offset: Offset,
    /// The name of the code that says why.
    pub code: String,
    /// Why, and what to do, for people.
    pub message: String,
}
