//! Native leaf frames and kernel frames of samples.

use std::sync::Arc;

use crate::ids::{Address, Generation};
use crate::profile::aggregate::ResolvedFrame;
use crate::track::process::TrackedProcess;

/// Names native and kernel addresses; owns what it has read of files.
#[derive(Debug, Default)]
pub struct NativeSymbolizer {}

impl NativeSymbolizer {
    /// Appends the kernel frames, leaf first.
    pub fn kernel_frames(&mut self, _addresses: &[u64], _frames: &mut Vec<ResolvedFrame>) {}

    /// Appends the native leaf: the function that runs outside of the eval loop.
    pub fn leaf_frame(&mut self, _process: &Arc<TrackedProcess>, _ip: Address, _frames: &mut Vec<ResolvedFrame>) {}

    /// Forgets a program.
    pub fn remove(&mut self, _generation: Generation) {}
}
