//! Faults that really happen to an agent and to those that it pushes to, and what became of its windows.
//!
//! One file a kind of fault. Each scenario runs the binary with a recorder, windows of a second and one busy process, does
//! something bad, mends it, waits until everything is delivered, and returns an [`Account`]. The tests run them in short, the
//! benchmark (`cargo xtask bench faults`) at length.

pub mod account;
pub mod certificate;
pub mod clock;
pub mod codes;
pub mod collector;
pub mod database;
pub mod disk;
pub mod killed;
pub mod network;
pub mod scene;

pub use account::Account;
