//! Tells the program that a process runs from those that it ran before: an exec keeps its number and the time of its start.

use std::fmt;
use std::fs;
use std::io;

use super::facts::stand_in;
use crate::ids::Pid;

/// What differs from exec to exec: the kernel places a program, its stack and its libraries anew each time, and says where
/// in the auxiliary vector. Where that is switched off (`setarch --addr-no-randomize`), a program that becomes
/// itself again is taken for the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramId(u64);

impl ProgramId {
    /// Of the program that a process runs now.
    pub fn of_process(pid: Pid) -> io::Result<Self> {
        let shown = stand_in(pid).unwrap_or(pid);
        let auxiliary_vector = fs::read(format!("/proc/{shown}/auxv"))?;
        if auxiliary_vector.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self(fnv1a(&auxiliary_vector)))
    }
}

impl fmt::Display for ProgramId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The hash FNV-1a of 64 bits: the same in every build, since files hold it.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn an_exec_is_another_program_and_waiting_is_not() {
        let mut shell = Command::new("sh")
            .args(["-c", "echo; read line; exec sh -c 'echo; read line'"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(shell.stdout.take().unwrap()).lines();
        let pid = Pid(shell.id());
        lines.next().unwrap().unwrap();
        let first = ProgramId::of_process(pid).unwrap();
        assert_eq!(ProgramId::of_process(pid).unwrap(), first);
        shell.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        lines.next().unwrap().unwrap();
        assert_ne!(ProgramId::of_process(pid).unwrap(), first);
        shell.kill().unwrap();
        shell.wait().unwrap();
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        // Of the reference, draft-eastlake-fnv.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
