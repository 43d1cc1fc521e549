//! Real programs on real interpreters, sampled by the real agent: are stacks complete, are they true, do they
//! add up?
//!
//! A table of workloads (`workloads/live`) times every interpreter of the host. Each interpreter is recorded
//! once, all workloads at the same time, and each test looks at one property of what came. Expectations come
//! from the programs: they report their own CPU times and depths, and `sys.setprofile` tells every legal call.
#![allow(
    clippy::result_large_err,
    clippy::nonminimal_bool,
    reason = "a verdict is made once a stack, and reads like the sentence that it checks"
)]

mod check;
mod families;
mod legal;
mod recording;
mod workload;
