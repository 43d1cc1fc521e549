//! The body of an answer, read to a bound: as a whole, or line by line as it comes.

use std::error::Error;
use std::pin::Pin;
use std::time::Duration;

use http_body::Body;

use super::request::ApiError;

/// A body that is being read.
pub(super) struct Lines<B> {
    body: B,
    /// What was read and not given out yet.
    bytes: Vec<u8>,
    /// Up to here there is no end of a line.
    n_searched: usize,
    max_bytes: usize,
}

impl<B: Body<Data: AsRef<[u8]>, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin> Lines<B> {
    /// One whose lines have at most so many bytes.
    pub(super) fn new(body: B, max_bytes: usize) -> Self {
        Self {
            body,
            bytes: Vec::new(),
            n_searched: 0,
            max_bytes,
        }
    }

    /// The next line, with its end; `None`: there is no further one. What comes after the last end of a line was cut, and is
    /// dropped. `silence`: how long nothing may come.
    pub(super) async fn next(&mut self, silence: Duration) -> Result<Option<Vec<u8>>, ApiError> {
        loop {
            let end = self.bytes[self.n_searched..]
                .iter()
                .position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let rest = self.bytes.split_off(self.n_searched + end + 1);
                self.n_searched = 0;
                return Ok(Some(std::mem::replace(&mut self.bytes, rest)));
            }
            self.n_searched = self.bytes.len();
            if !self.read(silence).await? {
                return Ok(None);
            }
        }
    }

    /// All of it.
    pub(super) async fn all(mut self, silence: Duration) -> Result<Vec<u8>, ApiError> {
        while self.read(silence).await? {}
        Ok(self.bytes)
    }

    /// Reads what comes next; false at the end.
    async fn read(&mut self, silence: Duration) -> Result<bool, ApiError> {
        let body = &mut self.body;
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
        let frame = tokio::time::timeout(silence, frame).await;
        let frame = frame.map_err(|_| ApiError::Silent(silence))?;
        let Some(frame) = frame else {
            return Ok(false);
        };
        let frame = frame.map_err(|error| ApiError::broken(&*error.into()))?;
        if let Ok(data) = frame.into_data() {
            let data = data.as_ref();
            if self.bytes.len() + data.len() > self.max_bytes {
                return Err(ApiError::TooLong(self.max_bytes));
            }
            self.bytes.extend_from_slice(data);
        }
        Ok(true)
    }
}
