//! Who the process is: ids, capabilities, limits.

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities,
};

use super::{Doing, StepError};
use crate::plan::{Capabilities, Process, Rlimit};

/// After entering a user namespace: its root.
pub(super) fn become_root() -> Result<(), StepError> {
    let doing = || "cannot become root of the user namespace".to_owned();
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)).doing(doing)?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).doing(doing)
}

/// Takes the user and the groups. What this process may do stays as it is until [`drop_to`].
pub(super) fn assume(process: &Process) -> Result<(), StepError> {
    let groups: Vec<Gid> = process.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).doing(|| format!("cannot set additional groups {:?}", process.groups))?;
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    setresgid(gid, gid, gid).doing(|| format!("cannot become group {gid}"))?;
    set_keep_capabilities(true).doing(|| "cannot keep capabilities".to_owned())?;
    setresuid(uid, uid, uid).doing(|| format!("cannot become user {uid}"))?;
    set_keep_capabilities(false).doing(|| "cannot keep capabilities".to_owned())?;
    // The change of user has emptied the effective set; what is left to do needs it.
    let sets = capabilities(None).doing(|| "cannot read capabilities".to_owned())?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: sets.permitted,
            ..sets
        },
    )
    .doing(|| "cannot raise capabilities".to_owned())
}

/// Takes everything that is not in the set away from all that this process will ever become.
pub(super) fn bound(wanted: &Capabilities) -> Result<(), StepError> {
    for capability in known() {
        if wanted.bounding & capability.bits() == 0 {
            remove_capability_from_bounding_set(capability)
                .doing(|| "cannot bound capabilities".to_owned())?;
        }
    }
    Ok(())
}

/// Down to the capabilities that the program is to have.
pub(super) fn drop_to(wanted: &Capabilities) -> Result<(), StepError> {
    let set = |bits| CapabilitySet::from_bits_retain(bits) & all_known();
    let doing = || "cannot set capabilities".to_owned();
    clear_ambient_capability_set().doing(doing)?;
    // A new permitted set can only be a part of the present one.
    let held = capabilities(None).doing(doing)?.permitted;
    let permitted = set(wanted.permitted) & held;
    let sets = CapabilitySets {
        effective: set(wanted.effective) & permitted,
        permitted,
        inheritable: set(wanted.inheritable),
    };
    set_capabilities(None, sets).doing(doing)?;
    for capability in (set(wanted.ambient) & permitted).iter() {
        configure_capability_in_ambient_set(capability, true).doing(doing)?;
    }
    Ok(())
}

/// Every capability that the running kernel knows.
fn known() -> impl Iterator<Item = CapabilitySet> {
    (0..64)
        .map(|bit| CapabilitySet::from_bits_retain(1 << bit))
        .take_while(|capability| rustix::thread::capability_is_in_bounding_set(*capability).is_ok())
}

fn all_known() -> CapabilitySet {
    known().fold(CapabilitySet::empty(), |all, capability| all | capability)
}

/// Sets one limit of this process.
pub(super) fn set_rlimit(limit: &Rlimit) -> Result<(), StepError> {
    use rustix::process::Resource as R;
    /// The kernel's numbers are indices here.
    const RESOURCES: [R; 16] = [
        R::Cpu,
        R::Fsize,
        R::Data,
        R::Stack,
        R::Core,
        R::Rss,
        R::Nproc,
        R::Nofile,
        R::Memlock,
        R::As,
        R::Locks,
        R::Sigpending,
        R::Msgqueue,
        R::Nice,
        R::Rtprio,
        R::Rttime,
    ];
    let doing = || format!("cannot set resource limit {}", limit.resource);
    let index = usize::try_from(limit.resource).unwrap_or(usize::MAX);
    let resource = *RESOURCES
        .get(index)
        .ok_or(rustix::io::Errno::INVAL)
        .doing(doing)?;
    let bounded = |value| (value != u64::MAX).then_some(value);
    let new = rustix::process::Rlimit {
        current: bounded(limit.soft),
        maximum: bounded(limit.hard),
    };
    rustix::process::setrlimit(resource, new).doing(doing)
}
