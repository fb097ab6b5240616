//! Values of the application's own types in records, as MessagePack with named fields.
//!
//! Names make fields that come later harmless: a reader ignores those it does not know, and gives those
//! that are absent their `#[serde(default)]`. Any MessagePack library of any language reads them.

use serde::{Deserialize, Serialize};

use super::delivery::Delivery;
use super::error::{DecodeError, EncodeError};
use crate::domain::record::Record;

impl Record {
    /// A record whose value is `value` as MessagePack with named fields;
    /// [`Delivery::decode`] is the way back.
    ///
    /// # Errors
    /// [`EncodeError`] where the type's `Serialize` says that it cannot be.
    ///
    /// ```
    /// #[derive(serde::Serialize)]
    /// struct Order {
    ///     item: String,
    ///     count: u32,
    /// }
    /// let order = Order { item: "rose".into(), count: 42 };
    /// let record = waterwheel::Record::encode(&order)?.key("order-17");
    /// # Ok::<(), waterwheel::client::EncodeError>(())
    /// ```
    pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Self, EncodeError> {
        match rmp_serde::to_vec_named(value) {
            Ok(bytes) => Ok(Self::new(bytes)),
            Err(error) => Err(EncodeError {
                reason: error.to_string(),
            }),
        }
    }
}

impl Delivery {
    /// The value as the type it was [encoded](Record::encode) from, or one that reads the same fields.
    /// Strings and bytes of `T` may borrow from the delivery.
    ///
    /// # Errors
    /// [`DecodeError`] where the value is not MessagePack of such a type.
    ///
    /// ```no_run
    /// # async fn example(mut reader: waterwheel::client::Reader) -> Result<(), Box<dyn std::error::Error>> {
    /// #[derive(serde::Deserialize)]
    /// struct Order<'a> {
    ///     item: &'a str,
    ///     count: u32,
    /// }
    /// while let Some(delivery) = reader.next().await {
    ///     let delivery = delivery?;
    ///     let order = delivery.decode::<Order>()?;
    ///     println!("{} x {}", order.count, order.item);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn decode<'a, T: Deserialize<'a>>(&'a self) -> Result<T, DecodeError> {
        rmp_serde::from_slice(&self.value).map_err(|error| DecodeError {
            partition: self.partition,
            offset: self.offset,
            reason: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::domain::id::MessageId;

    fn delivered(value: impl Into<Bytes>) -> Delivery {
        Delivery {
            topic: Arc::from("orders"),
            partition: 3,
            offset: 17,
            time_ms: 1,
            timestamp_ms: 1,
            id: MessageId::default(),
            key: None,
            value: value.into(),
            tag: None,
            headers: Vec::new(),
            attempt: 0,
            priority: 0,
            lease: None,
            due_ms: None,
            fired_ms: None,
        }
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Order {
        item: String,
        #[serde(default)]
        count: u32,
        parts: BTreeMap<String, Option<i64>>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Later<'a> {
        item: &'a str,
        #[serde(default)]
        colour: Option<String>,
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes(
            item in ".{0,20}",
            count in any::<u32>(),
            parts in prop::collection::btree_map(".{0,5}", any::<Option<i64>>(), 0..5),
        ) {
            let order = Order { item, count, parts };
            let record = Record::encode(&order).unwrap();
            prop_assert_eq!(delivered(record.value).decode::<Order>().unwrap(), order);
        }

        #[test]
        fn whatever_the_bytes_decoding_ends(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = delivered(bytes).decode::<Order>();
        }
    }

    #[test]
    fn fields_come_and_go() {
        let order = Order {
            item: "rose".to_owned(),
            count: 1,
            parts: BTreeMap::new(),
        };
        let delivery = delivered(Record::encode(&order).unwrap().value);
        let later = delivery.decode::<Later>().unwrap();
        assert_eq!(later.item, "rose");
        assert_eq!(later.colour, None);
    }

    #[test]
    fn the_format_is_messagepack_with_names() {
        let record = Record::encode(&BTreeMap::from([("a", 1_u8)])).unwrap();
        assert_eq!(record.value.as_ref(), [0x81, 0xa1, b'a', 1]);
    }

    #[test]
    fn what_is_something_else_says_where_it_lies() {
        let error = delivered("red roses").decode::<Order>().unwrap_err();
        assert_eq!(error.code(), "decode");
        assert!(
            error.to_string().contains("offset 17 of partition 3"),
            "{error}"
        );
    }
}
