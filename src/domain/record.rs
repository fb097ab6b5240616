//! A record, and the body it travels and rests in.
//!
//! What comes in is a [`Record`] (what an application sends) or the bytes of a body (what a batch
//! holds); what goes out is the body, or a [`RecordBody`] whose fields are slices of it.
//!
//! # Layout of a body, version 1
//!
//! A MessagePack array, positional:
//!
//! | place | what | type |
//! |---|---|---|
//! | 0 | version | 1 |
//! | 1 | key | bin or nil |
//! | 2 | value | bin |
//! | 3 | headers | array of `[name: str, value: bin]` |
//! | 4 | tag | str or nil |
//! | 5 | message id | bin of 16 bytes |
//!
//! # Layout of a message id
//!
//! A UUID version 7 (RFC 9562): 48 bits of Unix milliseconds big-endian, the version, a 12-bit
//! counter, the variant, 62 random bits. Ids of one generator ascend within a millisecond as long as
//! its counter does.
//!
//! Invariants: R1, decoding is total and copies no payload byte; R2, what was encoded decodes to the
//! same record.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};

use super::batch::Delivery;
use super::id::MessageId;
use super::payload::Payload;
use super::time::WallMs;

/// The version of the body layout this code writes, and the only one it reads.
pub const BODY_VERSION: u8 = 1;

/// MessagePack's markers of what a body is made of.
const NIL: u8 = 0xc0;
const NO_HEADERS: u8 = 0x90;
const BIN_8: u8 = 0xc4;
const BIN_16: u8 = 0xc5;
const BIN_32: u8 = 0xc6;
const SHORT_TEXT: u8 = 0xa0;
const SHORT_TEXT_BYTES: usize = 32;

/// How deep MessagePack may nest in a body: a hostile one must not exhaust the stack.
const NESTING_MAX: usize = 8;

/// UTF-8 text whose bytes may be a slice of a larger buffer: cheap to clone, cheap to cut out.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Text(Bytes);

impl Text {
    /// The text as a string slice.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only valid UTF-8 is ever put in.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Cuts the text `part` out of `whole`, in which it must lie, without copying.
    fn within(whole: &Bytes, part: &str) -> Self {
        Self(slice_of(whole, part.as_bytes()))
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<&String> for Text {
    fn from(text: &String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(Bytes::from(text.into_bytes()))
    }
}

impl Deref for Text {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// A message as an application sends it.
///
/// ```
/// use waterwheel::Record;
/// let record = Record::new("42 roses").key("order-17").tag("flowers").header("shop", "Delft");
/// assert_eq!(record.value.as_ref(), b"42 roses");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Record {
    /// What is sent. May be empty.
    pub value: Bytes,
    /// Records with the same key go to the same partition and keep their order.
    pub key: Option<Bytes>,
    /// A finer class inside the topic, for filters.
    pub tag: Option<Text>,
    /// Named values beside the payload, in order; names may repeat.
    pub headers: Vec<(Text, Bytes)>,
    /// The message's identity; made by the producer where none is given.
    pub id: Option<MessageId>,
    /// When it happened; the moment of sending where none is given.
    pub timestamp: Option<WallMs>,
    /// When consumers shall see it: as soon as it is durable, unless set.
    pub delivery: Delivery,
    /// How urgent it is: 0 is the ordinary level, the topic's highest one below its number of levels.
    pub priority: u8,
}

/// Spans of the named levels of delay, 1 to 18, in milliseconds: 1 s, 5 s, 10 s, 30 s, 1 to 10 min,
/// 20 min, 30 min, 1 h, 2 h.
pub const DELAY_LEVELS_MS: [i64; 18] = [
    1_000, 5_000, 10_000, 30_000, 60_000, 120_000, 180_000, 240_000, 300_000, 360_000, 420_000,
    480_000, 540_000, 600_000, 1_200_000, 1_800_000, 3_600_000, 7_200_000,
];

macro_rules! record_from {
    ($($value:ty),+) => {
        $(impl From<$value> for Record {
            fn from(value: $value) -> Self {
                Self::new(value)
            }
        })+
    };
}

record_from!(&str, String, Vec<u8>, Bytes);

impl Record {
    /// A record with a value and nothing else. Owned values are taken as they are, borrowed ones copied.
    #[must_use]
    pub fn new(value: impl Payload) -> Self {
        Self {
            value: value.into_payload(),
            ..Self::default()
        }
    }

    /// Gives it a key.
    #[must_use]
    pub fn key(mut self, key: impl Payload) -> Self {
        self.key = Some(key.into_payload());
        self
    }

    /// Gives it a tag.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<Text>) -> Self {
        self.tag = Some(tag.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<Text>, value: impl Payload) -> Self {
        self.headers.push((name.into(), value.into_payload()));
        self
    }

    /// Gives it an identity of the sender's own making.
    #[must_use]
    pub fn id(mut self, id: MessageId) -> Self {
        self.id = Some(id);
        self
    }

    /// Gives it a priority: consumer groups are given records of a higher level first.
    #[must_use]
    pub fn priority(mut self, level: u8) -> Self {
        self.priority = level;
        self
    }

    /// Says when it happened: a `SystemTime`, or Unix milliseconds as [`WallMs`].
    #[must_use]
    pub fn timestamp(mut self, timestamp: impl Into<WallMs>) -> Self {
        self.timestamp = Some(timestamp.into());
        self
    }

    /// Consumers see it at this time, to the millisecond, and never before; at once where it has passed.
    #[must_use]
    pub fn deliver_at(mut self, at: impl Into<WallMs>) -> Self {
        self.delivery = Delivery::At(at.into());
        self
    }

    /// Consumers see it so long after the broker has taken it. Spans beyond 292 million years count as
    /// that.
    #[must_use]
    pub fn deliver_after(mut self, span: Duration) -> Self {
        let ms = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        self.delivery = Delivery::After(ms);
        self
    }

    /// Consumers see it after the span of a named level, as in RocketMQ: 0 is at once, what is above 18
    /// counts as 18. See [`DELAY_LEVELS_MS`].
    #[must_use]
    pub fn delay_level(mut self, level: u8) -> Self {
        let level = usize::from(level).min(DELAY_LEVELS_MS.len());
        let span = level
            .checked_sub(1)
            .and_then(|index| DELAY_LEVELS_MS.get(index));
        self.delivery = span.map_or(Delivery::Now, |ms| Delivery::After(*ms));
        self
    }

    /// An upper bound of its body's length in bytes.
    #[must_use]
    pub fn body_bytes_max(&self) -> usize {
        // Array and version 2, key, value, header count and tag up to 5 each, id 2 + 16.
        let fixed = 40;
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| 11 + name.0.len() + value.len())
            .sum();
        fixed
            + self.value.len()
            + self.key.as_ref().map_or(0, Bytes::len)
            + self.tag.as_ref().map_or(0, |tag| tag.0.len())
            + headers
    }
}

/// A body's fields, each a slice of the body.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RecordBody {
    /// The payload.
    pub value: Bytes,
    /// The key, if it has one.
    pub key: Option<Bytes>,
    /// The tag, if it has one.
    pub tag: Option<Text>,
    /// The headers in the sender's order.
    pub headers: Vec<(Text, Bytes)>,
    /// The message's identity.
    pub id: MessageId,
}

/// Why bytes are no record body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// Not the MessagePack array described above.
    #[error("the record's body is not the MessagePack array of a record")]
    Malformed,
    /// A later version.
    #[error(
        "the record's body has version {0}; this client reads version {BODY_VERSION}: update it"
    )]
    Version(u8),
}

#[derive(Serialize)]
struct EncodedBody<'a>(
    u8,
    #[serde(with = "serde_bytes")] Option<&'a [u8]>,
    #[serde(with = "serde_bytes")] &'a [u8],
    EncodedHeaders<'a>,
    Option<&'a str>,
    #[serde(with = "serde_bytes")] &'a [u8],
);

struct EncodedHeaders<'a>(&'a [(Text, Bytes)]);

impl Serialize for EncodedHeaders<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(
            self.0
                .iter()
                .map(|(name, value)| (name.as_str(), serde_bytes::Bytes::new(value))),
        )
    }
}

#[derive(Debug, PartialEq, Deserialize)]
struct DecodedBody<'a>(
    u8,
    #[serde(borrow, with = "serde_bytes")] Option<&'a [u8]>,
    #[serde(borrow, with = "serde_bytes")] &'a [u8],
    #[serde(borrow)] Vec<(&'a str, &'a serde_bytes::Bytes)>,
    #[serde(borrow)] Option<&'a str>,
    #[serde(borrow, with = "serde_bytes")] &'a [u8],
);

/// Appends the body of `record`, whose message has the identity `id`, to `out`.
pub fn encode_body(record: &Record, id: MessageId, out: &mut Vec<u8>) {
    let tag = record.tag.as_deref();
    if record.headers.is_empty() && tag.is_none_or(|tag| tag.len() < SHORT_TEXT_BYTES) {
        encode_bare(record, tag, id, out);
    } else {
        encode_any(record, id, out);
    }
}

/// Any record there can be.
fn encode_any(record: &Record, id: MessageId, out: &mut Vec<u8>) {
    let body = EncodedBody(
        BODY_VERSION,
        record.key.as_deref(),
        &record.value,
        EncodedHeaders(&record.headers),
        record.tag.as_deref(),
        &id.0,
    );
    let written = rmp_serde::encode::write(out, &body);
    assert!(
        written.is_ok(),
        "writing MessagePack into memory cannot fail"
    );
}

/// The record nearly everybody sends, to the same bytes at a fraction of the cost.
fn encode_bare(record: &Record, tag: Option<&str>, id: MessageId, out: &mut Vec<u8>) {
    out.reserve(record.body_bytes_max());
    out.extend([0x96, BODY_VERSION]);
    match &record.key {
        Some(key) => put_bin(out, key),
        None => out.push(NIL),
    }
    put_bin(out, &record.value);
    out.push(NO_HEADERS);
    match tag {
        Some(tag) => {
            out.extend(u8::try_from(tag.len()).map(|length| SHORT_TEXT | length));
            out.extend_from_slice(tag.as_bytes());
        }
        None => out.push(NIL),
    }
    put_bin(out, &id.0);
}

fn put_bin(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    match length {
        [0, 0, 0, short] => out.extend([BIN_8, short]),
        [0, 0, high, low] => out.extend([BIN_16, high, low]),
        [a, b, c, d] => out.extend([BIN_32, a, b, c, d]),
    }
    out.extend_from_slice(bytes);
}

impl RecordBody {
    /// Decodes a body; every field is a slice of `body` (R1).
    ///
    /// # Errors
    /// [`BodyError`] where the bytes are no body, or one of a later version.
    pub fn decode(body: &Bytes) -> Result<Self, BodyError> {
        Self::decode_taken(body.clone())
    }

    /// The same for who needs the body no more: the value becomes what is left of it, without another
    /// share in the buffer behind it.
    ///
    /// # Errors
    /// As [`RecordBody::decode`].
    pub fn decode_taken(mut body: Bytes) -> Result<Self, BodyError> {
        let fields = match Cursor(&body).bare_body() {
            Some(fields) => fields,
            None => decode_any(&body)?,
        };
        let DecodedBody(version, key, value, headers, tag, id) = fields;
        if version != BODY_VERSION {
            return Err(BodyError::Version(version));
        }
        let (key, tag, id, headers) = (
            key.map(|key| slice_of(&body, key)),
            tag.map(|tag| Text::within(&body, tag)),
            MessageId(id.try_into().map_err(|_| BodyError::Malformed)?),
            headers
                .into_iter()
                .map(|(name, value)| (Text::within(&body, name), slice_of(&body, value)))
                .collect(),
        );
        let (at, length) = (value.as_ptr() as usize, value.len());
        let at = at.saturating_sub(body.as_ptr() as usize).min(body.len());
        if length == 0 {
            // Nothing of it is worth keeping the rest for.
            body = Bytes::new();
        } else {
            body.advance(at);
            body.truncate(length);
        }
        Ok(Self {
            value: body,
            key,
            tag,
            headers,
            id,
        })
    }
}

/// Any body there can be.
fn decode_any(body: &[u8]) -> Result<DecodedBody<'_>, BodyError> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(body);
    decoder.set_max_depth(NESTING_MAX);
    DecodedBody::deserialize(&mut decoder).map_err(|_| match body.get(1) {
        Some(version @ 2..=127) => BodyError::Version(*version),
        Some(_) | None => BodyError::Malformed,
    })
}

/// Reads the body nearly every record has, without headers and as [`encode_body`] writes it, at a
/// fraction of what the general decoder takes; whatever is not exactly that is left to it.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn bare_body(mut self) -> Option<DecodedBody<'a>> {
        let [0x96, BODY_VERSION] = self.array()? else {
            return None;
        };
        let key = self.unless_nil(Self::bin)?;
        let value = self.bin()?;
        let [NO_HEADERS] = self.array()? else {
            return None;
        };
        let tag = self.unless_nil(Self::short_text)?;
        let id = self.bin()?;
        Some(DecodedBody(BODY_VERSION, key, value, Vec::new(), tag, id))
    }

    fn unless_nil<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.0.split_first()? {
            (&NIL, rest) => {
                self.0 = rest;
                Some(None)
            }
            _ => read(self).map(Some),
        }
    }

    fn bin(&mut self) -> Option<&'a [u8]> {
        let [marker] = self.array()?;
        let length = match marker {
            BIN_8 => usize::from(u8::from_be_bytes(self.array()?)),
            BIN_16 => usize::from(u16::from_be_bytes(self.array()?)),
            BIN_32 => usize::try_from(u32::from_be_bytes(self.array()?)).ok()?,
            _ => return None,
        };
        self.take(length)
    }

    /// A text of less than 32 bytes.
    fn short_text(&mut self) -> Option<&'a str> {
        let [marker @ 0xa0..=0xbf] = self.array()? else {
            return None;
        };
        std::str::from_utf8(self.take(usize::from(marker & 0x1f))?).ok()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }
}

/// `Bytes::slice_ref`, but an empty part (which may lie anywhere) is an empty `Bytes`.
fn slice_of(whole: &Bytes, part: &[u8]) -> Bytes {
    if part.is_empty() {
        Bytes::new()
    } else {
        whole.slice_ref(part)
    }
}

/// A UUID version 7 of a wall time, a counter (its low 12 bits) and randomness (its low 62 bits).
/// Times before 1970 count as 1970.
#[must_use]
pub fn message_id(at: WallMs, counter: u16, random: u64) -> MessageId {
    let ms = u64::try_from(at.0).unwrap_or(0);
    let [_, _, ms @ ..] = ms.to_be_bytes();
    let [a, b, c, d, e, f] = ms;
    let [high, low] = (0x7000 | (counter & 0x0fff)).to_be_bytes();
    let [g, h, i, j, k, l, m, n] = (1 << 63 | (random & (u64::MAX >> 2))).to_be_bytes();
    MessageId([a, b, c, d, e, f, high, low, g, h, i, j, k, l, m, n])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(record: &Record, id: MessageId) -> Bytes {
        let mut out = Vec::new();
        encode_body(record, id, &mut out);
        assert!(out.len() <= record.body_bytes_max());
        Bytes::from(out)
    }

    fn id() -> MessageId {
        message_id(WallMs(0x0123_4567_89ab), 0xabc, 0x0fed_cba9_8765_4321)
    }

    #[test]
    fn body_has_its_golden_bytes() {
        let record = Record::new("v").key("k").tag("t").header("n", "h");
        let golden = [
            0x96, 1, 0xc4, 1, b'k', 0xc4, 1, b'v', 0x91, 0x92, 0xa1, b'n', 0xc4, 1, b'h', 0xa1,
            b't', 0xc4, 16, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0x7a, 0xbc, 0x8f, 0xed, 0xcb, 0xa9,
            0x87, 0x65, 0x43, 0x21,
        ];
        assert_eq!(encoded(&record, id()).as_ref(), golden);
        let bare = encoded(&Record::new(Bytes::new()), MessageId([7; 16]));
        let mut golden = vec![0x96, 1, 0xc0, 0xc4, 0, 0x90, 0xc0, 0xc4, 16];
        golden.extend([7; 16]);
        assert_eq!(bare.as_ref(), golden);
    }

    #[test]
    fn message_id_is_a_version_7_uuid_that_ascends_with_its_counter() {
        assert_eq!(id().to_string(), "01234567-89ab-7abc-8fed-cba987654321");
        assert!(message_id(WallMs(5), 1, u64::MAX) < message_id(WallMs(5), 2, 0));
        assert!(message_id(WallMs(5), 4095, u64::MAX) < message_id(WallMs(6), 0, 0));
    }

    #[test]
    fn levels_have_their_spans_and_end_at_18() {
        let level = |level| Record::new("x").delay_level(level).delivery;
        assert_eq!(level(0), Delivery::Now);
        assert_eq!(level(1), Delivery::After(1_000));
        assert_eq!(level(5), Delivery::After(60_000));
        assert_eq!(level(18), Delivery::After(7_200_000));
        assert_eq!(level(200), level(18));
    }

    #[test]
    fn a_later_version_is_named() {
        let mut body = encoded(&Record::new("v"), id()).to_vec();
        body[1] = 2;
        assert_eq!(
            RecordBody::decode(&Bytes::from(body)),
            Err(BodyError::Version(2))
        );
        // A later version of another shape too.
        let body = Bytes::from_static(&[0x92, 9, 0xc0]);
        assert_eq!(RecordBody::decode(&body), Err(BodyError::Version(9)));
    }

    #[test]
    fn r1_fields_are_slices_of_the_body() {
        let record = Record::new(vec![7u8; 100]).key("key").tag("tag");
        let body = encoded(&record, id());
        let range = body.as_ptr_range();
        let decoded = RecordBody::decode(&body).unwrap();
        for field in [&decoded.value, decoded.key.as_ref().unwrap()] {
            assert!(range.contains(&field.as_ptr()));
        }
        assert!(range.contains(&decoded.tag.unwrap().as_ptr()));
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        let text = || "\\PC{0,20}".prop_map(Text::from);
        (
            bytes(),
            proptest::option::of(bytes()),
            proptest::option::of(text()),
            proptest::collection::vec((text(), bytes()), 0..4),
        )
            .prop_map(|(value, key, tag, headers)| Record {
                value,
                key,
                tag,
                headers,
                id: None,
                timestamp: None,
                delivery: Delivery::Now,
                priority: 0,
            })
    }

    proptest! {
        #[test]
        fn the_short_way_to_encode_writes_nothing_else(record in any_record(), raw in any::<[u8; 16]>(), long in 0usize..3) {
            let mut record = record;
            // Each way to write a length.
            let value = [record.value.len(), 300, 70_000][long];
            record.value = vec![5; value].into();
            let mut expected = Vec::new();
            encode_any(&record, MessageId(raw), &mut expected);
            prop_assert_eq!(encoded(&record, MessageId(raw)), expected);
        }

        #[test]
        fn r2_what_was_encoded_decodes_to_the_same(record in any_record(), raw in any::<[u8; 16]>()) {
            let decoded = RecordBody::decode(&encoded(&record, MessageId(raw))).unwrap();
            prop_assert_eq!(decoded.value, record.value);
            prop_assert_eq!(decoded.key, record.key);
            prop_assert_eq!(decoded.tag, record.tag);
            prop_assert_eq!(decoded.headers, record.headers);
            prop_assert_eq!(decoded.id, MessageId(raw));
        }

        /// The short way answers as the general one does, or leaves it to that.
        #[test]
        fn the_short_way_to_decode_tells_nothing_else(record in any_record(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in 0usize..400) {
            let mut body = encoded(&record, id()).to_vec();
            let expected = Cursor(&body).bare_body();
            prop_assert_eq!(expected.is_some(), record.headers.is_empty() && record.tag.as_ref().is_none_or(|tag| tag.len() < 32));
            let at = at.index(body.len());
            body[at] = byte;
            body.truncate(cut);
            if let Some(fields) = Cursor(&body).bare_body() {
                prop_assert_eq!(decode_any(&body), Ok(fields));
            }
        }

        #[test]
        fn r1_decoding_any_bytes_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = RecordBody::decode(&Bytes::from(bytes));
        }

        #[test]
        fn r1_decoding_a_damaged_body_is_total(record in any_record(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut body = encoded(&record, id()).to_vec();
            let at = at.index(body.len());
            body[at] = byte;
            let _ = RecordBody::decode(&Bytes::from(body));
        }
    }
}
