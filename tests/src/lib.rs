//! What the tests share.

pub mod bench;
pub mod compiler;
pub mod interpreters;
pub mod target;
