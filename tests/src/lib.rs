//! What the tests share.

pub mod interpreters;
