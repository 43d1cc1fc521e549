//! What the resident memory of a process is made of, in words.

use crate::format::bytes_text;
use crate::profile::memory::Parts;

/// Parts that are smaller are not named, in bytes.
const MIN_NAMED: u64 = 50 << 10;

/// `412.0 MiB resident: small objects 33.1 MiB (31.0 MiB in use), malloc 300.2 MiB, mmap 60.0 MiB`. What the parts do not
/// explain of what is resident, or are more than that, comes last.
#[must_use]
pub fn parts_text(parts: &Parts) -> String {
    let resident = parts.resident;
    let text = |n_bytes: u64| bytes_text(i64::try_from(n_bytes).unwrap_or(i64::MAX));
    let mut named: Vec<String> = parts
        .named()
        .into_iter()
        .filter(|(_, n_bytes)| *n_bytes >= MIN_NAMED)
        .map(|(name, n_bytes)| format!("{name} {}", text(n_bytes)))
        .collect();
    let in_use = format!(" ({} in use)", text(parts.small_objects_in_use));
    if let Some(first) = named
        .first_mut()
        .filter(|_| parts.small_objects >= MIN_NAMED)
    {
        first.push_str(&in_use);
    }
    // The kernel's count lags: it is kept by each CPU.
    let difference = resident.abs_diff(parts.total());
    if difference >= MIN_NAMED {
        let what = if resident > parts.total() {
            "not explained"
        } else {
            "counted twice"
        };
        named.push(format!("{what} {}", text(difference)));
    }
    format!("{} resident: {}", text(resident), named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn parts_are_named_largest_kinds_first_and_the_rest_is_said() {
        let parts = Parts {
            small_objects: 33 * MIB,
            small_objects_in_use: 31 * MIB,
            malloc: 300 * MIB,
            stacks: 4096,
            resident: 340 * MIB,
            ..Parts::default()
        };
        assert_eq!(
            parts_text(&parts),
            "340.0 MiB resident: small objects 33.0 MiB (31.0 MiB in use), malloc 300.0 MiB, not explained 7.0 MiB"
        );
        let none = Parts::default();
        assert_eq!(parts_text(&none), "0 B resident: ");
    }
}
