//! The seccomp filter: libseccomp's program for the rules of the specification, behind a short one that knows which system calls are too new.
//!
//! ```text
//!   rules ─► libseccomp ─► program ─┐
//!   highest number of each ABI ─► answers ENOSYS above it ─┴─► seccomp(2)
//! ```
//!
//! A profile lists the calls that were known when it was written. C libraries try a newer call first and take another way when the kernel does
//! not have it (ENOSYS), but give up where it is forbidden (EPERM). So calls with a higher number than any in the profile are missing, as with
//! runc, unless the default action lets them through. A name that the library does not know is left out of the rules.
//!
//! Fails with a filter that libseccomp or the kernel does not take.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek};

use libc::sock_filter;
use libseccomp::error::SeccompError as LibraryError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

use crate::syscall::checked;

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilterError {
    #[error("cannot make the seccomp filter: {0}")]
    Library(#[from] LibraryError),
    #[error("{action:?} cannot have the error number {errno}")]
    ErrorNumber {
        action: LinuxSeccompAction,
        errno: u32,
    },
    #[error("{0:?} is not an action for a guest")]
    Action(LinuxSeccompAction),
    #[error("cannot read the seccomp filter: {0}")]
    Read(#[from] std::io::Error),
    #[error("cannot load the seccomp filter: {}", super::errno_text(*.0))]
    Load(Errno),
}

/// Bits of `seccomp_data.arch` (linux/audit.h).
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
/// Numbers of the x32 ABI have it, and share the architecture of x86-64.
const X32_BIT: u32 = 0x4000_0000;
/// What the kernel takes as one program.
const INSTRUCTIONS_MAX: usize = 4096;
/// Bytes of one instruction.
const INSTRUCTION: usize = size_of::<sock_filter>();

/// The highest number in the rules, by ABI. None: no rule is for it, and its calls are left to the rules.
#[derive(Clone, Copy, Debug, Default)]
struct Newest {
    x86_64: Option<u32>,
    x32: Option<u32>,
    i386: Option<u32>,
}

/// Loads the filter for this process. Nothing that it forbids can be done after this.
pub(super) fn load(seccomp: &LinuxSeccomp) -> Result<(), FilterError> {
    let rules = program(&rules(seccomp)?)?;
    let mut program = match lets_through(seccomp.default_action()) {
        true => Vec::new(),
        false => too_new(newest(seccomp)),
    };
    program.extend(rules);
    let flags = seccomp.flags().iter().flatten();
    install(&program, flags.fold(0, |all, flag| all | bit(*flag))).map_err(FilterError::Load)
}

/// Whoever traces may answer ENOSYS by himself.
fn lets_through(action: LinuxSeccompAction) -> bool {
    use LinuxSeccompAction as A;
    matches!(action, A::ScmpActAllow | A::ScmpActLog | A::ScmpActTrace)
}

fn bit(flag: LinuxSeccompFilterFlag) -> libc::c_ulong {
    use LinuxSeccompFilterFlag as F;
    match flag {
        F::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        F::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        // There is one thread and no listener.
        F::SeccompFilterFlagTsync | F::SeccompFilterFlagWaitKillableRecv => 0,
    }
}

/// The rules, as the library holds them.
fn rules(seccomp: &LinuxSeccomp) -> Result<ScmpFilterContext, FilterError> {
    let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default)?;
    for arch in seccomp.architectures().iter().flatten() {
        filter.add_arch(architecture(*arch))?;
    }
    for rule in seccomp.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        // The library refuses rules that change nothing.
        if action != default {
            add(&mut filter, action, rule)?;
        }
    }
    Ok(filter)
}

fn add(
    filter: &mut ScmpFilterContext,
    action: ScmpAction,
    rule: &LinuxSyscall,
) -> Result<(), FilterError> {
    let args = rule.args().as_deref().unwrap_or_default();
    let compared: Vec<_> = args.iter().map(compare).collect();
    let indices: HashSet<_> = args.iter().map(LinuxSeccompArg::index).collect();
    for name in rule.names() {
        let Ok(call) = ScmpSyscall::from_name(name) else {
            continue;
        };
        if indices.len() < args.len() {
            // The library compares an argument once in each rule: several comparisons of one are alternatives, as with runc.
            for one in &compared {
                filter.add_rule_conditional(action, call, std::slice::from_ref(one))?;
            }
        } else {
            filter.add_rule_conditional(action, call, &compared)?;
        }
    }
    Ok(())
}

fn compare(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    use LinuxSeccompOperator as O;
    let op = match arg.op() {
        O::ScmpCmpNe => ScmpCompareOp::NotEqual,
        O::ScmpCmpLt => ScmpCompareOp::Less,
        O::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        O::ScmpCmpEq => ScmpCompareOp::Equal,
        O::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        O::ScmpCmpGt => ScmpCompareOp::Greater,
        // The mask comes first, what is compared second.
        O::ScmpCmpMaskedEq => ScmpCompareOp::MaskedEqual(arg.value()),
    };
    let datum = match arg.op() {
        O::ScmpCmpMaskedEq => arg.value_two().unwrap_or(0),
        _ => arg.value(),
    };
    // The kernel has six arguments; a larger index is refused by the library.
    ScmpArgCompare::new(u32::try_from(arg.index()).unwrap_or(u32::MAX), op, datum)
}

fn action(given: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, FilterError> {
    use LinuxSeccompAction as A;
    let number = errno.unwrap_or(libc::EPERM.cast_unsigned());
    let wrong = || FilterError::ErrorNumber {
        action: given,
        errno: number,
    };
    Ok(match given {
        A::ScmpActAllow => ScmpAction::Allow,
        A::ScmpActLog => ScmpAction::Log,
        A::ScmpActErrno => ScmpAction::Errno(i32::try_from(number).map_err(|_| wrong())?),
        A::ScmpActTrace => ScmpAction::Trace(number.try_into().map_err(|_| wrong())?),
        A::ScmpActTrap => ScmpAction::Trap,
        A::ScmpActKill | A::ScmpActKillThread => ScmpAction::KillThread,
        A::ScmpActKillProcess => ScmpAction::KillProcess,
        A::ScmpActNotify => return Err(FilterError::Action(given)),
    })
}

fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

/// The library's program, instruction by instruction.
fn program(filter: &ScmpFilterContext) -> Result<Vec<sock_filter>, FilterError> {
    let mut file = File::from(memfd_create("seccomp", MemfdFlags::CLOEXEC).map_err(into_io)?);
    filter.export_bpf(&file)?;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let (instructions, _) = bytes.as_chunks::<INSTRUCTION>();
    Ok(instructions.iter().map(instruction).collect())
}

fn into_io(errno: Errno) -> std::io::Error {
    errno.into()
}

fn instruction(bytes: &[u8; INSTRUCTION]) -> sock_filter {
    let [code_0, code_1, jt, jf, k @ ..] = *bytes;
    sock_filter {
        code: u16::from_ne_bytes([code_0, code_1]),
        jt,
        jf,
        k: u32::from_ne_bytes(k),
    }
}

fn newest(seccomp: &LinuxSeccomp) -> Newest {
    let given = seccomp.architectures().as_deref().unwrap_or_default();
    let of = |arch| {
        let rules = seccomp.syscalls().iter().flatten();
        let names = rules.flat_map(LinuxSyscall::names);
        // Calls that an ABI does not have, have negative numbers.
        let numbers = names.filter_map(|name| {
            let call = ScmpSyscall::from_name_by_arch(name, arch).ok()?;
            u32::try_from(call.as_raw_syscall()).ok()
        });
        numbers.max()
    };
    let listed = |arch| given.contains(&arch);
    Newest {
        x86_64: of(ScmpArch::X8664),
        x32: listed(Arch::ScmpArchX32)
            .then(|| of(ScmpArch::X32))
            .flatten(),
        i386: listed(Arch::ScmpArchX86)
            .then(|| of(ScmpArch::X86))
            .flatten(),
    }
}

/// Answers ENOSYS for calls with higher numbers; all others go on behind its last instruction.
fn too_new(newest: Newest) -> Vec<sock_filter> {
    let bound = |value: Option<u32>| value.unwrap_or(u32::MAX);
    let is = |k, jt, jf| jump(libc::BPF_JEQ, k, jt, jf);
    let above = |k, jt, jf| jump(libc::BPF_JGT, k, jt, jf);
    vec![
        load_word(std::mem::offset_of!(libc::seccomp_data, arch)),
        // To 3 for x86-64, to 7 for i386, else to the end.
        is(AUDIT_ARCH_X86_64, 1, 0),
        is(AUDIT_ARCH_I386, 4, 7),
        load_word(std::mem::offset_of!(libc::seccomp_data, nr)),
        jump(libc::BPF_JSET, X32_BIT, 1, 0),
        above(bound(newest.x86_64), 3, 4),
        above(bound(newest.x32), 2, 3),
        load_word(std::mem::offset_of!(libc::seccomp_data, nr)),
        above(bound(newest.i386), 0, 1),
        sock_filter {
            code: opcode(libc::BPF_RET | libc::BPF_K),
            jt: 0,
            jf: 0,
            k: libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned(),
        },
    ]
}

fn load_word(offset: usize) -> sock_filter {
    sock_filter {
        code: opcode(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS),
        jt: 0,
        jf: 0,
        k: u32::try_from(offset).unwrap_or(u32::MAX),
    }
}

fn jump(condition: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: opcode(libc::BPF_JMP | condition | libc::BPF_K),
        jt,
        jf,
        k,
    }
}

/// Codes are 8 bits wide.
fn opcode(bits: u32) -> u16 {
    u16::try_from(bits).unwrap_or_default()
}

fn install(program: &[sock_filter], flags: libc::c_ulong) -> Result<(), Errno> {
    let len = Some(program.len()).filter(|len| *len <= INSTRUCTIONS_MAX);
    let len = len.and_then(|len| len.try_into().ok());
    let program = libc::sock_fprog {
        len: len.ok_or(Errno::TOOBIG)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the program is a sock_fprog with as many instructions as it says, which the kernel copies and does not change.
    checked(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    })
    .map(drop)
}

#[cfg(test)]
mod tests;
