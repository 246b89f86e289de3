//! The device rules of a cgroup (version 2): a BPF program that the kernel asks before a device is opened or its node made.
//!
//! ```text
//! linux.resources.devices ─► program (pure) ─► load ─► attach to the container's cgroup, and so to all cgroups below it
//! ```
//!
//! The kernel gives the program a `struct bpf_cgroup_dev_ctx`: kind of device and wanted access in one word, major and minor number; its result 1
//! allows the access (Linux, `Documentation/admin-guide/cgroup-v2.rst`, "Device controller"). As with version 1, the last rule decides that names
//! the device and the access; reading, writing and making a node are decided each for itself, and all that is wanted must be allowed. A rule for all
//! devices replaces those before it. What no rule names is denied, but for the devices that every container has.
//!
//! Fails for a rule that names no device or access, and where the kernel does not take the program. Loaded by a process that may; a container's own
//! programs can only forbid more.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::plan::DEFAULT_DEVICES;
use crate::syscall::checked;

/// The rules as instructions.
mod program;

use program::{Access, Device, Instruction, Kind, Rule};

/// Commands, kinds and flags of bpf(2).
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
/// Cgroups below may have programs of their own, which are asked as well.
const ALLOW_MULTI: u32 = 1 << 1;

/// What every container may do besides using its default devices, as runc has it: make any node; the console, the
/// pseudo-terminals; tun.
const ALWAYS: [Rule; 6] = [
    always(Kind::Character, None, None, Access::MKNOD),
    always(Kind::Block, None, None, Access::MKNOD),
    always(Kind::Character, Some(5), Some(1), Access::ALL),
    always(Kind::Character, Some(5), Some(2), Access::ALL),
    always(Kind::Character, Some(10), Some(200), Access::ALL),
    always(Kind::Character, Some(136), None, Access::ALL),
];

const fn always(kind: Kind, major: Option<u32>, minor: Option<u32>, access: Access) -> Rule {
    Rule {
        allow: true,
        device: Device { kind, major, minor },
        access,
    }
}

/// Why the rules of a container could not be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceRulesError {
    #[error("{0:?} is no kind of device: a, b and c are")]
    Kind(LinuxDeviceType),
    #[error("{0:?} is no access to a device: r, w and m are")]
    Access(char),
    #[error("the guest's kernel does not take the program: {0}")]
    Load(#[source] io::Error),
    #[error("cannot attach the program to the cgroup: {0}")]
    Attach(#[source] io::Error),
}

/// Has the kernel obey the rules for all processes in `cgroup` and below it, which has had none.
pub(crate) fn set(cgroup: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), DeviceRulesError> {
    let instructions = instructions(rules)?;
    let loaded = load(&instructions).map_err(DeviceRulesError::Load)?;
    let cgroup = File::open(cgroup).map_err(DeviceRulesError::Attach)?;
    attach(&loaded, &cgroup).map_err(DeviceRulesError::Attach)
}

fn instructions(given: &[LinuxDeviceCgroup]) -> Result<Vec<Instruction>, DeviceRulesError> {
    let mut rules = Vec::new();
    let mut otherwise = false;
    for rule in given {
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => {
                otherwise = rule.allow();
                rules.clear();
                continue;
            }
            LinuxDeviceType::B => Kind::Block,
            // mknod(1) takes it for the same.
            LinuxDeviceType::C | LinuxDeviceType::U => Kind::Character,
            other @ LinuxDeviceType::P => return Err(DeviceRulesError::Kind(other)),
        };
        let access = access(rule.access().as_deref().unwrap_or_default())?;
        if let (Some(major), Some(minor)) = (number(rule.major()), number(rule.minor())) {
            rules.push(Rule {
                allow: rule.allow(),
                device: Device { kind, major, minor },
                access,
            });
        }
    }
    rules.extend(ALWAYS);
    rules.extend(
        DEFAULT_DEVICES.map(|(_, major, minor)| {
            always(Kind::Character, Some(major), Some(minor), Access::ALL)
        }),
    );
    Ok(program::of(&rules, otherwise))
}

/// One number of a device, or any (`Some(None)`): not given, or negative. None for a number that no device has.
fn number(given: Option<i64>) -> Option<Option<u32>> {
    match given {
        Some(number) if number >= 0 => u32::try_from(number).ok().map(Some),
        _ => Some(None),
    }
}

fn access(letters: &str) -> Result<Access, DeviceRulesError> {
    letters.chars().try_fold(Access::NONE, |access, letter| {
        Ok(access.and(match letter {
            'r' => Access::READ,
            'w' => Access::WRITE,
            'm' => Access::MKNOD,
            other => return Err(DeviceRulesError::Access(other)),
        }))
    })
}

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`; those that are left out are zero for the kernel.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The fields of `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    target_fd: RawFd,
    attach_bpf_fd: RawFd,
    attach_type: u32,
    attach_flags: u32,
}

fn load(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let insn_cnt =
        u32::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let attributes = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt,
        insns: instructions.as_ptr().expose_provenance() as u64,
        // It calls no function of the kernel's that would ask for another.
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: the attributes are those of the command; instructions and licence outlive the call, which only reads them.
    let loaded = unsafe { bpf(PROG_LOAD, &attributes) }?;
    let loaded = RawFd::try_from(loaded).map_err(io::Error::other)?;
    // SAFETY: the call has just made the descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(loaded) })
}

fn attach(loaded: &OwnedFd, cgroup: &File) -> io::Result<()> {
    let attributes = Attach {
        target_fd: cgroup.as_raw_fd(),
        attach_bpf_fd: loaded.as_raw_fd(),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    // SAFETY: the attributes are those of the command, and name no memory.
    unsafe { bpf(PROG_ATTACH, &attributes) }.map(drop)
}

/// bpf(2).
///
/// # Safety
///
/// The attributes are those of `command`; memory that they name is as the command wants it until the call returns.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i64> {
    // SAFETY: the kernel reads as many bytes as the attributes have; the caller answers for what is in them.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    checked(result).map_err(io::Error::from)
}

#[cfg(test)]
mod tests;
