//! The Firefox Profiler's processed profiles, by the crate of its author: processes, threads, and samples with the CPU time
//! that they stand for. Samples of a thread follow each other as its stacks do, not as they were taken.

use std::io::{self, Write};

use fxprof_processed_profile::{
    CategoryColor, CategoryPairHandle, CpuDelta, Frame as FxFrame, FrameFlags, FrameInfo,
    Profile as FxProfile, SamplingInterval, Timestamp, WeightType,
};

use super::perf::{MAX_EVENTS, step};
use super::text::frame_text;
use super::threads::{by_thread, id, process_name, thread_name};
use crate::profile::measure::{Measure, Unit};
use crate::profile::model::{FrameKind, Profile};

/// Writes the profile for profiler.firefox.com.
pub(super) fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    let measure = Measure::main(profile);
    let is_time = measure.unit == Unit::Time;
    let is_one_by_one = measure.unit != Unit::Bytes && profile.n_samples() <= MAX_EVENTS;
    let step = step(profile).as_nanos() as u64;
    let mut written = FxProfile::new(
        &super::title::title(profile),
        profile.start.into(),
        SamplingInterval::from_nanos(step),
    );
    written.set_symbolicated(true);
    let categories = Categories::of(&mut written);
    let start = Timestamp::from_nanos_since_reference(0);
    let mut process = None;
    let mut most: Option<(i64, _)> = None;
    for group in by_thread(profile) {
        let pid = id(group.thread.pid);
        let is_main = group.thread.pid == group.thread.tid;
        let handle = match process {
            Some((known, handle)) if known == pid => handle,
            _ => written.add_process(&process_name(&group.thread), pid, start),
        };
        process = Some((pid, handle));
        let thread = written.add_thread(handle, id(group.thread.tid), start, is_main);
        written.set_thread_name(thread, &thread_name(&group.thread));
        let weight_type = if measure.unit == Unit::Bytes {
            WeightType::Bytes
        } else {
            WeightType::Samples
        };
        written.set_thread_samples_weight_type(thread, weight_type);
        let mut at = 0_u64;
        let mut whole = 0_i64;
        for (stack, values) in &group.stacks {
            let amount = measure.amount(*values);
            let frames: Vec<FrameInfo> = profile
                .frames(*stack)
                .rev()
                .map(|frame| FrameInfo {
                    frame: FxFrame::Label(written.intern_string(&frame_text(&frame))),
                    category_pair: categories.of_kind(frame.kind),
                    flags: FrameFlags::empty(),
                })
                .collect();
            let stack = written.intern_stack_frames(thread, frames.into_iter());
            // One by one, so that the track shows how much there is; else one with all of its weight.
            let (n_samples, weight) = if is_one_by_one {
                (amount.n_samples, 1)
            } else if measure.unit == Unit::Bytes {
                (i64::from(amount.weight != 0), amount.weight)
            } else {
                (i64::from(amount.n_samples != 0), amount.n_samples)
            };
            for _ in 0..n_samples {
                let cpu = if is_time { step } else { 0 };
                written.add_sample(
                    thread,
                    Timestamp::from_nanos_since_reference(at),
                    stack,
                    CpuDelta::from_nanos(cpu),
                    i32::try_from(weight).unwrap_or(i32::MAX),
                );
                at = at.saturating_add(step);
            }
            whole = whole.saturating_add(amount.weight);
        }
        if most.is_none_or(|(known, _)| whole > known) {
            most = Some((whole, thread));
        }
    }
    if let Some((_, thread)) = most {
        written.add_initial_visible_thread(thread);
        written.add_initial_selected_thread(thread);
    }
    serde_json::to_writer(out, &written)?;
    Ok(())
}

/// What tells kinds of code apart, by colour.
struct Categories {
    python: CategoryPairHandle,
    native: CategoryPairHandle,
    kernel: CategoryPairHandle,
    reason: CategoryPairHandle,
}

impl Categories {
    fn of(profile: &mut FxProfile) -> Self {
        let mut add = |name, color| profile.add_category(name, color).into();
        Self {
            python: add("Python", CategoryColor::Yellow),
            native: add("Native", CategoryColor::Green),
            kernel: add("Kernel", CategoryColor::Orange),
            reason: add("Other remarks", CategoryColor::Gray),
        }
    }

    fn of_kind(&self, kind: FrameKind) -> CategoryPairHandle {
        match kind {
            FrameKind::Python => self.python,
            FrameKind::Native => self.native,
            FrameKind::Kernel => self.kernel,
            FrameKind::Reason => self.reason,
        }
    }
}
