//! pyagent.
fn main() {}
