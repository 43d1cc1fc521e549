//! The thread that opens what the kernel opens for CAP_SYS_ADMIN alone. The engine, which reads what processes hold, asks it
//! and does without that right.

use std::fs::File;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};

use anyhow::Result;

use super::spawn_with_rights;
use crate::bpf::source::SourceError;
use crate::bpf::source::events::{EventOpener, Events, OpenEvents};
use crate::ids::Pid;
use crate::kernel::privileges::reduce_privileged_thread;
use crate::process::huge_pages::{PagemapOpener, open_pagemap};

/// What is to be opened, and who waits for it.
enum Request {
    /// What shows the pages of a process.
    Pagemap(Pid, SyncSender<Option<File>>),
    /// Events on CPUs.
    Events(Box<Events>, SyncSender<Result<OpenEvents, SourceError>>),
}

/// Asks the thread. It ends with the last of those who can ask.
#[derive(Clone)]
pub(super) struct Opener(Sender<Request>);

impl Opener {
    /// Starts the thread.
    pub(super) fn start() -> Result<Self> {
        let (requests, receiver) = channel();
        spawn_with_rights("opener", move || {
            reduce_privileged_thread();
            for request in receiver {
                // Whoever asked waits for it.
                match request {
                    Request::Pagemap(pid, reply) => drop(reply.send(open_pagemap(pid))),
                    Request::Events(events, reply) => drop(reply.send(events.open())),
                }
            }
        })?;
        Ok(Self(requests))
    }

    /// Opens what shows the pages of processes: the kernel shows frames to who had the right when it was opened.
    pub(super) fn pagemaps(self) -> PagemapOpener {
        Box::new(move |pid| self.ask(|reply| Request::Pagemap(pid, reply))?)
    }

    /// Opens events of perf.
    pub(super) fn events(self) -> EventOpener {
        Box::new(move |events| {
            let opened = self.ask(|reply| Request::Events(Box::new(events), reply));
            opened.unwrap_or(Err(SourceError::NoOpener))
        })
    }

    /// `None`: the thread has ended.
    fn ask<T>(&self, request: impl FnOnce(SyncSender<T>) -> Request) -> Option<T> {
        let (reply, answer) = sync_channel(1);
        self.0.send(request(reply)).ok()?;
        answer.recv().ok()
    }
}
