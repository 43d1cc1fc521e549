//! Samples on their way from the ring buffer to a profile: decode, symbolize.

pub mod decode;
pub mod native;
pub mod remote;
pub mod symbolize;
