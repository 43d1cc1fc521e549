//! A process that runs Python, with all that unwinding and symbolizing need of it.

use super::discover::Interpreter;
use crate::ids::{Generation, Pid};
use crate::process::facts::Facts;

/// A process that is profiled; what symbolizing needs of it.
#[derive(Debug, Clone)]
pub struct PythonProcess {
    /// The process.
    pub pid: Pid,
    /// The program that it runs.
    pub generation: Generation,
    /// The program that forked it; `None` when it runs a program of its own.
    pub forked_from: Option<Generation>,
    /// Names.
    pub facts: Facts,
    /// Its interpreter.
    pub interpreter: Interpreter,
}
