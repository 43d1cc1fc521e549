//! Standard output.

use std::io::{ErrorKind, Write as _};

use anyhow::{Context as _, Result};

/// Prints. False: its reader has gone, which is no error; there is nobody to print for any more.
pub(super) fn print(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}
