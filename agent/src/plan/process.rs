//! The `process` of a specification, checked and put into kernel terms (pure).

use std::collections::HashSet;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSyscall, PosixRlimitType};
use serde::{Deserialize, Serialize};

use super::PlanError;
use super::schedule::{self, Schedule};

/// A process as it is to be when its program begins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Never empty.
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    /// Absolute.
    pub(crate) cwd: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) umask: u32,
    pub(crate) capabilities: Capabilities,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) no_new_privileges: bool,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) seccomp: Option<LinuxSeccomp>,
    pub(crate) schedule: Schedule,
    pub(crate) terminal: bool,
    pub(crate) size: WindowSize,
    /// The terminal passes line ends on as they are.
    pub(crate) keep_newlines: bool,
}

/// Columns and rows of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WindowSize {
    pub(crate) width: u16,
    pub(crate) height: u16,
}

/// The five capability sets, one bit per capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Capabilities {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) inheritable: u64,
    pub(crate) permitted: u64,
    pub(crate) ambient: u64,
}

/// A resource limit. `resource` is the kernel's `RLIMIT_*` number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rlimit {
    pub(crate) resource: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// The umask of a process that asks for none.
const UMASK_DEFAULT: u32 = 0o022;
/// `RLIMIT_NOFILE`.
const NOFILE: u32 = 7;
/// Open files of a process that says nothing of them: what systemd gives to every service, and so what a container inherits from runc on a
/// usual host. The agent's own limit is a matter of its own.
const NOFILE_DEFAULT: Rlimit = Rlimit {
    resource: NOFILE,
    soft: 1024,
    hard: 524_288,
};

pub(super) fn read(
    given: &oci_spec::runtime::Process,
    seccomp: Option<&LinuxSeccomp>,
    size: WindowSize,
) -> Result<Process, PlanError> {
    let args = given.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(PlanError::Missing("program to run (process.args)"));
    }
    if !given.cwd().is_absolute() {
        return Err(PlanError::RelativeCwd(given.cwd().clone()));
    }
    if let Some(seccomp) = seccomp {
        check_filter(seccomp)?;
    }
    let env = given.env().clone().unwrap_or_default();
    if let Some(value) = args.iter().chain(&env).find(|text| text.contains('\0')) {
        return Err(PlanError::Invalid {
            what: "argument or variable",
            value: value.clone(),
        });
    }
    let console_size = given
        .console_size()
        .as_ref()
        .map(|size| (size.width(), size.height()));
    Ok(Process {
        args,
        env: without_repeats(env),
        cwd: given.cwd().clone(),
        uid: given.user().uid(),
        gid: given.user().gid(),
        groups: given.user().additional_gids().clone().unwrap_or_default(),
        umask: given.user().umask().unwrap_or(UMASK_DEFAULT) & 0o777,
        capabilities: given
            .capabilities()
            .as_ref()
            .map(capabilities)
            .unwrap_or_default(),
        rlimits: rlimits(given)?,
        no_new_privileges: given.no_new_privileges().unwrap_or(false),
        oom_score_adj: given.oom_score_adj(),
        seccomp: seccomp.cloned(),
        schedule: schedule::read(given)?,
        terminal: given.terminal().unwrap_or(false),
        size: size.or(console_size),
        keep_newlines: false,
    })
}

/// Of the values that a variable is given, the last counts.
fn without_repeats(env: Vec<String>) -> Vec<String> {
    let mut names = HashSet::new();
    let mut env: Vec<_> = env
        .into_iter()
        .rev()
        .filter(|entry| {
            let name = entry.split_once('=').map_or(&**entry, |(name, _)| name);
            names.insert(name.to_owned())
        })
        .collect();
    env.reverse();
    env
}

/// What a filter would ask somebody about, who is on the host and cannot look into the guest.
/// `SCMP_ACT_NOTIFY` needs a listener, which would be on the host; the path of one that is never notified has no effect.
fn check_filter(seccomp: &LinuxSeccomp) -> Result<(), PlanError> {
    use LinuxSeccompAction as A;
    let rules = seccomp.syscalls().as_deref().unwrap_or_default();
    let mut actions = rules.iter().map(LinuxSyscall::action);
    if seccomp.default_action() == A::ScmpActNotify
        || actions.any(|action| action == A::ScmpActNotify)
    {
        return Err(PlanError::Unsupported {
            what: "linux.seccomp with SCMP_ACT_NOTIFY".to_owned(),
        });
    }
    for rule in rules {
        if rule.names().is_empty() {
            return Err(PlanError::Missing(
                "name in a rule of linux.seccomp.syscalls",
            ));
        }
        let has_errno = matches!(rule.action(), A::ScmpActErrno | A::ScmpActTrace);
        if rule.errno_ret().is_some() && !has_errno {
            return Err(PlanError::Conflict {
                what: format!("linux.seccomp, rule of {}", rule.names().join(", ")),
                why: "errnoRet is for SCMP_ACT_ERRNO and SCMP_ACT_TRACE only",
            });
        }
    }
    Ok(())
}

impl Process {
    /// The terminal is to be like this; a size that says nothing is left.
    pub(crate) fn take(&mut self, size: WindowSize, keep_newlines: bool) {
        if size != WindowSize::default() {
            self.size = size;
        }
        self.keep_newlines |= keep_newlines;
    }
}

impl WindowSize {
    /// This size, where it says something; else the other.
    fn or(self, other: Option<(u64, u64)>) -> Self {
        let narrow = |value| u16::try_from(value).unwrap_or(u16::MAX);
        match other {
            Some((width, height)) if self == Self::default() => Self {
                width: narrow(width),
                height: narrow(height),
            },
            _ => self,
        }
    }
}

fn capabilities(given: &oci_spec::runtime::LinuxCapabilities) -> Capabilities {
    let bits = |set: &Option<oci_spec::runtime::Capabilities>| {
        set.iter()
            .flatten()
            .fold(0, |bits, capability| bits | 1 << number(*capability))
    };
    let sets = Capabilities {
        bounding: bits(given.bounding()),
        effective: bits(given.effective()),
        inheritable: bits(given.inheritable()),
        permitted: bits(given.permitted()),
        ambient: bits(given.ambient()),
    };
    // A capability can be raised in the ambient set only where it is permitted and inheritable.
    Capabilities {
        ambient: sets.ambient & sets.permitted & sets.inheritable,
        ..sets
    }
}

/// The kernel's number of a capability (`linux/capability.h`).
fn number(capability: oci_spec::runtime::Capability) -> u32 {
    use oci_spec::runtime::Capability as C;
    match capability {
        C::Chown => 0,
        C::DacOverride => 1,
        C::DacReadSearch => 2,
        C::Fowner => 3,
        C::Fsetid => 4,
        C::Kill => 5,
        C::Setgid => 6,
        C::Setuid => 7,
        C::Setpcap => 8,
        C::LinuxImmutable => 9,
        C::NetBindService => 10,
        C::NetBroadcast => 11,
        C::NetAdmin => 12,
        C::NetRaw => 13,
        C::IpcLock => 14,
        C::IpcOwner => 15,
        C::SysModule => 16,
        C::SysRawio => 17,
        C::SysChroot => 18,
        C::SysPtrace => 19,
        C::SysPacct => 20,
        C::SysAdmin => 21,
        C::SysBoot => 22,
        C::SysNice => 23,
        C::SysResource => 24,
        C::SysTime => 25,
        C::SysTtyConfig => 26,
        C::Mknod => 27,
        C::Lease => 28,
        C::AuditWrite => 29,
        C::AuditControl => 30,
        C::Setfcap => 31,
        C::MacOverride => 32,
        C::MacAdmin => 33,
        C::Syslog => 34,
        C::WakeAlarm => 35,
        C::BlockSuspend => 36,
        C::AuditRead => 37,
        C::Perfmon => 38,
        C::Bpf => 39,
        C::CheckpointRestore => 40,
    }
}

fn rlimits(given: &oci_spec::runtime::Process) -> Result<Vec<Rlimit>, PlanError> {
    let mut limits: Vec<Rlimit> = Vec::new();
    for given in given.rlimits().iter().flatten() {
        let limit = rlimit(given);
        if limits.iter().any(|other| other.resource == limit.resource) {
            return Err(PlanError::Conflict {
                what: format!("process.rlimits, {}", given.typ()),
                why: "it is there twice",
            });
        }
        limits.push(limit);
    }
    if limits.iter().all(|limit| limit.resource != NOFILE) {
        limits.push(NOFILE_DEFAULT);
    }
    Ok(limits)
}

fn rlimit(given: &oci_spec::runtime::PosixRlimit) -> Rlimit {
    use PosixRlimitType as T;
    let resource = match given.typ() {
        T::RlimitCpu => 0,
        T::RlimitFsize => 1,
        T::RlimitData => 2,
        T::RlimitStack => 3,
        T::RlimitCore => 4,
        T::RlimitRss => 5,
        T::RlimitNproc => 6,
        T::RlimitNofile => NOFILE,
        T::RlimitMemlock => 8,
        T::RlimitAs => 9,
        T::RlimitLocks => 10,
        T::RlimitSigpending => 11,
        T::RlimitMsgqueue => 12,
        T::RlimitNice => 13,
        T::RlimitRtprio => 14,
        T::RlimitRttime => 15,
    };
    Rlimit {
        resource,
        soft: given.soft(),
        hard: given.hard(),
    }
}
