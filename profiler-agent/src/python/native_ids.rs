//! Which thread of the kernel a `pthread_t` is, for interpreters that do not say so (before 3.11).
//!
//! A `pthread_t` is the address of the C library's record of the thread, in glibc as in musl, and the kernel's id of the thread
//! is a field of it. Where that lies differs by library, version and processor; it is found out: at that offset each record
//! has the id of a thread of the process, and no two have the same.

use std::collections::{HashMap, HashSet};

use crate::ids::{Address, Tid};
use crate::process::memory::ReadMemory;

/// Bytes of a record that are looked at. glibc 2.31 to 2.43 have the id at 720 (x86-64) and 208 (arm64), musl 1.2 at 48.
const RECORD_BYTES: usize = 1024;

/// The threads of these `pthread_t`s, by ids in the pid namespace of the process; `tids` are all that it has. One whose record
/// cannot be read is absent.
pub(crate) fn of_idents(
    memory: &impl ReadMemory,
    idents: &HashSet<u64>,
    tids: &HashSet<Tid>,
) -> HashMap<u64, Tid> {
    let mut records = Vec::new();
    for ident in idents {
        let mut record = [0; RECORD_BYTES];
        if memory.read(Address(*ident), &mut record).is_ok() {
            records.push((*ident, record));
        }
    }
    (0..RECORD_BYTES / 4)
        .find_map(|word| ids_at(&records, word, tids))
        .unwrap_or_default()
}

fn ids_at(
    records: &[(u64, [u8; RECORD_BYTES])],
    word: usize,
    tids: &HashSet<Tid>,
) -> Option<HashMap<u64, Tid>> {
    let mut seen = HashSet::new();
    let mut ids = HashMap::new();
    for (ident, record) in records {
        let tid = Tid(u32::from_le_bytes(*record.as_chunks::<4>().0.get(word)?));
        if !tids.contains(&tid) || !seen.insert(tid) {
            return None;
        }
        ids.insert(*ident, tid);
    }
    Some(ids)
}

#[cfg(test)]
mod tests {
    use std::os::unix::thread::JoinHandleExt as _;
    use std::sync::mpsc::channel;
    use std::sync::{Arc, Barrier};
    use std::thread::JoinHandle;

    use super::*;
    use crate::ids::Pid;
    use crate::process::facts;
    use crate::process::memory::ProcessMemory;

    #[test]
    fn the_threads_of_this_process_are_told_apart() {
        let pid = Pid(std::process::id());
        let barrier = Arc::new(Barrier::new(4));
        let (send, receive) = channel();
        let threads: Vec<JoinHandle<()>> = (0..3)
            .map(|n| {
                let (send, barrier) = (send.clone(), Arc::clone(&barrier));
                std::thread::spawn(move || {
                    let tid = rustix::thread::gettid().as_raw_nonzero().get();
                    send.send((n, Tid(tid.cast_unsigned()))).unwrap();
                    barrier.wait();
                })
            })
            .collect();
        let said = receive.iter().take(3);
        let truth: HashMap<u64, Tid> = said
            .map(|(n, tid): (usize, Tid)| (threads[n].as_pthread_t(), tid))
            .collect();
        let tids = facts::tids(pid).unwrap().into_iter().collect();
        let idents = truth.keys().copied().collect();
        assert_eq!(of_idents(&ProcessMemory::new(pid), &idents, &tids), truth);
        barrier.wait();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn what_is_no_record_gives_no_id() {
        let pid = Pid(std::process::id());
        let bytes = [7_u8; 2 * RECORD_BYTES];
        let tids = HashSet::from([Tid(pid.0)]);
        let ident = bytes.as_ptr() as u64;
        let memory = ProcessMemory::new(pid);
        assert!(of_idents(&memory, &HashSet::from([ident, 16]), &tids).is_empty());
    }
}
