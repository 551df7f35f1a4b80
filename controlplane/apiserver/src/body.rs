//! Bodies: requests are read up to a limit, responses are made of shared bytes. A watch event is sent as three slices of
//! which the object is the very allocation that the store keeps.

use std::{convert::Infallible, time::Duration};

use bytes::{Buf, Bytes};
use http_body_util::{BodyExt as _, Empty, Full, Limited, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use seaway_kinds::ApiError;

/// The largest body that a request may have.
pub(crate) const LIMIT_BYTES: usize = 3 * 1024 * 1024;
/// How long a client may take to send it.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a refused request is read on, and for how long.
const DISCARD_BYTES: usize = 8 * 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// What goes wrong while a response is sent; the connection is then cut.
#[derive(Debug, thiserror::Error)]
#[error("a node agent's answer ended early")]
pub(crate) struct BodyError(#[from] hyper::Error);

/// The body of every response.
pub(crate) type Body = UnsyncBoxBody<Chunk, BodyError>;

/// Up to three slices in a row, none of them copied.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    parts: [Bytes; 3],
    at: usize,
}

impl Chunk {
    /// Three slices in a row.
    pub(crate) fn of(parts: [Bytes; 3]) -> Self {
        let mut chunk = Self { parts, at: 0 };
        chunk.skip_empty();
        chunk
    }

    fn skip_empty(&mut self) {
        while self.parts.get(self.at).is_some_and(Bytes::is_empty) {
            self.at += 1;
        }
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Self::of([bytes, Bytes::new(), Bytes::new()])
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.parts.iter().skip(self.at).map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.parts.get(self.at).map_or(&[], |part| part)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [std::io::IoSlice<'a>]) -> usize {
        let parts = self.parts.iter().skip(self.at).filter(|part| !part.is_empty());
        slices.iter_mut().zip(parts).map(|(slice, part)| *slice = std::io::IoSlice::new(part)).count()
    }

    fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let part = &mut self.parts[self.at];
            let step = count.min(part.len());
            part.advance(step);
            count -= step;
            self.skip_empty();
        }
    }
}

/// A body of known bytes.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    let bytes: Bytes = bytes.into();
    let never = |never: Infallible| match never {};
    if bytes.is_empty() {
        return Empty::new().map_err(never).boxed_unsync();
    }
    Full::new(Chunk::from(bytes)).map_err(never).boxed_unsync()
}

/// Reads on, without keeping it, what a request says beyond what was needed to refuse it: a client that still sends when
/// its stream ends may not look at the answer.
pub(crate) async fn discard(body: &mut Incoming) {
    let mut left = DISCARD_BYTES;
    let rest = async {
        while let Some(Ok(frame)) = body.frame().await
            && left > 0
        {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        }
    };
    // Whoever sends longer than that misses the answer.
    drop(tokio::time::timeout(DISCARD_TIMEOUT, rest).await);
}

/// Reads a request's body.
pub(crate) async fn read(body: &mut Incoming) -> Result<Bytes, ApiError> {
    let collected = tokio::time::timeout(READ_TIMEOUT, Limited::new(body, LIMIT_BYTES).collect())
        .await
        .map_err(|_| ApiError::new(408, "Timeout", "the body of the request did not arrive in time"))?;
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::too_big(LIMIT_BYTES)),
        Err(error) => {
            Err(ApiError::bad_request(format!("the body of the request could not be read: {error}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_its_parts_in_a_row() {
        for sizes in [[0, 0, 0], [1, 0, 2], [0, 3, 0], [2, 2, 2]] {
            let parts = sizes.map(|size| Bytes::from(vec![b'a' + u8::try_from(size).unwrap(); size]));
            let whole: Vec<u8> = parts.iter().flatten().copied().collect();
            for step in 1..4 {
                let mut chunk = Chunk::of(parts.clone());
                let mut read = Vec::new();
                while chunk.has_remaining() {
                    let slice = chunk.chunk();
                    let step = step.min(slice.len());
                    read.extend_from_slice(&slice[..step]);
                    chunk.advance(step);
                }
                assert_eq!(read, whole);
            }
            let mut slices = [std::io::IoSlice::new(&[]); 3];
            let chunk = Chunk::of(parts);
            let count = chunk.chunks_vectored(&mut slices);
            let vectored: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            assert_eq!(vectored, whole);
        }
    }
}
