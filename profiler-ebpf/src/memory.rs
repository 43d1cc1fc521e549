//! `ReadUser` over the kernel's helpers, and reads of kernel structures.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user};
use profiler_common::unwind::{Fault, ReadUser, WINDOW_BYTES, Window};

/// Reads the memory of the current task. A page that is not resident is a fault: nothing is paged in.
pub(crate) struct CurrentTask;

impl ReadUser for CurrentTask {
    #[inline(always)]
    fn words<const N: usize>(&mut self, address: u64) -> Result<[u64; N], Fault> {
        let mut words = MaybeUninit::<[u64; N]>::uninit();
        // SAFETY: the buffer has room for what is read; the helper checks the address.
        let error = unsafe {
            bpf_probe_read_user(
                words.as_mut_ptr().cast(),
                size_of::<[u64; N]>() as u32,
                address as *const _,
            )
        };
        if error != 0 {
            return Err(Fault);
        }
        // SAFETY: the helper filled it (it zeroes the buffer when it fails).
        Ok(unsafe { words.assume_init() })
    }

    #[inline(always)]
    fn u32(&mut self, address: u64) -> Result<u32, Fault> {
        let mut word = MaybeUninit::<u32>::uninit();
        // SAFETY: as above.
        let error =
            unsafe { bpf_probe_read_user(word.as_mut_ptr().cast(), 4, address as *const _) };
        if error == 0 {
            // SAFETY: as above.
            Ok(unsafe { word.assume_init() })
        } else {
            Err(Fault)
        }
    }

    #[inline(always)]
    fn window(&mut self, address: u64, n_bytes: u64, window: &mut Window) -> Result<(), Fault> {
        // The verifier wants to see the bound where the length is used.
        let n_bytes = core::hint::black_box(n_bytes);
        if n_bytes > WINDOW_BYTES {
            return Err(Fault);
        }
        let words = window.words_mut().as_mut_ptr();
        // SAFETY: the window has room for `n_bytes`; the helper checks the address.
        let error =
            unsafe { bpf_probe_read_user(words.cast(), n_bytes as u32, address as *const _) };
        if error == 0 { Ok(()) } else { Err(Fault) }
    }
}

/// Fills a `T` with kernel memory; `None` leaves zeros.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub(crate) fn kernel_into<T: Copy>(address: u64, into: &mut T) -> Option<()> {
    // SAFETY: there is room for a `T`, which any bytes are a value of; the helper checks the address.
    let error = unsafe {
        bpf_probe_read_kernel(
            (&raw mut *into).cast(),
            size_of::<T>() as u32,
            address as *const _,
        )
    };
    (error == 0).then_some(())
}

/// Reads a `T` of kernel memory.
#[inline(always)]
pub(crate) fn kernel<T: Copy>(address: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the buffer has room for a `T`, which any bytes are a value of; the helper checks the address.
    let error = unsafe {
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        )
    };
    if error == 0 {
        // SAFETY: the helper filled it.
        Some(unsafe { value.assume_init() })
    } else {
        None
    }
}
