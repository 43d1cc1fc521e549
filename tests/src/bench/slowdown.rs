//! How much slower a busy process becomes while it is recorded: by pyagent, by the timer alone, by py-spy.

use anyhow::Result;

use super::{
    agent_run::AgentRun,
    peer::PySpy,
    report::Section,
    target::{Pieces, Stack, Target},
};
use crate::interpreters::Interpreter;

const DEPTH: u32 = 30;
const N_ROUNDS: usize = 4;
const SECONDS: f64 = 0.8;

/// Idle threads beside the busy one.
const N_IDLE_THREADS: [u32; 3] = [0, 100, 500];

/// Rates in Hz, and the aim: times the timer's own price.
const RATES: [(u32, f64); 3] = [(99, 1.01), (999, 1.02), (9_999, 1.05)];

/// Rates for the peer.
const PEER_RATES: [u32; 2] = [100, 1_000];

/// Pieces are this much longer than a whole number of sampling periods, so that the fastest piece is not one
/// that its samples have missed.
const PIECE_MARGIN: f64 = 1.03;

/// Shortest piece.
const MIN_PIECE_NS: f64 = 1.5e6;

/// Measures every rate and number of threads.
pub fn measure(interpreter: &Interpreter, py_spy: Option<&PySpy>) -> Result<Vec<Section>> {
    let mut own = Section::new(
        "Slow-down of a busy target",
        &format!(
            "Time of equal pieces of work of a CPython {} process ({DEPTH} frames, pinned to one CPU under `chrt -f`), \
             recorded, over the time while nobody records. Pieces are a little longer than a whole number of sampling \
             periods (1.5 to 11 ms). Of {N_ROUNDS} turns of {SECONDS} s for each state, one after the other, the best \
             piece, and in brackets the mean piece of the best turn, which is noisy. *Timer alone*: another, idle process is recorded at the same rate. The last column is \
             recorded over timer alone, best pieces.",
            super::kernel_cost::version(interpreter)
        ),
        &[
            "rate",
            "idle threads",
            "timer alone",
            "recorded",
            "recorded / timer alone",
            "aim",
        ],
    );
    for n_idle_threads in N_IDLE_THREADS {
        for (rate_hz, aim) in RATES {
            own.push(own_row(interpreter, n_idle_threads, rate_hz, aim)?);
        }
    }
    let mut sections = vec![own];
    if let Some(py_spy) = py_spy {
        let mut peer = Section::new(
            "The same with py-spy",
            &format!(
                "`py-spy record --rate N --pid P` ({}), measured as above. It stops the target for longer than \
                 a piece takes, so that the best piece misses the stops: the mean counts.",
                py_spy.version
            ),
            &[
                "rate",
                "idle threads",
                "recorded, mean of all pieces",
                "best piece",
            ],
        );
        for n_idle_threads in [0, 100] {
            for rate_hz in PEER_RATES {
                peer.push(peer_row(interpreter, py_spy, n_idle_threads, rate_hz)?);
            }
        }
        sections.push(peer);
    }
    Ok(sections)
}

/// Length of a piece for a rate, in nanoseconds.
fn piece_ns(rate_hz: u32) -> f64 {
    let period_ns = 1e9 / f64::from(rate_hz);
    (MIN_PIECE_NS / period_ns).ceil() * period_ns * PIECE_MARGIN
}

/// The best of several turns.
#[derive(Debug, Clone, Copy)]
struct Best(Pieces);

impl Best {
    const NONE: Self = Self(Pieces {
        best_ns: f64::INFINITY,
        mean_ns: f64::INFINITY,
    });

    fn add(&mut self, pieces: Pieces) {
        self.0.best_ns = self.0.best_ns.min(pieces.best_ns);
        self.0.mean_ns = self.0.mean_ns.min(pieces.mean_ns);
    }

    fn over(&self, base: &Self) -> Pieces {
        Pieces {
            best_ns: self.0.best_ns / base.0.best_ns,
            mean_ns: self.0.mean_ns / base.0.mean_ns,
        }
    }
}

fn own_row(
    interpreter: &Interpreter,
    n_idle_threads: u32,
    rate_hz: u32,
    aim: f64,
) -> Result<Vec<String>> {
    let mut target = Target::busy(interpreter, Stack::Functions, DEPTH, n_idle_threads)?;
    let other = Target::idle(interpreter)?;
    let n_rounds = target.rounds_of(piece_ns(rate_hz))?;
    let (mut alone, mut timer, mut recorded) = (Best::NONE, Best::NONE, Best::NONE);
    for _ in 0..N_ROUNDS {
        alone.add(target.pieces(n_rounds, SECONDS)?);
        for (pid, best) in [(other.pid(), &mut timer), (target.pid(), &mut recorded)] {
            let agent = AgentRun::of_pid(pid, rate_hz)?;
            best.add(target.pieces(n_rounds, SECONDS)?);
            drop(agent);
        }
    }
    let (timer_ratio, recorded_ratio) = (timer.over(&alone), recorded.over(&alone));
    Ok(vec![
        format!("{rate_hz} Hz"),
        n_idle_threads.to_string(),
        format!("{:.3} ({:.3})", timer_ratio.best_ns, timer_ratio.mean_ns),
        format!(
            "{:.3} ({:.3})",
            recorded_ratio.best_ns, recorded_ratio.mean_ns
        ),
        format!("{:.3}", recorded.over(&timer).best_ns),
        format!("{aim:.2}"),
    ])
}

fn peer_row(
    interpreter: &Interpreter,
    py_spy: &PySpy,
    n_idle_threads: u32,
    rate_hz: u32,
) -> Result<Vec<String>> {
    let mut target = Target::busy(interpreter, Stack::Functions, DEPTH, n_idle_threads)?;
    let n_rounds = target.rounds_of(piece_ns(rate_hz))?;
    let (mut alone, mut recorded) = (Best::NONE, Best::NONE);
    for _ in 0..N_ROUNDS {
        alone.add(target.pieces(n_rounds, SECONDS)?);
        let recording = py_spy.record(target.pid(), rate_hz)?;
        recorded.add(target.pieces(n_rounds, 2.0 * SECONDS)?);
        drop(recording);
    }
    let ratio = recorded.over(&alone);
    Ok(vec![
        format!("{rate_hz} Hz"),
        n_idle_threads.to_string(),
        format!("{:.2}", ratio.mean_ns),
        format!("{:.2}", ratio.best_ns),
    ])
}
