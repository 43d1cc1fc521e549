//! What the kernel holds of a process's BPF programs and maps: for tests and for finding out what an agent
//! left behind. It looks from outside and changes nothing.

use std::fs;

use aya::maps::{HashMap, Map, MapData, MapError, MapInfo};
use aya::programs::{ProgramError, loaded_programs};

use super::tables::EntryValue;
use crate::ids::Pid;

/// Why the inventory could not be taken. All of it needs CAP_SYS_ADMIN.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The process has gone, or /proc hides it.
    #[error("/proc/{0}/fdinfo: {1}")]
    Process(Pid, std::io::Error),
    /// The kernel does not list its programs.
    #[error("programs: {0}")]
    Programs(#[from] ProgramError),
    /// A map could not be read.
    #[error("maps: {0}")]
    Maps(#[from] MapError),
}

/// A program that the kernel has loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedProgram {
    /// The kernel's number.
    pub id: u32,
    /// Name, of which the kernel keeps 15 bytes.
    pub name: String,
    /// Instructions that the verifier looked at, over all paths (5.16+).
    pub verified_instructions: Option<u32>,
}

/// Every program that is loaded now, whoever loaded it.
pub fn programs() -> Result<Vec<LoadedProgram>, InventoryError> {
    let mut programs = Vec::new();
    for info in loaded_programs() {
        let info = match info {
            Ok(info) => info,
            // It was unloaded while the list was read.
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        programs.push(LoadedProgram {
            id: info.id(),
            name: String::from_utf8_lossy(info.name()).into_owned(),
            verified_instructions: info.verified_instruction_count(),
        });
    }
    Ok(programs)
}

/// Numbers of the programs that a process holds by file descriptor.
pub fn program_ids(pid: Pid) -> Result<Vec<u32>, InventoryError> {
    ids(pid, "prog_id:")
}

/// The processes in the process map that an agent holds.
pub fn profiled_pids(agent: Pid) -> Result<Vec<Pid>, InventoryError> {
    for id in ids(agent, "map_id:")? {
        if MapInfo::from_id(id)?.name() == b"PROCESSES" {
            let map: HashMap<MapData, u32, EntryValue> =
                Map::HashMap(MapData::from_id(id)?).try_into()?;
            return Ok(map.keys().filter_map(Result::ok).map(Pid).collect());
        }
    }
    Ok(Vec::new())
}

/// The numbers behind `field` in the descriptions of a process's file descriptors (proc_pid_fdinfo(5)).
fn ids(pid: Pid, field: &str) -> Result<Vec<u32>, InventoryError> {
    let error = |error| InventoryError::Process(pid, error);
    let mut ids = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).map_err(error)? {
        // A descriptor can be closed while the folder is read.
        let Ok(text) = fs::read_to_string(entry.map_err(error)?.path()) else {
            continue;
        };
        ids.extend(
            text.lines()
                .filter_map(|line| line.strip_prefix(field)?.trim().parse::<u32>().ok()),
        );
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
