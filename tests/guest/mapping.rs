//! Mapped files: one byte of them at a time.

use std::fs::File;
use std::ptr::{self, NonNull};

use anyhow::{Context, Result};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

/// The bytes of a mapping.
pub(crate) struct Bytes {
    start: NonNull<u8>,
    length: usize,
}

impl Bytes {
    pub(crate) fn set(&self, at: usize, byte: u8) {
        assert!(at < self.length);
        // SAFETY: the byte lies in the mapping, which lives as long as `self` and which no reference points into.
        let place = unsafe { self.start.add(at) };
        // SAFETY: as above; the mapping is writable.
        unsafe { place.write_volatile(byte) };
    }

    pub(crate) fn get(&self, at: usize) -> u8 {
        assert!(at < self.length);
        // SAFETY: the byte lies in the mapping, which lives as long as `self`.
        let place = unsafe { self.start.add(at) };
        // SAFETY: as above; the mapping is readable.
        unsafe { place.read_volatile() }
    }
}

/// Maps a file, does something with it and unmaps it.
pub(crate) fn with<T>(
    file: &File,
    length: usize,
    shared: bool,
    work: impl FnOnce(&Bytes) -> T,
) -> Result<T> {
    let flags = if shared {
        MapFlags::SHARED
    } else {
        MapFlags::PRIVATE
    };
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, at an address of the kernel's choice, overlaps nothing.
    let start = unsafe { mmap(ptr::null_mut(), length, access, flags, file, 0) }?;
    let bytes = Bytes {
        start: NonNull::new(start.cast()).context("mapped at 0")?,
        length,
    };
    let result = work(&bytes);
    if shared {
        // SAFETY: the range is the mapping's.
        unsafe { msync(start, length, MsyncFlags::SYNC) }?;
    }
    // SAFETY: the range is the mapping's, and `bytes` is not used again.
    unsafe { munmap(start, length) }?;
    Ok(result)
}
