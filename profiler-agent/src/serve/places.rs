//! Places for connections: who comes new is always let in, and what asks for nothing makes room.
//!
//! A connection is a newcomer until a request of its was let through. There are fewer places for newcomers than for all, and
//! the oldest one of the peer that has most of them goes when another comes: half-open connections, however many, hold
//! nobody up who asks at once. When all places are taken, what has been idle longest goes.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Most connections at a time on one listener.
const MAX_CONNECTIONS: usize = 256;

/// Most of them that have not asked for anything that they may.
const MAX_NEWCOMERS: usize = 64;

/// The places of one listener.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Numbers connections and ends of requests in their order.
    last: u64,
    /// By number: the oldest first.
    connections: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    /// `None`: over a local socket.
    peer: Option<IpAddr>,
    stage: Stage,
    leave: Arc<Notify>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Newcomer,
    /// Requests that are being answered; at 0 it is idle since the end of the last.
    Admitted {
        n_requests: usize,
        idle_since: u64,
    },
}

impl Stage {
    const fn is_idle(self) -> bool {
        matches!(self, Self::Admitted { n_requests: 0, .. })
    }
}

/// A connection's place; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    leave: Arc<Notify>,
    admitted: Notify,
}

/// A request that is being answered: until its answer has been sent, or given up.
#[derive(Debug)]
pub(super) struct Asking(Arc<Place>);

impl Places {
    /// A place, at another's cost if need be. `None`: all connections are being answered.
    pub(super) fn enter(self: &Arc<Self>, peer: Option<IpAddr>) -> Option<Arc<Place>> {
        let mut taken = self.lock();
        let n_newcomers = taken.count(|stage| stage == Stage::Newcomer);
        if n_newcomers >= MAX_NEWCOMERS {
            taken.send_away(|stage| stage == Stage::Newcomer);
        }
        if taken.connections.len() >= MAX_CONNECTIONS
            && !taken.send_away(Stage::is_idle)
            && !taken.send_away(|stage| stage == Stage::Newcomer)
        {
            return None;
        }
        let number = taken.next();
        let leave = Arc::new(Notify::new());
        let connection = Connection {
            peer,
            stage: Stage::Newcomer,
            leave: leave.clone(),
        };
        taken.connections.insert(number, connection);
        drop(taken);
        Some(Arc::new(Place {
            places: self.clone(),
            number,
            leave,
            admitted: Notify::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn count(&self, is_meant: impl Fn(Stage) -> bool) -> usize {
        let stages = self.connections.values().map(|it| it.stage);
        stages.filter(|stage| is_meant(*stage)).count()
    }

    /// Sends away, of the peer that has most, what has waited longest. False: none is meant.
    fn send_away(&mut self, is_meant: impl Fn(Stage) -> bool) -> bool {
        let mut by_peer: HashMap<Option<IpAddr>, (usize, u64, u64)> = HashMap::new();
        for (number, connection) in &self.connections {
            if !is_meant(connection.stage) {
                continue;
            }
            let since = match connection.stage {
                Stage::Newcomer => *number,
                Stage::Admitted { idle_since, .. } => idle_since,
            };
            let of_peer = by_peer.entry(connection.peer);
            let (n, oldest, its_number) = of_peer.or_insert((0, since, *number));
            *n += 1;
            if since < *oldest {
                (*oldest, *its_number) = (since, *number);
            }
        }
        let most = by_peer
            .into_values()
            .max_by_key(|(n, oldest, _)| (*n, std::cmp::Reverse(*oldest)));
        let Some((_, _, number)) = most else {
            return false;
        };
        if let Some(connection) = self.connections.remove(&number) {
            connection.leave.notify_one();
        }
        true
    }
}

impl Place {
    /// Waits until another needs the place more.
    pub(super) async fn sent_away(&self) {
        self.leave.notified().await;
    }

    /// Waits until a request was let through.
    pub(super) async fn admitted(&self) {
        self.admitted.notified().await;
    }

    /// A request was let through.
    pub(super) fn ask(self: &Arc<Self>) -> Asking {
        self.change(|n_requests| n_requests + 1);
        self.admitted.notify_one();
        Asking(self.clone())
    }

    fn change(&self, change: impl Fn(usize) -> usize) {
        let mut taken = self.places.lock();
        let idle_since = taken.next();
        if let Some(connection) = taken.connections.get_mut(&self.number) {
            let n_requests = match connection.stage {
                Stage::Newcomer => 0,
                Stage::Admitted { n_requests, .. } => n_requests,
            };
            connection.stage = Stage::Admitted {
                n_requests: change(n_requests),
                idle_since,
            };
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().connections.remove(&self.number);
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.change(|n_requests| n_requests.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(places: &Arc<Places>, peer: u8) -> Option<Arc<Place>> {
        places.enter(Some([192, 0, 2, peer].into()))
    }

    fn is_there(place: &Place) -> bool {
        place.places.lock().connections.contains_key(&place.number)
    }

    #[test]
    fn the_oldest_newcomer_of_the_busiest_peer_goes_first() {
        let places = Arc::new(Places::default());
        let honest = enter(&places, 1).unwrap();
        let flood: Vec<_> = (0..1000).filter_map(|_| enter(&places, 2)).collect();
        assert!(is_there(&honest));
        assert_eq!(places.lock().connections.len(), MAX_NEWCOMERS);
        let n_gone = flood.iter().filter(|place| !is_there(place)).count();
        assert!(flood[..n_gone].iter().all(|place| !is_there(place)));
        drop(flood);
        drop(honest);
        assert!(places.lock().connections.is_empty());
    }

    #[test]
    fn what_is_answered_stays_and_what_is_idle_longest_goes() {
        let places = Arc::new(Places::default());
        let all: Vec<_> = (0..MAX_CONNECTIONS)
            .map(|_| {
                let place = enter(&places, 1).unwrap();
                let asking = place.ask();
                (place, Some(asking))
            })
            .collect();
        assert!(enter(&places, 2).is_none());
        let mut all = all;
        all[7].1 = None;
        all[3].1 = None;
        let new = enter(&places, 2).unwrap();
        assert!(!is_there(&all[7].0) && is_there(&all[3].0) && is_there(&new));
    }
}
