//! The kernel's segments and the initrd: where they go, and placing them there.
//!
//! The ELF header is read once into a list of segments ([`parse`], pure), which are then copied to where they are linked to run.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vmm_virtio::GuestMemory;

use crate::layout::{HIGH_RAM, MMIO_GAP, PAGE_BYTES};
use crate::memory::{self, MemoryError};

/// The ELF header and the program headers of any kernel lie within the first page.
const HEADERS_BYTES: usize = 4096;
/// A kernel has 5; more than these is no kernel.
const SEGMENTS_MAX: u16 = 32;

/// Why a kernel or an initrd cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file could not be read.
    #[error("read the file")]
    Read(#[source] io::Error),
    /// Not an ELF file for this machine; a compressed `bzImage` is not one either.
    #[error("not an uncompressed 64-bit x86 ELF kernel")]
    NotKernel,
    /// The kernel's segments do not lie in RAM above 1 MiB.
    #[error("the kernel needs memory up to {end:#x}, the machine has it up to {available:#x}")]
    TooLarge {
        /// Where the kernel ends.
        end: u64,
        /// Where low memory ends.
        available: u64,
    },
    /// No room for the initrd above the kernel.
    #[error("an initrd of {bytes} bytes does not fit into the memory above the kernel")]
    NoRoomForInitrd {
        /// Its size.
        bytes: u64,
    },
    /// A part could not be placed in guest memory.
    #[error("place it in guest memory")]
    Place(#[source] MemoryError),
}

/// A part of the kernel file and where it is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file.
    pub offset: u64,
    /// The guest physical address.
    pub address: u64,
    /// Bytes in the file.
    pub file_bytes: u64,
    /// Bytes in memory; those beyond the file's are zero.
    pub memory_bytes: u64,
}

/// A kernel file, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Guest physical address of the first instruction.
    pub entry: u64,
    /// What to load.
    pub segments: Vec<Segment>,
}

/// A range of guest memory that was filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Places the kernel and returns its entry point and the end of its memory.
pub fn load(
    memory: &GuestMemory,
    memory_bytes: u64,
    file: &File,
) -> Result<(u64, u64), KernelError> {
    let mut headers = [0; HEADERS_BYTES];
    file.read_exact_at(&mut headers, 0)
        .map_err(KernelError::Read)?;
    let image = parse(&headers).ok_or(KernelError::NotKernel)?;
    let end = image.end().ok_or(KernelError::NotKernel)?;
    let available = memory_bytes.min(MMIO_GAP);
    if end > available {
        return Err(KernelError::TooLarge { end, available });
    }
    for segment in &image.segments {
        memory::place(
            memory,
            segment.address,
            file,
            segment.offset,
            segment.file_bytes,
        )
        .map_err(KernelError::Place)?;
    }
    Ok((image.entry, end))
}

/// Places the initrd at the top of low memory.
pub fn load_initrd(
    memory: &GuestMemory,
    memory_bytes: u64,
    kernel_end: u64,
    file: &File,
) -> Result<Placed, KernelError> {
    let bytes = file.metadata().map_err(KernelError::Read)?.len();
    let address = initrd_address(memory_bytes.min(MMIO_GAP), kernel_end, bytes)
        .ok_or(KernelError::NoRoomForInitrd { bytes })?;
    memory::place(memory, address, file, 0, bytes).map_err(KernelError::Place)?;
    Ok(Placed { address, bytes })
}

impl Image {
    /// The end of the highest segment. None if one wraps around or lies below 1 MiB.
    fn end(&self) -> Option<u64> {
        let mut end = 0;
        for segment in &self.segments {
            if segment.address < HIGH_RAM {
                return None;
            }
            end = end.max(segment.address.checked_add(segment.memory_bytes)?);
        }
        Some(end)
    }
}

/// Understands the headers of an ELF executable for x86-64 (System V ABI, "Program Loading"). None if it is not one.
#[must_use]
pub fn parse(headers: &[u8]) -> Option<Image> {
    const MAGIC_64_BIT_LITTLE_ENDIAN: &[u8] = b"\x7fELF\x02\x01\x01";
    const EXECUTABLE: u16 = 2;
    const X86_64: u16 = 62;
    const PROGRAM_HEADER_BYTES: u16 = 56;
    const LOAD: u32 = 1;

    if !headers.starts_with(MAGIC_64_BIT_LITTLE_ENDIAN)
        || u16_at(headers, 16)? != EXECUTABLE
        || u16_at(headers, 18)? != X86_64
        || u16_at(headers, 54)? != PROGRAM_HEADER_BYTES
    {
        return None;
    }
    let count = u16_at(headers, 56)?;
    if count > SEGMENTS_MAX {
        return None;
    }
    let table = usize::try_from(u64_at(headers, 32)?).ok()?;
    let mut segments = Vec::new();
    for index in 0..count {
        let at = table.checked_add(usize::from(index * PROGRAM_HEADER_BYTES))?;
        if u32_at(headers, at)? != LOAD {
            continue;
        }
        segments.push(Segment {
            offset: u64_at(headers, at.checked_add(8)?)?,
            address: u64_at(headers, at.checked_add(24)?)?,
            file_bytes: u64_at(headers, at.checked_add(32)?)?,
            memory_bytes: u64_at(headers, at.checked_add(40)?)?,
        });
    }
    let whole = segments
        .iter()
        .all(|segment| segment.file_bytes <= segment.memory_bytes);
    (whole && !segments.is_empty()).then_some(Image {
        entry: u64_at(headers, 24)?,
        segments,
    })
}

fn initrd_address(memory_end: u64, kernel_end: u64, bytes: u64) -> Option<u64> {
    let address = memory_end.checked_sub(bytes)? / PAGE_BYTES * PAGE_BYTES;
    (address >= kernel_end).then_some(address)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(segments: &[Segment]) -> Vec<u8> {
        let mut bytes = vec![0; HEADERS_BYTES];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        bytes[16] = 2;
        bytes[18] = 62;
        bytes[24..32].copy_from_slice(&0x100_0000u64.to_le_bytes());
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[54] = 56;
        bytes[56] = u8::try_from(segments.len()).unwrap();
        for (index, segment) in segments.iter().enumerate() {
            let at = 64 + index * 56;
            bytes[at] = 1;
            bytes[at + 8..at + 16].copy_from_slice(&segment.offset.to_le_bytes());
            bytes[at + 24..at + 32].copy_from_slice(&segment.address.to_le_bytes());
            bytes[at + 32..at + 40].copy_from_slice(&segment.file_bytes.to_le_bytes());
            bytes[at + 40..at + 48].copy_from_slice(&segment.memory_bytes.to_le_bytes());
        }
        bytes
    }

    const TEXT: Segment = Segment {
        offset: 0x1000,
        address: 0x100_0000,
        file_bytes: 10,
        memory_bytes: 20,
    };

    #[test]
    fn kernel_headers_become_segments() {
        let image = parse(&elf(&[TEXT])).unwrap();
        assert_eq!(
            image,
            Image {
                entry: 0x100_0000,
                segments: vec![TEXT]
            }
        );
        assert_eq!(image.end(), Some(0x100_0014));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(&[0; 4096]), None);
        assert_eq!(parse(&elf(&[])), None);
        assert_eq!(
            parse(&elf(&[Segment {
                file_bytes: 21,
                ..TEXT
            }])),
            None
        );
        let mut far = elf(&[TEXT]);
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(parse(&far), None);
    }

    #[test]
    fn segments_outside_of_ram_have_no_end() {
        let at = |address, memory_bytes| Image {
            entry: 0,
            segments: vec![Segment {
                address,
                memory_bytes,
                ..TEXT
            }],
        };
        assert_eq!(at(0x1000, 20).end(), None);
        assert_eq!(at(u64::MAX, 20).end(), None);
    }

    #[test]
    fn initrd_lies_at_the_top_and_above_the_kernel() {
        assert_eq!(
            initrd_address(0x1000_0000, 0x200_0000, 5000),
            Some(0xfff_e000)
        );
        assert_eq!(initrd_address(0x1000_0000, 0x200_0000, 0x0f00_0000), None);
        assert_eq!(initrd_address(0x1000, 0, 0x2000), None);
    }
}
