//! What the tests share.

pub mod bench;
pub mod interpreters;
