//! What the calibration program looks at in the kernel, see the agent's `kernel::calibration`.

/// Bytes of one look.
pub const PEEK_BYTES: usize = 256;

/// Looks of one round. Side by side they cover more than the facts of a `task_struct` need.
pub const N_PEEKS: u32 = 64;

/// One look at the `task_struct` of a thread that ends, or behind a pointer in it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Peek {
    /// Bytes into the `task_struct`.
    pub offset: u32,
    /// 1: what lies there is a pointer, and what it points to is looked at.
    pub is_pointer: u32,
    /// Then so many bytes behind that.
    pub behind: u32,
    /// Thread that was looked at, written last; 0 before.
    pub tid: u32,
    /// Whether it could be read.
    pub is_read: u32,
    /// Not used; zero.
    pub reserved: u32,
    /// The pointer.
    pub pointer: u64,
    /// What lies there.
    pub bytes: [u8; PEEK_BYTES],
}

impl Peek {
    /// A look at a `task_struct`.
    #[must_use]
    pub const fn at(offset: u32) -> Self {
        Self {
            offset,
            is_pointer: 0,
            behind: 0,
            tid: 0,
            is_read: 0,
            reserved: 0,
            pointer: 0,
            bytes: [0; PEEK_BYTES],
        }
    }

    /// A look `behind` bytes behind where the pointer at `offset` points to.
    #[must_use]
    pub const fn through(offset: u32, behind: u32) -> Self {
        Self {
            is_pointer: 1,
            behind,
            ..Self::at(offset)
        }
    }
}
