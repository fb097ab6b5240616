//! What a record's key, value or header may be given as.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

/// What becomes the bytes of a record: owned buffers as they are, without a copy; borrowed text and bytes by
/// copying them. A [`Bytes`], also one made by [`Bytes::from_static`], is taken as it is.
pub trait Payload {
    /// The bytes.
    fn into_payload(self) -> Bytes;
}

macro_rules! owned {
    ($($kind:ty),+) => {
        $(impl Payload for $kind {
            fn into_payload(self) -> Bytes {
                self.into()
            }
        })+
    };
}

macro_rules! borrowed {
    ($($kind:ty),+) => {
        $(impl Payload for $kind {
            fn into_payload(self) -> Bytes {
                Bytes::copy_from_slice(self.as_ref())
            }
        })+
    };
}

owned!(Bytes, BytesMut, Vec<u8>, Box<[u8]>, String);
borrowed!(&str, &[u8], &Vec<u8>, &String);

impl Payload for &Bytes {
    fn into_payload(self) -> Bytes {
        self.clone()
    }
}

impl<const LENGTH: usize> Payload for [u8; LENGTH] {
    fn into_payload(self) -> Bytes {
        Bytes::copy_from_slice(&self)
    }
}

impl<const LENGTH: usize> Payload for &[u8; LENGTH] {
    fn into_payload(self) -> Bytes {
        Bytes::copy_from_slice(self)
    }
}

impl Payload for Cow<'_, str> {
    fn into_payload(self) -> Bytes {
        self.into_owned().into()
    }
}

impl Payload for Cow<'_, [u8]> {
    fn into_payload(self) -> Bytes {
        self.into_owned().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::record::Record;

    #[test]
    fn what_is_owned_is_not_copied_and_what_is_borrowed_need_not_live_on() {
        let owned = Bytes::from(vec![1, 2, 3]);
        let at = owned.as_ptr();
        assert_eq!(owned.into_payload().as_ptr(), at);
        let owned = vec![1, 2, 3];
        let at = owned.as_ptr();
        assert_eq!(owned.into_payload().as_ptr(), at);

        fn sale(id: &str, count: u64) -> Record {
            Record::new(count.to_be_bytes())
                .key(id)
                .tag(id)
                .header(id, b"bin")
        }
        let record = {
            let id = "order-17".to_owned();
            sale(&id, 42)
        };
        assert_eq!(record.value, 42_u64.to_be_bytes()[..]);
        assert_eq!(record.key.as_deref(), Some(&b"order-17"[..]));
        assert_eq!(record.tag.as_deref(), Some("order-17"));
        assert_eq!(record.headers, [("order-17".into(), Bytes::from("bin"))]);
    }
}
