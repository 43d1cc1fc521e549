//! The kernel programs as the agent sees them: load, attach, maps, ring buffer. The only place that names aya.

pub mod access;
pub mod calibration;
pub mod inventory;
pub mod load;
mod log;
pub mod ring;
pub mod source;
pub mod tables;
