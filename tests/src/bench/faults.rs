//! Faults, and what became of the windows: the scenarios of [`crate::faults`], at length, as a table.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::report::Section;
use crate::faults::{Account, certificate, clock, codes, collector, disk, network, network::Cut};

/// Times that the agent, and the Collector, are killed.
const N_AGENT_KILLS: u32 = 50;
const N_COLLECTOR_KILLS: u32 = 10;

/// Windows that close while the network is cut: as many as there are in ten minutes, unless told otherwise. The longest pause
/// between two attempts is reached by then.
const N_CUT_WINDOWS: usize = 60;

/// Injects all of them, one after the other.
pub fn measure() -> Result<Section> {
    let mut section = Section::new(
        "Faults",
        "One busy process (CPython, 99 Hz), windows of 1 s in the recorder, pushed to the real OpenTelemetry Collector, or for \
         codes of gRPC to a server with OpenTelemetry's code for Python. *Made* are windows that the recorder had written, read \
         from its database by SQLite, and those that it counted as not written; *delivered* those that the receiver has with all \
         of their samples, in their order. *Twice*: delivered again, since the answer to the first time did not arrive. \
         *Refused*: by a code after which OTLP forbids to send again; *dropped*: not written within the six windows that wait; \
         both are counted by the agent (`/metrics`). *Lost*: not delivered, and not counted. The window that is open when an \
         agent is killed was never made.",
        &[
            "fault",
            "injected",
            "made",
            "delivered",
            "twice",
            "refused",
            "dropped",
            "lost",
        ],
    );
    let mut add = |fault: &str, account: Option<Account>| -> Result<()> {
        let it = account.with_context(|| format!("{fault}: what it needs is not there"))?;
        let numbers = [
            it.n_faults,
            it.made,
            it.delivered,
            it.twice,
            it.refused,
            it.counted,
            it.lost,
        ];
        let numbers = numbers.iter().map(ToString::to_string);
        section.push([fault.to_owned()].into_iter().chain(numbers).collect());
        Ok(())
    };
    add(
        "the agent is killed (SIGKILL) at any moment, and started again",
        collector::agent_is_killed(N_AGENT_KILLS),
    )?;
    add(
        "the Collector is killed (SIGKILL), and started again after three windows",
        collector::is_killed(N_COLLECTOR_KILLS),
    )?;
    add(
        "the Collector is stopped (SIGSTOP) for 45 s, longer than the 30 s that an answer may take",
        collector::hangs(Duration::from_secs(45)),
    )?;
    add(
        "the network's link is down for 60 windows, as many as there are in ten minutes by default",
        network::is_cut(Cut::Link, N_CUT_WINDOWS),
    )?;
    add(
        "no answer comes back through the network, for as long",
        network::is_cut(Cut::Answers, N_CUT_WINDOWS),
    )?;
    add(
        &format!("each once: {}", shown(&codes::RETRYABLE)),
        codes::are_answered(&codes::RETRYABLE),
    )?;
    add(
        &format!("each once: {}", shown(&codes::PERMANENT)),
        codes::are_answered(&codes::PERMANENT),
    )?;
    add(
        "the Collector's certificate has expired, for 15 s",
        certificate::expires(Duration::from_secs(15)),
    )?;
    add(
        "the disk is full, for 3 s from the first window on that cannot be written",
        disk::is_full(Duration::from_secs(3)),
    )?;
    add(
        "the same for 20 s, longer than windows wait",
        disk::is_full(Duration::from_secs(20)),
    )?;
    add(
        "the wall clock jumps (an hour, a day and ten years; seen by the agent alone, through its C library)",
        clock::jumps(),
    )?;
    Ok(section)
}

fn shown(codes: &[&str]) -> String {
    let codes: Vec<String> = codes.iter().map(|it| it.to_uppercase()).collect();
    codes.join(", ")
}
