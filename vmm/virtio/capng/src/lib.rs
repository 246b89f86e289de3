//! Capabilities of the calling thread, with as much of the crate `capng`'s interface as virtiofsd uses.
//!
//! It takes that crate's place (`[patch]` in the workspace) because `capng` is a face of the C library libcap-ng: a static build would need
//! that library's archive installed, and the library reads `/proc`, which a jailed thread has not. Here are two system calls, `capget` and
//! `capset`. The FUSE server drops `CAP_FSETID` around a write that must clear set-user-id bits, so these run on the data path.
//!
//! As in libcap-ng a thread has a draft of its sets: [`get_caps_process`] and [`have_capability`] fill it from the kernel, [`clear`] and
//! [`update`] change it, [`apply`] hands it to the kernel.

use std::cell::Cell;
use std::fmt;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// The number of a capability, its bit in a set.
pub type Capability = u32;

/// The result of every function that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a capability could not be looked up or changed.
#[derive(Debug)]
#[expect(
    clippy::error_impl_error,
    reason = "the interface this crate takes over has the name"
)]
pub enum Error {
    /// No capability that virtiofsd changes has this name.
    GetCapabilityId(String),
    /// `capget` failed.
    GetProcessCapabilities,
    /// `capset` failed.
    ApplyCapabilities,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GetCapabilityId(name) => write!(f, "no capability {name}"),
            Self::GetProcessCapabilities => f.write_str("read the thread's capabilities"),
            Self::ApplyCapabilities => f.write_str("change the thread's capabilities"),
        }
    }
}

impl std::error::Error for Error {}

/// One of a thread's sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// What the kernel checks.
    EFFECTIVE,
    /// What may be made effective.
    PERMITTED,
}

/// What [`clear`] and [`apply`] are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Effective, permitted and inheritable.
    CAPS,
    /// The same: the bounding set is the jail's business.
    BOTH,
}

/// The direction of an [`update`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take the capability out of the set.
    DROP,
    /// Put it in.
    ADD,
}

/// One change of a set.
#[derive(Clone, Copy, Debug)]
pub struct CUpdate {
    /// Its direction.
    pub action: Action,
    /// The set.
    pub cap_type: Type,
    /// The capability.
    pub capability: Capability,
}

const EMPTY: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

thread_local! {
    static DRAFT: Cell<CapabilitySets> = const { Cell::new(EMPTY) };
}

/// The number of the capability called `name`, without `CAP_`.
pub fn name_to_capability(name: &str) -> Result<Capability> {
    let set = match name {
        "DAC_OVERRIDE" => CapabilitySet::DAC_OVERRIDE,
        "FSETID" => CapabilitySet::FSETID,
        _ => return Err(Error::GetCapabilityId(name.to_owned())),
    };
    Ok(set.bits().trailing_zeros())
}

/// Makes the thread's sets the draft.
pub fn get_caps_process() -> Result<()> {
    let sets = capabilities(None).map_err(|_| Error::GetProcessCapabilities)?;
    DRAFT.set(sets);
    Ok(())
}

/// Whether the thread has the capability now; its sets become the draft. False when the kernel does not tell.
#[must_use]
pub fn have_capability(which: Type, capability: Capability) -> bool {
    get_caps_process().is_ok() && {
        let sets = DRAFT.get();
        let set = match which {
            Type::EFFECTIVE => sets.effective,
            Type::PERMITTED => sets.permitted,
        };
        set.contains(bit(capability))
    }
}

/// Empties the draft.
pub fn clear(_set: Set) {
    DRAFT.set(EMPTY);
}

/// Changes the draft.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the interface this crate takes over passes a vector"
)]
pub fn update(updates: Vec<CUpdate>) -> Result<()> {
    let mut sets = DRAFT.get();
    for change in &updates {
        let set = match change.cap_type {
            Type::EFFECTIVE => &mut sets.effective,
            Type::PERMITTED => &mut sets.permitted,
        };
        set.set(bit(change.capability), change.action == Action::ADD);
    }
    DRAFT.set(sets);
    Ok(())
}

/// Makes the draft the thread's sets.
pub fn apply(_set: Set) -> Result<()> {
    set_capabilities(None, DRAFT.get()).map_err(|_| Error::ApplyCapabilities)
}

fn bit(capability: Capability) -> CapabilitySet {
    1u64.checked_shl(capability)
        .map_or(CapabilitySet::empty(), CapabilitySet::from_bits_retain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kernels_numbers() {
        assert_eq!(name_to_capability("DAC_OVERRIDE").unwrap(), 1);
        assert_eq!(name_to_capability("FSETID").unwrap(), 4);
        assert!(name_to_capability("fsetid").is_err());
    }

    #[test]
    fn draft_starts_as_the_threads_sets_and_applies_unchanged() {
        get_caps_process().unwrap();
        let before = capabilities(None).unwrap();
        apply(Set::CAPS).unwrap();
        assert_eq!(capabilities(None).unwrap(), before);
    }

    #[test]
    fn dropped_capability_is_gone_from_the_effective_set_only() {
        let fsetid = name_to_capability("FSETID").unwrap();
        get_caps_process().unwrap();
        let before = capabilities(None).unwrap();
        let drop = CUpdate {
            action: Action::DROP,
            cap_type: Type::EFFECTIVE,
            capability: fsetid,
        };
        update(vec![drop]).unwrap();
        apply(Set::CAPS).unwrap();
        assert!(!have_capability(Type::EFFECTIVE, fsetid));
        assert_eq!(capabilities(None).unwrap().permitted, before.permitted);
        set_capabilities(None, before).unwrap();
    }
}
