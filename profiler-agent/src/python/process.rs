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
    /// Names.
    pub facts: Facts,
    /// Its interpreter.
    pub interpreter: Interpreter,
}
