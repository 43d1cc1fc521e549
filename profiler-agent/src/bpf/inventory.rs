//! What the kernel holds of a process's BPF programs and maps: for tests and for finding out what an agent
//! left behind. It looks from outside and changes nothing.

use std::fs;

use aya::maps::{HashMap, Map, MapData, MapError, MapInfo, MapType};
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

/// A map that a process holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedMap {
    /// Name, of which the kernel keeps 15 bytes.
    pub name: String,
    /// Bytes that it has for each possible CPU; 0 when it is no per-CPU map.
    pub bytes_per_cpu: u64,
    /// All of its memory, as the kernel counts it.
    pub memory_bytes: u64,
}

/// The maps that a process holds by file descriptor.
pub fn maps(pid: Pid) -> Result<Vec<LoadedMap>, InventoryError> {
    let mut maps = Vec::new();
    for id in ids(pid, "map_id:")? {
        let info = MapInfo::from_id(id)?;
        let is_per_cpu = matches!(
            info.map_type()?,
            MapType::PerCpuArray | MapType::PerCpuHash | MapType::LruPerCpuHash
        );
        let values =
            u64::from(info.value_size()).next_multiple_of(8) * u64::from(info.max_entries());
        let memory_bytes = field(pid, "map_id:", id, "memlock:")?;
        maps.push(LoadedMap {
            name: String::from_utf8_lossy(info.name()).into_owned(),
            bytes_per_cpu: if is_per_cpu { values } else { 0 },
            memory_bytes,
        });
    }
    Ok(maps)
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
    let descriptors = descriptors(pid)?;
    let ids = descriptors.iter().filter_map(|text| number(text, field));
    let mut ids: Vec<u32> = ids.filter_map(|id| id.try_into().ok()).collect();
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// The number behind `name` where that behind `key` is `id`; 0 when there is none.
fn field(pid: Pid, key: &str, id: u32, name: &str) -> Result<u64, InventoryError> {
    let descriptors = descriptors(pid)?;
    let described = descriptors
        .iter()
        .find(|text| number(text, key) == Some(id.into()));
    Ok(described.and_then(|text| number(text, name)).unwrap_or(0))
}

fn number(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// What the kernel says of each file descriptor of a process.
fn descriptors(pid: Pid) -> Result<Vec<String>, InventoryError> {
    let error = |error| InventoryError::Process(pid, error);
    let mut descriptors = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).map_err(error)? {
        // A descriptor can be closed while the folder is read.
        descriptors.extend(fs::read_to_string(entry.map_err(error)?.path()));
    }
    Ok(descriptors)
}
