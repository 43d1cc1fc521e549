//! Functions, and who calls whom, as the stacks show it: what pstats tells of a program that was traced.

use std::cmp::Reverse;
use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::measure::{Amount, Measure};
use super::model::{FunctionId, Profile, StackId};

/// How much of a profile is a function's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionAmounts {
    /// The function.
    pub function: FunctionId,
    /// Of the samples in which it was the leaf.
    pub own: Amount,
    /// Of those in which it was anywhere in the stack; a recursion counts once.
    pub total: Amount,
}

/// A call from one function to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Who calls.
    pub caller: FunctionId,
    /// Who is called.
    pub callee: FunctionId,
    /// Of the samples with this call in their stack; once each.
    pub total: Amount,
    /// Of those in which the called one was the leaf.
    pub own: Amount,
}

/// What each stack counts, over all threads.
pub(super) fn by_stack(
    profile: &Profile,
    measure: Measure,
) -> HashMap<StackId, Amount, RandomState> {
    let mut amounts: HashMap<StackId, Amount, RandomState> = HashMap::default();
    for sample in &profile.samples {
        amounts
            .entry(sample.stack)
            .or_default()
            .add(measure.of(sample));
    }
    amounts
}

/// Every function that was sampled, in the order of the profile's table.
#[must_use]
pub fn functions(profile: &Profile, measure: Measure) -> Vec<FunctionAmounts> {
    let ids = (0..profile.functions.len()).map(|idx| FunctionId(idx as u32));
    let mut all: Vec<FunctionAmounts> = ids
        .map(|function| FunctionAmounts {
            function,
            own: Amount::default(),
            total: Amount::default(),
        })
        .collect();
    // For each function the last stack that it was counted for.
    let mut counted_for = vec![None; all.len()];
    for (stack, amount) in by_stack(profile, measure) {
        for (depth, frame) in profile.frames(stack).enumerate() {
            let idx = frame.function.0 as usize;
            if depth == 0 {
                all[idx].own.add(amount);
            }
            if counted_for[idx] != Some(stack) {
                counted_for[idx] = Some(stack);
                all[idx].total.add(amount);
            }
        }
    }
    all.retain(|function| function.total != Amount::default());
    all
}

/// Every function by the profile's weight: the most of its own first, then the most in all, then in the order of the table.
#[must_use]
pub fn hottest(profile: &Profile) -> Vec<FunctionAmounts> {
    let mut all = functions(profile, Measure::weight(profile));
    all.retain(|function| function.total.weight != 0);
    all.sort_by_key(|function| Reverse((function.own.weight, function.total.weight)));
    all
}

/// Every call that was sampled, in no order.
#[must_use]
pub fn calls(profile: &Profile, measure: Measure) -> Vec<Call> {
    let mut found: HashMap<(FunctionId, FunctionId), (Call, Option<StackId>), RandomState> =
        HashMap::default();
    for (stack, amount) in by_stack(profile, measure) {
        let mut inner: Option<FunctionId> = None;
        for (depth, frame) in profile.frames(stack).enumerate() {
            if let Some(callee) = inner {
                let ends = (frame.function, callee);
                let new = Call {
                    caller: frame.function,
                    callee,
                    total: Amount::default(),
                    own: Amount::default(),
                };
                let (call, counted_for) = found.entry(ends).or_insert((new, None));
                if depth == 1 {
                    call.own.add(amount);
                }
                if *counted_for != Some(stack) {
                    *counted_for = Some(stack);
                    call.total.add(amount);
                }
            }
            inner = Some(frame.function);
        }
    }
    found.into_values().map(|(call, _)| call).collect()
}
