//! What the tests share.

pub mod allocated;
pub mod api_server;
pub mod bench;
pub mod browser;
pub mod cluster;
pub mod compiler;
pub mod containers;
pub mod cpu_ticks;
pub mod fake_agents;
pub mod fake_cluster;
pub mod faults;
pub mod image;
pub mod interpreters;
pub mod otlp;
pub mod packages;
pub mod picture;
pub mod pod_group;
pub mod push;
pub mod pyagent;
pub mod recorder;
pub mod samples;
pub mod target;
pub mod unwind;
