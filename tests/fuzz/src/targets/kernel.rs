//! The kernel's file: headers are read, segments are placed, and nothing lies where no segment is.
//!
//! The file is the supervisor's and trusted; what is promised is an error instead of a panic, and
//! that a file says where its own bytes go and no more.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use husk_vmm::boot::kernel::{self, Image, KernelError};
use rustix::fs::MemfdFlags;
use vm_memory::{Bytes, GuestAddress};
use vmm_virtio::GuestMemory;

/// Above the lowest address of a kernel, 1 MiB, by as much as a small kernel needs.
const MEMORY_BYTES: usize = (1 << 20) + (64 << 10);
/// Headers must be within the first page.
const PAGE_BYTES: usize = 4096;

pub(crate) fn run(bytes: &[u8]) {
    let parsed = kernel::parse(bytes);
    if let Some(image) = &parsed {
        check_image(image);
    }
    let mut padded = bytes.to_vec();
    padded.resize(PAGE_BYTES.max(bytes.len()), 0);
    load(&padded);
}

fn check_image(image: &Image) {
    assert!(!image.segments.is_empty() && image.segments.len() <= 32);
    for segment in &image.segments {
        assert!(segment.file_bytes <= segment.memory_bytes);
    }
}

fn load(bytes: &[u8]) {
    let file = File::from(rustix::fs::memfd_create("kernel", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(bytes, 0).unwrap();
    let memory = memory();
    let zeroes = vec![0; MEMORY_BYTES];
    memory.write_slice(&zeroes, GuestAddress(0)).unwrap();
    let size = u64::try_from(MEMORY_BYTES).unwrap();
    let loaded = kernel::load(memory, size, &file);
    let Some(image) = kernel::parse(&bytes[..PAGE_BYTES]) else {
        assert!(matches!(loaded, Err(KernelError::NotKernel)));
        return;
    };
    if let Ok((entry, end)) = loaded {
        assert_eq!(entry, image.entry);
        assert!(end <= size);
        let initrd = kernel::load_initrd(memory, size, end, &file);
        if let Ok(placed) = initrd {
            assert!(placed.address >= end && placed.address + placed.bytes <= size);
            return;
        }
    }
    check_untouched(memory, &image);
}

/// What no segment covers is as it was.
fn check_untouched(memory: &GuestMemory, image: &Image) {
    let mut contents = vec![0; MEMORY_BYTES];
    memory.read_slice(&mut contents, GuestAddress(0)).unwrap();
    for segment in &image.segments {
        let place = usize::try_from(segment.address).ok().and_then(|start| {
            Some(start..start.checked_add(usize::try_from(segment.file_bytes).ok()?)?)
        });
        if let Some(part) = place.and_then(|place| {
            let end = place.end.min(MEMORY_BYTES);
            contents.get_mut(place.start..end)
        }) {
            part.fill(0);
        }
    }
    assert!(
        contents.iter().all(|byte| *byte == 0),
        "bytes beside the segments"
    );
}

fn memory() -> &'static GuestMemory {
    static MEMORY: OnceLock<GuestMemory> = OnceLock::new();
    MEMORY.get_or_init(|| GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap())
}
