//! Guest memory: anonymous, private, not reserved, one mapping per range of RAM; and files placed into it.
//!
//! Huge pages are asked for: a kernel that boots in 4 KiB pages leaves guest mode thousands of times for them. Files are copied, not mapped,
//! for the same reason; a kernel patches most of its text while it boots, so little would stay shared. Mappings live as long as the process.
//!
//! Memory that comes and goes is a mapping like the others, but without any access until its blocks are plugged ([`Plugged`]).

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::{Deref, Range};
use std::ptr;
use std::sync::Arc;

use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munmap,
};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory as _, GuestMemoryError, GuestMemoryRegion,
    GuestRegionCollectionError, GuestRegionMmap, MmapRegion,
};
use vmm_virtio::GuestMemory;
use vmm_virtio::mem::Backing;

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

/// Guest memory that stays mapped until the process ends, also when this is dropped: what KVM and
/// the kernel are told of by address.
#[derive(Clone, Debug)]
pub struct Leaked(Arc<GuestMemory>);

impl Leaked {
    /// The memory, for those who take it as any other.
    #[must_use]
    pub fn shared(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.0)
    }
}

impl Deref for Leaked {
    type Target = GuestMemory;

    fn deref(&self) -> &GuestMemory {
        &self.0
    }
}

/// Makes memory at the given ranges of guest addresses `(start, length)`, and one mapping without access for the addresses of `region`, if
/// there are any.
pub fn allocate(ranges: &[(u64, u64)], region: &Range<u64>) -> Result<Leaked, MemoryError> {
    let usable = ProtFlags::READ | ProtFlags::WRITE;
    let mut ranges: Vec<_> = ranges
        .iter()
        .map(|(start, bytes)| (*start, *bytes, usable))
        .collect();
    if !region.is_empty() {
        ranges.push((region.start, region.end - region.start, ProtFlags::empty()));
    }
    let mut regions = Vec::with_capacity(ranges.len());
    for (start, bytes, protection) in &ranges {
        let mapping = map_aligned(*bytes, *protection)?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(*start)).ok_or(
            MemoryError::Layout(GuestRegionCollectionError::NoMemoryRegion),
        )?;
        regions.push(region);
    }
    let memory = GuestMemory::from_regions(regions).map_err(MemoryError::Layout)?;
    Ok(Leaked(Arc::new(memory)))
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

/// The mapping of the region in which blocks are plugged and unplugged.
#[derive(Debug)]
pub struct Plugged {
    memory: Leaked,
    /// Guest addresses.
    region: Range<u64>,
}

impl Plugged {
    /// For the region that `memory` was made with ([`allocate`]).
    #[must_use]
    pub fn new(memory: Leaked, region: Range<u64>) -> Self {
        Self { memory, region }
    }

    /// Where the host has a part of the region, and its length.
    fn place(&self, range: &Range<u64>) -> io::Result<(*mut c_void, usize)> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        let length = usize::try_from(range.end - range.start).map_err(|_| outside())?;
        let start = GuestAddress(self.region.start + range.start);
        if range.end > self.region.end - self.region.start {
            return Err(outside());
        }
        let slice = self.memory.get_slice(start, length);
        let slice = slice.map_err(io::Error::other)?;
        Ok((slice.ptr_guard_mut().as_ptr().cast(), length))
    }
}

impl Backing for Plugged {
    fn plug(&mut self, range: Range<u64>) -> io::Result<()> {
        let (start, length) = self.place(&range)?;
        let usable = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the range lies in a mapping of guest memory, which is never unmapped and to which there are no references; it only gains access.
        Ok(unsafe { mprotect(start, length, usable) }?)
    }

    fn unplug(&mut self, range: Range<u64>) -> io::Result<()> {
        let (start, length) = self.place(&range)?;
        // First, so that nobody fills what has been given back.
        // SAFETY: as in `plug`. A thread that accesses it from now on gets a fault, which ends the process.
        unsafe { mprotect(start, length, MprotectFlags::empty()) }?;
        // SAFETY: as in `plug`. The contents are the guest's, which has given them up.
        let given = unsafe { madvise(start, length, Advice::LinuxDontNeed) };
        if let Err(error) = given {
            self.plug(range)?;
            return Err(error.into());
        }
        Ok(())
    }
}

fn map_aligned(bytes: u64, protection: ProtFlags) -> Result<MmapRegion<()>, MemoryError> {
    let error = |source: rustix::io::Errno| MemoryError::Map {
        bytes,
        source: source.into(),
    };
    let size = to_usize(bytes)?;
    let align = to_usize(HUGE_PAGE_BYTES)?;
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
    // SAFETY: advice on pages nobody has used yet changes no contents; this one keeps them out of
    // core dumps.
    unsafe { madvise(base.cast(), size, Advice::LinuxDontDump) }.map_err(error)?;
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
        let memory = allocate(&[(0, 2 << 20)], &(0..0)).unwrap();
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
        let memory = allocate(&[(0, 2 << 20)], &(0..0)).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        assert!(place(&memory, (2 << 20) - 4096, &file, 0, 8192).is_err());
    }

    #[test]
    fn mappings_start_on_huge_pages() {
        let memory = allocate(&[(0, 4 << 20), (1 << 32, 2 << 20)], &(0..0)).unwrap();
        for (_, host, _) in mappings(&memory) {
            assert!(host.is_multiple_of(HUGE_PAGE_BYTES));
        }
    }

    #[test]
    fn no_core_dump_has_guest_memory_in_it() {
        let region = 4 << 30..(4 << 30) + (8 << 20);
        let memory = allocate(&[(0, 2 << 20)], &region).unwrap();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        // The kernel may have joined neighbours that are alike.
        let flags_at = |wanted: u64| {
            let mut inside = false;
            maps.lines().find_map(|line| {
                let range = line.split(' ').next()?.split_once('-');
                let number = |text| u64::from_str_radix(text, 16).ok();
                if let Some((start, end)) = range.and_then(|(a, b)| number(a).zip(number(b))) {
                    inside = (start..end).contains(&wanted);
                }
                line.strip_prefix("VmFlags:").filter(|_| inside)
            })
        };
        for (_, host, length) in mappings(&memory) {
            for address in [host, host + length - 1] {
                assert!(
                    flags_at(address)
                        .unwrap()
                        .split(' ')
                        .any(|flag| flag == "dd")
                );
            }
        }
    }

    #[test]
    fn plugged_memory_is_empty_each_time() {
        let region = 4 << 30..(4 << 30) + (8 << 20);
        let memory = allocate(&[(0, 2 << 20)], &region).unwrap();
        let mut plugged = Plugged::new(memory.clone(), region.clone());
        let place = GuestAddress(region.start + (4 << 20));
        for _ in 0..2 {
            plugged.plug(4 << 20..6 << 20).unwrap();
            assert_eq!(memory.read_obj::<u8>(place).unwrap(), 0);
            memory.write_obj(7u8, place).unwrap();
            plugged.unplug(4 << 20..6 << 20).unwrap();
        }
        assert!(plugged.plug(6 << 20..10 << 20).is_err());
    }

    #[test]
    fn memory_that_is_not_plugged_takes_nothing() {
        let region = 4 << 30..(4 << 30) + (4 << 20);
        let memory = allocate(&[(0, 2 << 20)], &region).unwrap();
        let mut plugged = Plugged::new(memory.clone(), region.clone());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 4096]).unwrap();
        // By a system call, which tells of it by an error and not by a signal.
        let fill = || place(&memory, region.start, &file, 0, 4096);
        assert!(fill().is_err());
        plugged.plug(0..2 << 20).unwrap();
        fill().unwrap();
        plugged.unplug(0..2 << 20).unwrap();
        assert!(fill().is_err());
    }
}
