//! What the tests share.

pub mod bench;
pub mod compiler;
pub mod image;
pub mod interpreters;
pub mod target;
pub mod unwind;
