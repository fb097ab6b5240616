//! Frames as a stream brings them, large bodies left in the pieces they came in.
//!
//! What [`FrameDecoder`](super::frame::FrameDecoder) does, but for whoever passes bodies on: a body of
//! at least [`PIECES_BYTES_MIN`] is never copied. A smaller one is, so that it does not keep a whole
//! datagram alive.

use bytes::{Bytes, BytesMut};

use super::frame::{Frame, FrameError, FrameLimits, FramePrefix, PREFIX_BYTES};
use crate::domain::body::Body;

/// Bodies below this are copied together.
pub const PIECES_BYTES_MIN: usize = 16 * 1024;

/// A frame whose body may be in pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameInPieces {
    /// Its prefix.
    pub prefix: FramePrefix,
    /// Its header, undecoded.
    pub header: Bytes,
    /// Its body.
    pub body: Body,
}

impl FrameInPieces {
    /// The frame with its body whole.
    #[must_use]
    pub fn into_frame(self) -> Frame {
        Frame {
            prefix: self.prefix,
            header: self.header,
            body: self.body.to_bytes(),
        }
    }

    /// The frame without its body: for decoding the header.
    #[must_use]
    pub fn head(&self) -> Frame {
        Frame {
            prefix: self.prefix,
            header: self.header.clone(),
            body: Bytes::new(),
        }
    }
}

/// Puts frames together from the pieces a stream comes in. After an error the stream is beyond use.
#[derive(Debug)]
pub struct PieceDecoder {
    limits: FrameLimits,
    /// Prefix and header so far.
    head: BytesMut,
    prefix: Option<FramePrefix>,
    pieces: Vec<Bytes>,
    body_bytes: usize,
}

impl PieceDecoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new(limits: FrameLimits) -> Self {
        Self {
            limits,
            head: BytesMut::new(),
            prefix: None,
            pieces: Vec::new(),
            body_bytes: 0,
        }
    }

    /// The prefix of the frame that has begun, once it is complete: what is coming.
    #[must_use]
    pub fn pending(&self) -> Option<&FramePrefix> {
        self.prefix.as_ref()
    }

    /// Takes bytes from `piece` until a frame is whole or `piece` is empty. To be called again with
    /// what is left until it answers `None`.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] and [`FrameError::Malformed`].
    pub fn feed(&mut self, piece: &mut Bytes) -> Result<Option<FrameInPieces>, FrameError> {
        let prefix = match self.prefix {
            Some(prefix) => prefix,
            None => {
                self.take_head(piece, PREFIX_BYTES);
                let Some(bytes) = self.head.first_chunk::<PREFIX_BYTES>() else {
                    return Ok(None);
                };
                let prefix = FramePrefix::parse(bytes, self.limits)?;
                self.prefix = Some(prefix);
                prefix
            }
        };
        let head_bytes = PREFIX_BYTES + prefix.header_bytes;
        self.take_head(piece, head_bytes);
        let wanted = prefix.body_bytes - self.body_bytes;
        if self.head.len() == head_bytes && wanted > 0 && !piece.is_empty() {
            let taken = piece.split_to(wanted.min(piece.len()));
            self.body_bytes += taken.len();
            self.pieces.push(taken);
        }
        if self.head.len() < head_bytes || self.body_bytes < prefix.body_bytes {
            return Ok(None);
        }
        self.prefix = None;
        self.body_bytes = 0;
        let header = std::mem::take(&mut self.head)
            .freeze()
            .split_off(PREFIX_BYTES);
        let pieces = std::mem::take(&mut self.pieces);
        let body = if prefix.body_bytes < PIECES_BYTES_MIN {
            Body::from(pieces.concat())
        } else {
            Body::from_pieces(pieces)
        };
        Ok(Some(FrameInPieces {
            prefix,
            header,
            body,
        }))
    }

    fn take_head(&mut self, piece: &mut Bytes, until: usize) {
        let wanted = until.saturating_sub(self.head.len());
        let taken = piece.split_to(wanted.min(piece.len()));
        self.head.extend_from_slice(&taken);
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{FrameDecoder, encode};
    use super::super::produce::Produce;
    use super::*;
    use proptest::prelude::*;

    fn stream(bodies: &[usize]) -> Bytes {
        let mut out = BytesMut::new();
        for (correlation, bytes) in (0..).zip(bodies) {
            encode(&Produce::default(), correlation, *bytes, &mut out).unwrap();
            out.extend((0..*bytes).map(|at| at.to_le_bytes()[0]));
        }
        out.freeze()
    }

    proptest! {
        #[test]
        fn however_a_stream_is_cut_its_frames_are_those_of_the_other_decoder(
            bodies in prop::collection::vec(prop_oneof![0usize..40, 10_000usize..60_000], 1..5),
            cuts in prop::collection::vec(1usize..30_000, 1..40),
        ) {
            let stream = stream(&bodies);
            let mut whole = FrameDecoder::new(FrameLimits::for_batches(1 << 20));
            let mut rest = stream.clone();
            let mut expected = Vec::new();
            while let Some(frame) = whole.feed(&mut rest).unwrap() {
                expected.push(frame);
            }
            let mut decoder = PieceDecoder::new(FrameLimits::for_batches(1 << 20));
            let (mut rest, mut found) = (stream, Vec::new());
            let mut cuts = cuts.into_iter().cycle();
            while !rest.is_empty() {
                let cut = cuts.next().unwrap().min(rest.len());
                let mut piece = rest.split_to(cut);
                while let Some(frame) = decoder.feed(&mut piece).unwrap() {
                    prop_assert!(decoder.pending().is_none());
                    found.push(frame.into_frame());
                }
                prop_assert!(piece.is_empty());
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_kept() {
        let mut decoder = PieceDecoder::new(FrameLimits::for_batches(1 << 20));
        let mut prefix = Bytes::from_static(&[0xff; PREFIX_BYTES]);
        assert!(matches!(
            decoder.feed(&mut prefix),
            Err(FrameError::TooLarge { .. })
        ));
    }
}
