//! Samples on their way from the ring buffer to a profile: decode, symbolize.

mod code_cache;
pub mod decode;
pub mod dump;
mod locals;
pub mod native;
mod process_labels;
pub mod remote;
pub mod symbolize;
mod thread_labels;
