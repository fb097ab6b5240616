//! A body in the pieces it came in.
//!
//! A large batch arrives in several datagrams. Putting it together would copy every byte once more on its
//! way to the log, which copies it anyway; so it stays in pieces until whoever needs it whole asks.

use std::fmt;

use bytes::Bytes;

/// Bytes in one or more pieces; equal if the bytes are, however they are cut.
#[derive(Clone, Default)]
pub struct Body {
    pieces: Pieces,
    len: usize,
    crc: Option<u32>,
}

#[derive(Clone)]
enum Pieces {
    One(Bytes),
    Many(Vec<Bytes>),
}

impl Default for Pieces {
    fn default() -> Self {
        Self::One(Bytes::new())
    }
}

impl Body {
    /// Puts pieces one behind the other.
    #[must_use]
    pub fn from_pieces(mut pieces: Vec<Bytes>) -> Self {
        let len = pieces.iter().map(Bytes::len).sum();
        let pieces = match pieces.len() {
            0 => Pieces::default(),
            1 => Pieces::One(pieces.pop().unwrap_or_default()),
            _ => Pieces::Many(pieces),
        };
        Self {
            pieces,
            len,
            crc: None,
        }
    }

    /// Says what the checksum of all its bytes is, where somebody has found out already: it need not be
    /// computed again.
    #[must_use]
    pub fn with_crc(self, crc: Option<u32>) -> Self {
        Self { crc, ..self }
    }

    /// The CRC-32C of all its bytes, where it is known.
    #[must_use]
    pub fn crc(&self) -> Option<u32> {
        self.crc
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces, in order.
    #[must_use]
    pub fn pieces(&self) -> &[Bytes] {
        match &self.pieces {
            Pieces::One(piece) => std::slice::from_ref(piece),
            Pieces::Many(pieces) => pieces,
        }
    }

    /// The bytes whole: shared where there is one piece, copied where there are more.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        match &self.pieces {
            Pieces::One(piece) => piece.clone(),
            Pieces::Many(pieces) => pieces.concat().into(),
        }
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        let bytes = bytes.into();
        Self {
            len: bytes.len(),
            pieces: Pieces::One(bytes),
            crc: None,
        }
    }
}

impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.to_bytes() == other.to_bytes()
    }
}

impl Eq for Body {}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Body({} bytes in {} pieces)",
            self.len,
            self.pieces().len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_it_is_cut_it_is_the_same_body() {
        let whole = Body::from(&b"abcdef"[..]);
        let cut = |at: &[&'static [u8]]| {
            Body::from_pieces(at.iter().map(|piece| Bytes::from_static(piece)).collect())
        };
        assert_eq!(cut(&[b"abc", b"def"]), whole);
        assert_eq!(cut(&[b"abcdef"]), whole);
        assert_eq!(cut(&[b"", b"abcd", b"ef"]).to_bytes(), "abcdef");
        assert_ne!(cut(&[b"abc", b"deg"]), whole);
        assert_eq!(cut(&[]), Body::default());
        assert_eq!((whole.len(), Body::default().is_empty()), (6, true));
    }
}
