//! The Firefox Profiler's processed profiles, by the crate of its author: processes, threads, and samples with the CPU time
//! that they stand for.
//!
//! Samples with their times are where they were taken. Between stretches in which a thread ran there is a sample without a
//! stack, so that it is drawn as idle; markers show when it held the global interpreter lock; it begins and ends with what was
//! seen of it. Without times the samples of a thread follow each other as its stacks do.

use std::io::{self, Write};

use fxprof_processed_profile::{
    CategoryColor, CategoryHandle, CategoryPairHandle, CpuDelta, Frame as FxFrame, FrameFlags,
    FrameInfo, MarkerTiming, ProcessHandle, Profile as FxProfile, SamplingInterval, StackHandle,
    StaticSchemaMarker, StaticSchemaMarkerField, StringHandle, ThreadHandle, Timestamp, WeightType,
};

use super::perf::{MAX_EVENTS, step};
use super::text::frame_text_in;
use super::threads::{ThreadStacks, by_thread, id, process_name, thread_name};
use super::timeline::{ThreadCourse, Timeline, period};
use crate::profile::measure::{Measure, Unit};
use crate::profile::model::{FrameKind, Profile, StackId, Thread};

/// Writes the profile for profiler.firefox.com.
pub(super) fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    let timeline = Timeline::of(profile);
    let start = timeline.as_ref().map_or(profile.start, |it| it.start);
    let mut written = Written::new(profile, start);
    match &timeline {
        Some(timeline) => {
            for course in &timeline.threads {
                written.course(course);
            }
        }
        None => {
            let measure = Measure::main(profile);
            for group in by_thread(profile) {
                written.sums(&group, measure);
            }
        }
    }
    serde_json::to_writer(out, &written.finish())?;
    Ok(())
}

/// What is being written, and the thread that is shown first: the one with most.
struct Written<'a> {
    profile: &'a Profile,
    fx: FxProfile,
    categories: Categories,
    process: Option<(u32, ProcessHandle)>,
    most: Option<(i64, ThreadHandle)>,
}

fn at(ns: u64) -> Timestamp {
    Timestamp::from_nanos_since_reference(ns)
}

impl<'a> Written<'a> {
    fn new(profile: &'a Profile, start: std::time::SystemTime) -> Self {
        let step = step(profile).as_nanos() as u64;
        let mut fx = FxProfile::new(
            &super::title::title(profile),
            start.into(),
            SamplingInterval::from_nanos(step),
        );
        fx.set_symbolicated(true);
        let categories = Categories::of(&mut fx);
        Self {
            profile,
            fx,
            categories,
            process: None,
            most: None,
        }
    }

    /// A thread, in its process; they come process by process.
    fn thread(&mut self, thread: &Thread<'_>, start: u64) -> ThreadHandle {
        let pid = id(thread.pid);
        let is_main = thread.pid == thread.tid;
        let process = match self.process {
            Some((known, handle)) if known == pid => handle,
            _ => self.fx.add_process(&process_name(thread), pid, at(0)),
        };
        self.process = Some((pid, process));
        let handle = self
            .fx
            .add_thread(process, id(thread.tid), at(start), is_main);
        self.fx.set_thread_name(handle, &thread_name(thread));
        handle
    }

    fn stack(&mut self, thread: ThreadHandle, stack: StackId) -> Option<StackHandle> {
        let frames: Vec<FrameInfo> = self
            .profile
            .frames(stack)
            .rev()
            .map(|frame| FrameInfo {
                frame: FxFrame::Label(self.fx.intern_string(&frame_text_in(self.profile, &frame))),
                category_pair: self.categories.of_kind(frame.kind),
                flags: FrameFlags::empty(),
            })
            .collect();
        self.fx.intern_stack_frames(thread, frames.into_iter())
    }

    fn weigh(&mut self, thread: ThreadHandle, whole: i64) {
        if self.most.is_none_or(|(known, _)| whole > known) {
            self.most = Some((whole, thread));
        }
    }

    /// A thread whose samples have their times.
    fn course(&mut self, course: &ThreadCourse<'_>) {
        let (Some(first), Some(last)) = (course.ticks.first(), course.ticks.last()) else {
            return;
        };
        let period = period(self.profile);
        let thread = self.thread(&course.thread, first.at.saturating_sub(period));
        self.fx.set_thread_end_time(thread, at(last.to));
        self.fx
            .set_thread_samples_weight_type(thread, WeightType::Samples);
        // Handles of stacks, so that a stack that comes again is not looked up frame by frame.
        let mut known = std::collections::HashMap::new();
        let mut before = 0;
        for stretch in course.stretches() {
            let ticks = course.ticks.get(stretch).unwrap_or_default();
            let Some(first) = ticks.first() else {
                continue;
            };
            // The CPU time of a sample is that since the one before.
            before = first.at.saturating_sub(period).max(before);
            self.fx
                .add_sample(thread, at(before), None, CpuDelta::ZERO, 0);
            for tick in ticks {
                let stack = match known.get(&tick.stack) {
                    Some(stack) => *stack,
                    None => {
                        let stack = self.stack(thread, tick.stack);
                        known.insert(tick.stack, stack);
                        stack
                    }
                };
                let cpu = CpuDelta::from_nanos(tick.at.saturating_sub(before));
                let weight = i32::try_from(tick.count).unwrap_or(i32::MAX);
                self.fx.add_sample(thread, at(tick.at), stack, cpu, weight);
                before = tick.at;
            }
            before = ticks.last().map_or(before, |last| last.to);
            self.fx
                .add_sample(thread, at(before), None, CpuDelta::ZERO, 0);
        }
        let held = course.holds_gil();
        if !held.is_empty() {
            self.fx.set_thread_show_markers_in_timeline(thread, true);
            let name = self.fx.intern_string("holds the GIL");
            for span in held {
                let timing = MarkerTiming::Interval(at(span.start), at(span.end));
                let category = self.categories.gil;
                self.fx
                    .add_marker(thread, timing, HoldsGil { name, category });
            }
        }
        self.weigh(
            thread,
            i64::try_from(course.n_samples()).unwrap_or(i64::MAX),
        );
    }

    /// A thread of sums.
    fn sums(&mut self, group: &ThreadStacks<'_>, measure: Measure) {
        let profile = self.profile;
        let is_one_by_one = measure.unit != Unit::Bytes && profile.n_samples() <= MAX_EVENTS;
        let step = step(profile).as_nanos() as u64;
        let thread = self.thread(&group.thread, 0);
        let weight_type = if measure.unit == Unit::Bytes {
            WeightType::Bytes
        } else {
            WeightType::Samples
        };
        self.fx.set_thread_samples_weight_type(thread, weight_type);
        let mut time = 0_u64;
        let mut whole = 0_i64;
        for (stack, values) in &group.stacks {
            let amount = measure.amount(*values);
            let stack = self.stack(thread, *stack);
            // One by one, so that the track shows how much there is; else one with all of its weight.
            let (n_samples, weight) = if is_one_by_one {
                (amount.n_samples, 1)
            } else if measure.unit == Unit::Bytes {
                (i64::from(amount.weight != 0), amount.weight)
            } else {
                (i64::from(amount.n_samples != 0), amount.n_samples)
            };
            let cpu = if measure.unit == Unit::Time { step } else { 0 };
            for _ in 0..n_samples {
                self.fx.add_sample(
                    thread,
                    at(time),
                    stack,
                    CpuDelta::from_nanos(cpu),
                    i32::try_from(weight).unwrap_or(i32::MAX),
                );
                time = time.saturating_add(step);
            }
            whole = whole.saturating_add(amount.weight);
        }
        self.weigh(thread, whole);
    }

    fn finish(mut self) -> FxProfile {
        if let Some((_, thread)) = self.most {
            self.fx.add_initial_visible_thread(thread);
            self.fx.add_initial_selected_thread(thread);
        }
        self.fx
    }
}

/// A marker for the time in which a thread held the global interpreter lock.
struct HoldsGil {
    name: StringHandle,
    category: CategoryHandle,
}

impl StaticSchemaMarker for HoldsGil {
    const UNIQUE_MARKER_TYPE_NAME: &'static str = "GIL";
    const DESCRIPTION: Option<&'static str> =
        Some("Samples of the thread that follow each other and held the global interpreter lock");
    const FIELDS: &'static [StaticSchemaMarkerField] = &[];

    fn name(&self, _profile: &mut FxProfile) -> StringHandle {
        self.name
    }

    fn category(&self, _profile: &mut FxProfile) -> CategoryHandle {
        self.category
    }

    fn string_field_value(&self, _field_index: u32) -> StringHandle {
        self.name
    }

    fn number_field_value(&self, _field_index: u32) -> f64 {
        0.0
    }
}

/// What tells kinds of code apart, by colour.
struct Categories {
    python: CategoryPairHandle,
    native: CategoryPairHandle,
    kernel: CategoryPairHandle,
    reason: CategoryPairHandle,
    gil: CategoryHandle,
}

impl Categories {
    fn of(profile: &mut FxProfile) -> Self {
        let mut add = |name, color| profile.add_category(name, color);
        Self {
            python: add("Python", CategoryColor::Yellow).into(),
            native: add("Native", CategoryColor::Green).into(),
            kernel: add("Kernel", CategoryColor::Orange).into(),
            reason: add("Other remarks", CategoryColor::Gray).into(),
            gil: CategoryHandle::OTHER,
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
