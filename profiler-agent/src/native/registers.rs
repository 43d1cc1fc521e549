//! The general registers of x86-64 by their number, as records have them.

/// `UserRegisters::general`, by register number: ax, cx, dx, bx, (sp), bp, si, di, r8 to r15.
pub(super) const GENERAL_IDX: [Option<u8>; 16] = [
    Some(10),
    Some(11),
    Some(12),
    Some(5),
    None,
    Some(4),
    Some(13),
    Some(14),
    Some(9),
    Some(8),
    Some(7),
    Some(6),
    Some(3),
    Some(2),
    Some(1),
    Some(0),
];
