//! Serving: gRPC and HTTP.

pub mod query;
