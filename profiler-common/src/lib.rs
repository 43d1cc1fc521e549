//! What the kernel programs and the agent share: the records that cross the ring buffer, the layout of
//! an interpreter, what the kernel must know of a process, and the steps of unwinding.
//!
//! Not here: anything that allocates, reads files, or names aya's kernel helpers.
#![no_std]
#![forbid(unsafe_code)]
#![allow(
    clippy::inline_always,
    reason = "a call is a subprogram of its own to the verifier, which bounds their number and their stack"
)]

pub mod allocation;
pub mod arch;
pub mod calibration;
pub mod counters;
pub mod event;
pub mod layout;
pub mod process;
pub mod unwind;
