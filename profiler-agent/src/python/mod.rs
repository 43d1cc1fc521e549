//! What is known of CPython: how to find its structures in a process and what their bytes mean.

pub mod binary;
pub mod bytecode;
pub mod code;
pub mod discover;
pub mod gc;
pub mod layout;
pub mod line_table;
pub mod locals;
pub mod native_ids;
pub mod opcodes;
pub mod process;
pub mod refusal;
pub mod runtime;
pub mod small_objects;
pub mod string;
pub mod thread_bytecode;
pub mod thread_name;
pub mod value;
pub mod verify;
