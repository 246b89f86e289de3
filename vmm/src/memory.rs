//! Guest memory: anonymous, private, not reserved, one mapping per range of RAM; and files placed into it.
//!
//! Huge pages are asked for: a kernel that boots in 4 KiB pages leaves guest mode thousands of times for them. Files are copied, not mapped,
//! for the same reason; a kernel patches most of its text while it boots, so little would stay shared. Mappings live as long as the process.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory as _, GuestMemoryError, GuestMemoryRegion,
    GuestRegionCollectionError, GuestRegionMmap, MmapRegion,
};
use vmm_virtio::GuestMemory;

use crate::layout::HUGE_PAGE_BYTES;

/// Why guest memory could not be made or filled.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host has no room for it.
    #[error("map {bytes} bytes")]
    Map {
        /// How much.
        bytes: u64,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// A mapping is not what vm-memory accepts.
    #[error("describe a mapping")]
    Describe(#[source] MmapRegionError),
    /// The ranges overlap or are empty.
    #[error("lay out the ranges")]
    Layout(#[source] GuestRegionCollectionError),
    /// A guest address is not RAM.
    #[error("guest address {address:#x} is not in memory")]
    Outside {
        /// The address.
        address: u64,
        /// What was asked.
        #[source]
        source: GuestMemoryError,
    },
    /// A file could not be read.
    #[error("read the file")]
    Read(#[source] io::Error),
}

/// Makes memory at the given ranges of guest addresses `(start, length)`.
pub fn allocate(ranges: &[(u64, u64)]) -> Result<GuestMemory, MemoryError> {
    let mut regions = Vec::with_capacity(ranges.len());
    for (start, bytes) in ranges {
        let mapping = map_aligned(*bytes)?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(*start)).ok_or(
            MemoryError::Layout(GuestRegionCollectionError::NoMemoryRegion),
        )?;
        regions.push(region);
    }
    GuestMemory::from_regions(regions).map_err(MemoryError::Layout)
}

/// The mappings of `memory`: guest address, host address, length.
#[must_use]
pub fn mappings(memory: &GuestMemory) -> Vec<(u64, u64, u64)> {
    memory
        .iter()
        .map(|region| {
            (
                region.start_addr().raw_value(),
                region.as_ptr().addr() as u64,
                region.len(),
            )
        })
        .collect()
}

/// Copies `length` bytes of `file` from `offset` on to a guest address.
pub fn place(
    memory: &GuestMemory,
    address: u64,
    file: &File,
    offset: u64,
    length: u64,
) -> Result<(), MemoryError> {
    let mut file = file;
    file.seek(SeekFrom::Start(offset))
        .map_err(MemoryError::Read)?;
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, to_usize(length)?)
        .map_err(|source| MemoryError::Outside { address, source })
}

/// Writes bytes at a guest address.
pub fn write(memory: &GuestMemory, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|source| MemoryError::Outside { address, source })
}

fn map_aligned(bytes: u64) -> Result<MmapRegion<()>, MemoryError> {
    let error = |source: rustix::io::Errno| MemoryError::Map {
        bytes,
        source: source.into(),
    };
    let size = to_usize(bytes)?;
    let align = to_usize(HUGE_PAGE_BYTES)?;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), size + align, protection, flags) }
        .map_err(error)?
        .cast::<u8>();
    let head = start.align_offset(align);
    let base = start.wrapping_add(head);
    if head > 0 {
        // SAFETY: the bytes below `base` are of the mapping just made, and nobody knows them.
        unsafe { munmap(start.cast(), head) }.map_err(error)?;
    }
    // SAFETY: so are those above the `size` bytes from `base` on; there is at least a page of them, as `head < align`.
    unsafe { munmap(base.wrapping_add(size).cast(), align - head) }.map_err(error)?;
    // SAFETY: advice on pages nobody has used yet changes no contents. A host without huge pages refuses it, and small ones do.
    let _huge = unsafe { madvise(base.cast(), size, Advice::LinuxHugepage) };
    let (protection, flags) = (protection.bits().cast_signed(), flags.bits().cast_signed());
    // SAFETY: `size` bytes are mapped at `base` and are never unmapped.
    unsafe { MmapRegion::build_raw(base, size, protection, flags) }.map_err(MemoryError::Describe)
}

fn to_usize(bytes: u64) -> Result<usize, MemoryError> {
    usize::try_from(bytes).map_err(|_| MemoryError::Map {
        bytes,
        source: io::ErrorKind::OutOfMemory.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn placed_part_of_a_file_touches_nothing_beside_it() {
        let memory = allocate(&[(0, 2 << 20)]).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 9000]).unwrap();
        place(&memory, 0x1001, &file, 1, 8000).unwrap();
        let byte = |at| memory.read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!(
            [
                byte(0x1000),
                byte(0x1001),
                byte(0x1001 + 7999),
                byte(0x1001 + 8000)
            ],
            [0, 7, 7, 0]
        );
    }

    #[test]
    fn file_beyond_memory_is_refused() {
        let memory = allocate(&[(0, 2 << 20)]).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        assert!(place(&memory, (2 << 20) - 4096, &file, 0, 8192).is_err());
    }

    #[test]
    fn mappings_start_on_huge_pages() {
        let memory = allocate(&[(0, 4 << 20), (1 << 32, 2 << 20)]).unwrap();
        for (_, host, _) in mappings(&memory) {
            assert!(host.is_multiple_of(HUGE_PAGE_BYTES));
        }
    }
}
