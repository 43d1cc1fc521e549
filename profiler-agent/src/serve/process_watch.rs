//! `WatchProcesses`: the processes, and then what changes.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::grpc;
use super::inspect::Messages;
use super::query::{Asker, ProcessInfo, PullError};
use crate::generated::pyagent::v1 as proto;
use crate::profile::query::ProcessFilter;

/// How often the processes are looked at for each client that watches.
const INTERVAL: Duration = Duration::from_secs(1);

/// Sends all processes that are meant, then changes, until the client leaves or the agent ends. `place` is held meanwhile.
pub(super) fn watch(
    asker: Asker,
    filter: ProcessFilter,
    place: OwnedSemaphorePermit,
) -> Messages<proto::WatchProcessesResponse> {
    let (messages, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        let _place = place;
        tokio::select! {
            () = send(&asker, &filter, &messages) => {}
            () = messages.closed() => {}
        }
    });
    Box::pin(ReceiverStream::new(stream))
}

async fn send(
    asker: &Asker,
    filter: &ProcessFilter,
    messages: &mpsc::Sender<Result<proto::WatchProcessesResponse, Status>>,
) {
    let mut known = Known::default();
    let mut is_first = true;
    let mut ticks = interval_at(Instant::now(), INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(processes) = asker.processes(filter.clone(), false).await else {
            let _ = messages.send(Err(PullError::Stopping.into())).await;
            return;
        };
        let changes = known.changes(processes);
        let is_empty = changes.processes.is_empty() && changes.ended.is_empty();
        if (is_first || !is_empty) && messages.send(Ok(changes)).await.is_err() {
            return;
        }
        is_first = false;
    }
}

/// What the client knows.
#[derive(Debug, Default)]
struct Known {
    /// By id and start: what names a process for good.
    processes: HashMap<(u32, SystemTime), ProcessInfo>,
}

impl Known {
    /// What is different now.
    fn changes(&mut self, now: Vec<ProcessInfo>) -> proto::WatchProcessesResponse {
        let mut before = std::mem::take(&mut self.processes);
        let mut changes = proto::WatchProcessesResponse::default();
        for process in now {
            let key = (process.pid, process.start_time);
            if before.remove(&key).as_ref() != Some(&process) {
                changes.processes.push(grpc::process(process.clone()));
            }
            self.processes.insert(key, process);
        }
        changes.ended = before
            .into_keys()
            .map(|(pid, started)| proto::ProcessEnd {
                pid,
                start_time: Some(started.into()),
            })
            .collect();
        changes.ended.sort_by_key(|ended| ended.pid);
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::query::ProcessState;

    fn process(pid: u32, start_s: u64, state: ProcessState) -> ProcessInfo {
        ProcessInfo {
            pid,
            start_time: SystemTime::UNIX_EPOCH + Duration::from_secs(start_s),
            comm: String::new(),
            program: String::new(),
            script: String::new(),
            interpreter: String::new(),
            python_version: String::new(),
            state,
            reason: String::new(),
            reason_name: "",
            cmdline: Vec::new(),
            cgroup: String::new(),
            service_name: String::new(),
            container: None,
            pod: None,
            memory: None,
        }
    }

    #[test]
    fn what_is_new_different_or_gone_is_said_once() {
        let mut known = Known::default();
        let pids = |changes: &proto::WatchProcessesResponse| -> (Vec<u32>, Vec<u32>) {
            let new = changes.processes.iter().map(|process| process.pid);
            (
                new.collect(),
                changes.ended.iter().map(|ended| ended.pid).collect(),
            )
        };
        let (new, profiled) = (ProcessState::Discovering, ProcessState::Profiled);
        let mut look = |processes| pids(&known.changes(processes));
        assert_eq!(
            look(vec![process(1, 10, new), process(2, 10, new)]),
            (vec![1, 2], vec![])
        );
        assert_eq!(
            look(vec![process(1, 10, profiled), process(2, 10, new)]),
            (vec![1], vec![])
        );
        assert_eq!(look(vec![process(1, 10, profiled)]), (vec![], vec![2]));
        // Another process with the same id.
        assert_eq!(look(vec![process(1, 11, profiled)]), (vec![1], vec![1]));
        assert_eq!(look(vec![process(1, 11, profiled)]), (vec![], vec![]));
    }
}
