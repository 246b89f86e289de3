//! System call filters, one per kind of thread: what is not listed in `seccomp/x86_64.json` ends
//! the process ([`violation`]).
//!
//! The programs are compiled when the VMM is built. A filter stays with its thread for good and
//! with all threads it makes; threads only narrow it.

use std::io;

use seccompiler::{BpfProgram, apply_filter, sock_filter};
use vmm_virtio::Confine;

use crate::violation;

/// The filters by the names under which threads confine themselves.
const FILTERS: &[(&str, &[u8])] = &[
    (
        "control",
        include_bytes!(concat!(env!("OUT_DIR"), "/control.bpf")),
    ),
    (
        "vcpu",
        include_bytes!(concat!(env!("OUT_DIR"), "/vcpu.bpf")),
    ),
    (
        "devices",
        include_bytes!(concat!(env!("OUT_DIR"), "/devices.bpf")),
    ),
    (
        "vsock",
        include_bytes!(concat!(env!("OUT_DIR"), "/vsock.bpf")),
    ),
    ("fs", include_bytes!(concat!(env!("OUT_DIR"), "/fs.bpf"))),
    (
        "console",
        include_bytes!(concat!(env!("OUT_DIR"), "/console.bpf")),
    ),
    ("rng", include_bytes!(concat!(env!("OUT_DIR"), "/rng.bpf"))),
    ("mem", include_bytes!(concat!(env!("OUT_DIR"), "/mem.bpf"))),
];

/// Confinement of threads by their filters, or none when `enabled` is false.
#[must_use]
pub fn confine(enabled: bool) -> Confine {
    if enabled {
        Confine::new(load)
    } else {
        Confine::none()
    }
}

/// Confines the calling thread for good.
pub fn load(thread: &'static str) -> io::Result<()> {
    let program = program(thread).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("no filter for a thread {thread}"),
        )
    })?;
    violation::confined_as(thread);
    apply_filter(&program).map_err(io::Error::other)
}

fn program(thread: &str) -> Option<BpfProgram> {
    let (_, bytes) = FILTERS.iter().find(|(name, _)| *name == thread)?;
    let (steps, _) = bytes.as_chunks::<8>();
    Some(steps.iter().map(step).collect())
}

fn step(bytes: &[u8; 8]) -> sock_filter {
    let [a, b, jt, jf, k0, k1, k2, k3] = *bytes;
    sock_filter {
        code: u16::from_le_bytes([a, b]),
        jt,
        jf,
        k: u32::from_le_bytes([k0, k1, k2, k3]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_has_a_filter_that_ends_with_a_decision() {
        const RETURN: u16 = 6;
        for (thread, _) in FILTERS {
            let program = program(thread).unwrap();
            assert_eq!(program.last().unwrap().code, RETURN, "{thread}");
        }
        assert!(program("none").is_none());
    }
}
