//! A record as one JSON object: what `consume --format json` prints and `produce --framing json` takes.
//!
//! | field | what | taken back |
//! |---|---|---|
//! | `topic`, `partition`, `offset`, `time_ms` | where and when it was stored | ignored |
//! | `id` | the message's identity, a UUID | yes; a new one where there is none |
//! | `key` or `key_base64` | UTF-8, or anything; `"key":null` without a key | yes |
//! | `value` or `value_base64` | UTF-8, or anything | yes, required |
//! | `tag` | text or null | yes |
//! | `priority` | the level, where it is not 0 | yes |
//! | `headers` | array of `{"name", "value" or "value_base64"}`, in order | yes; also an object of texts |
//!
//! Other fields are ignored, so that what a later version prints can be taken. What was printed and
//! taken back is the same record: J1. Nothing given is dropped in silence: both forms of one field
//! are refused.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::client::{Delivery, MessageId, Record};

#[derive(Serialize)]
struct Printed<'a> {
    topic: &'a str,
    partition: u32,
    offset: u64,
    time_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fired_ms: Option<i64>,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(flatten)]
    value: PrintedValue<'a>,
    #[serde(skip_serializing_if = "is_ordinary")]
    priority: u8,
    tag: Option<&'a str>,
    headers: Vec<PrintedHeader<'a>>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes fields by reference"
)]
fn is_ordinary(priority: &u8) -> bool {
    *priority == 0
}

#[derive(Serialize)]
struct PrintedHeader<'a> {
    name: &'a str,
    #[serde(flatten)]
    value: PrintedValue<'a>,
}

#[derive(Serialize)]
enum PrintedValue<'a> {
    #[serde(rename = "value")]
    Text(&'a str),
    #[serde(rename = "value_base64")]
    Bytes(String),
}

impl<'a> From<&'a Bytes> for PrintedValue<'a> {
    fn from(value: &'a Bytes) -> Self {
        match std::str::from_utf8(value) {
            Ok(text) => Self::Text(text),
            Err(_) => Self::Bytes(BASE64.encode(value)),
        }
    }
}

/// Appends a delivery as one line.
pub fn write_delivery(delivery: &Delivery, out: &mut Vec<u8>) {
    let (key, key_base64) = match delivery.key.as_ref().map(PrintedValue::from) {
        None => (Some(None), None),
        Some(PrintedValue::Text(text)) => (Some(Some(text)), None),
        Some(PrintedValue::Bytes(base64)) => (None, Some(base64)),
    };
    let printed = Printed {
        topic: &delivery.topic,
        partition: delivery.partition,
        offset: delivery.offset,
        time_ms: delivery.time_ms,
        due_ms: delivery.due_ms,
        fired_ms: delivery.fired_ms,
        id: delivery.id.to_string(),
        key,
        key_base64,
        value: (&delivery.value).into(),
        priority: delivery.priority,
        tag: delivery.tag.as_deref(),
        headers: delivery
            .headers
            .iter()
            .map(|(name, value)| PrintedHeader {
                name,
                value: value.into(),
            })
            .collect(),
    };
    write_json(&printed, out);
    out.push(b'\n');
}

/// Appends anything as JSON.
pub(super) fn write_json(value: &impl Serialize, out: &mut Vec<u8>) {
    let written = serde_json::to_writer(out, value);
    assert!(
        written.is_ok(),
        "maps with text keys can be written to memory as JSON"
    );
}

#[derive(Deserialize)]
struct Taken {
    id: Option<String>,
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    tag: Option<String>,
    #[serde(default)]
    priority: u8,
    #[serde(default)]
    headers: Option<TakenHeaders>,
}

#[derive(Deserialize)]
#[serde(expecting = r#"a header as {"name":...,"value":...}"#)]
struct TakenHeader {
    name: String,
    value: Option<String>,
    value_base64: Option<String>,
}

struct TakenHeaders(Vec<TakenHeader>);

impl<'de> Deserialize<'de> for TakenHeaders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = TakenHeaders;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#"headers as [{"name":...,"value":...}] or {"NAME":"VALUE"}"#)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<TakenHeaders, A::Error> {
                let mut headers = Vec::new();
                while let Some(header) = seq.next_element()? {
                    headers.push(header);
                }
                Ok(TakenHeaders(headers))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TakenHeaders, A::Error> {
                let mut headers = Vec::new();
                while let Some((name, value)) = map.next_entry()? {
                    headers.push(TakenHeader {
                        name,
                        value: Some(value),
                        value_base64: None,
                    });
                }
                Ok(TakenHeaders(headers))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Reads the object that stands for a record.
///
/// # Errors
/// What is wrong with it.
pub fn parse_record(line: &[u8]) -> Result<Record, String> {
    let taken: Taken = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let value = either("value", taken.value, taken.value_base64)?
        .ok_or("it has neither \"value\" nor \"value_base64\"")?;
    let mut record = Record::new(value);
    record.key = either("key", taken.key, taken.key_base64)?;
    record.tag = taken.tag.map(Into::into);
    record.priority = taken.priority;
    if let Some(id) = taken.id {
        let id = uuid::Uuid::parse_str(&id).map_err(|_| format!("its id {id:?} is no UUID"))?;
        record.id = Some(MessageId(id.into_bytes()));
    }
    for header in taken.headers.map(|headers| headers.0).unwrap_or_default() {
        let value = either("value", header.value, header.value_base64)?
            .ok_or_else(|| format!("its header {:?} has no value", header.name))?;
        record = record.header(header.name, value);
    }
    Ok(record)
}

fn either(
    name: &str,
    text: Option<String>,
    base64: Option<String>,
) -> Result<Option<Bytes>, String> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(format!("it has both {name:?} and \"{name}_base64\"")),
        (Some(text), None) => Ok(Some(Bytes::from(text))),
        (None, Some(base64)) => match BASE64.decode(base64) {
            Ok(bytes) => Ok(Some(Bytes::from(bytes))),
            Err(error) => Err(format!("its {name}_base64 is no base64: {error}")),
        },
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::domain::record::Text;
    use proptest::prelude::*;

    /// A delivery of `record`.
    pub(crate) fn delivery(record: &Record) -> Delivery {
        Delivery {
            topic: "orders".into(),
            partition: 3,
            offset: 42,
            time_ms: 1_700_000_000_123,
            due_ms: None,
            fired_ms: None,
            timestamp_ms: 5,
            id: record.id.unwrap_or_default(),
            key: record.key.clone(),
            value: record.value.clone(),
            tag: record.tag.clone(),
            headers: record.headers.clone(),
            attempt: 0,
            priority: record.priority,
            lease: None,
        }
    }

    fn printed(record: &Record) -> String {
        let mut out = Vec::new();
        write_delivery(&delivery(record), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_delivery_is_printed_with_the_documented_fields() {
        let record = Record::new("42 \"roses\"\n")
            .key("order-17")
            .tag("flowers")
            .header("shop", "Delft")
            .header("raw", vec![0xff])
            .id(MessageId([0x11; 16]));
        assert_eq!(
            printed(&record),
            concat!(
                r#"{"topic":"orders","partition":3,"offset":42,"time_ms":1700000000123,"#,
                r#""id":"11111111-1111-1111-1111-111111111111","key":"order-17","#,
                r#""value":"42 \"roses\"\n","tag":"flowers","#,
                r#""headers":[{"name":"shop","value":"Delft"},{"name":"raw","value_base64":"/w=="}]}"#,
                "\n"
            )
        );
    }

    #[test]
    fn what_is_no_text_is_base64_and_what_is_not_there_is_null() {
        let line = printed(&Record::new(vec![0xfe, 0xff]));
        assert!(
            line.contains(r#""key":null,"value_base64":"/v8=","tag":null,"headers":[]"#),
            "{line}"
        );
        let line = printed(&Record::new("").key(vec![0x80]));
        assert!(
            line.contains(r#""key_base64":"gA==","value":"","#),
            "{line}"
        );
    }

    #[test]
    fn a_value_is_all_a_record_needs() {
        let record =
            parse_record(br#"{"value":"v","colour":"red","headers":{"b":"2","a":"1"}}"#).unwrap();
        assert_eq!(record, Record::new("v").header("b", "2").header("a", "1"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let cases: [(&str, &str); 8] = [
            ("{", "EOF"),
            ("[]", "invalid"),
            (r#"{"key":"k"}"#, "neither"),
            (r#"{"value":"a","value_base64":""}"#, "both"),
            (r#"{"value":"a","key":"k","key_base64":""}"#, "both"),
            (r#"{"value_base64":"!"}"#, "base64"),
            (r#"{"value":"a","id":"17"}"#, "UUID"),
            (r#"{"value":"a","headers":[{"name":"n"}]}"#, "no value"),
        ];
        for (line, wanted) in cases {
            let said = parse_record(line.as_bytes()).unwrap_err();
            assert!(said.contains(wanted), "{line}: {said}");
        }
    }

    /// Any record a sender can make, with an id.
    pub(crate) fn any_record() -> impl Strategy<Value = Record> {
        let bytes = || {
            prop_oneof![
                "\\PC{0,20}".prop_map(Bytes::from),
                proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from),
            ]
        };
        let text = || "\\PC{0,8}".prop_map(Text::from);
        let headers = proptest::collection::vec((text(), bytes()), 0..3);
        (
            bytes(),
            proptest::option::of(bytes()),
            proptest::option::of(text()),
            headers,
            any::<[u8; 16]>(),
        )
            .prop_map(|(value, key, tag, headers, id)| {
                let mut record = Record::new(value).id(MessageId(id));
                record.key = key;
                record.tag = tag;
                record.headers = headers;
                record
            })
    }

    proptest! {
        #[test]
        fn j1_what_was_printed_is_taken_back_as_the_same_record(record in any_record()) {
            let line = printed(&record);
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert_eq!(parse_record(line.as_bytes()).unwrap(), record);
        }

        #[test]
        fn reading_any_bytes_is_total(line in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse_record(&line);
        }
    }
}
