//! Entropy of the host's for the kernel's generator (random(4)).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

use crate::syscall::checked;

/// The most that is taken at once; the kernel's pool has 32 bytes.
const ENTROPY_MAX: usize = 512;
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// The argument of RNDADDENTROPY, `struct rand_pool_info`.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    len: i32,
    bytes: [u8; ENTROPY_MAX],
}

/// Mixes `entropy` in, credits it in full, and reseeds the generator from it at once.
pub(crate) fn add(entropy: &[u8]) -> io::Result<()> {
    let entropy = &entropy[..entropy.len().min(ENTROPY_MAX)];
    let len = i32::try_from(entropy.len()).map_err(io::Error::other)?;
    let mut info = PoolInfo {
        entropy_bits: len * 8,
        len,
        bytes: [0; ENTROPY_MAX],
    };
    info.bytes[..entropy.len()].copy_from_slice(entropy);
    let device = OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: `info` is a rand_pool_info whose `len` says how many of its bytes are to be read.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) })?;
    Ok(())
}
