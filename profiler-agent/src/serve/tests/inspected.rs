//! Looks into processes: whose, how many at a time, and for how long.

use std::time::Instant;

use tonic::Code;

use super::*;
use crate::generated::pyagent::v1::heap_census_response::Part;

fn census(pid: u32) -> proto::HeapCensusRequest {
    proto::HeapCensusRequest { pid, max_types: 0 }
}

#[tokio::test]
async fn a_heap_is_read_for_one_client_at_a_time_and_free_when_it_leaves() {
    let running = start().await;
    let mut client = running.client().await;
    let mut first = client.heap_census(census(PID)).await.unwrap().into_inner();
    let message = first.message().await.unwrap().unwrap();
    assert!(matches!(message.part, Some(Part::Progress(_))));
    let refused = client.heap_census(census(PID)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("is being read"), "{refused:?}");
    drop(first);
    let begun = Instant::now();
    loop {
        match client.heap_census(census(PID)).await {
            Ok(_) => break,
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "it is never free"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let running = start().await;
    let mut client = running.client().await;
    let status = client.heap_census(census(7)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let selector = proto::ProcessSelector {
        pids: vec![7],
        ..proto::ProcessSelector::default()
    };
    let request = proto::DumpStacksRequest {
        selector: Some(selector),
        ..proto::DumpStacksRequest::default()
    };
    let status = client.dump_stacks(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    // The agent here does not answer for the process that there is.
    let request = proto::DumpStacksRequest::default();
    let status = client.dump_stacks(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    running.stop().await;
}

#[tokio::test]
async fn processes_are_sent_at_once_and_watchers_are_few() {
    let running = start().await;
    let mut client = running.client().await;
    let request = || proto::WatchProcessesRequest { selector: None };
    let mut streams = Vec::new();
    for _ in 0..MAX_PROCESS_WATCHERS {
        let mut stream = client
            .watch_processes(request())
            .await
            .unwrap()
            .into_inner();
        let all = stream.message().await.unwrap().unwrap();
        let pids: Vec<u32> = all.processes.iter().map(|process| process.pid).collect();
        assert_eq!(pids, [PID, OTHER_PID]);
        streams.push(stream);
    }
    let refused = client.watch_processes(request()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    running.stop().await;
}
