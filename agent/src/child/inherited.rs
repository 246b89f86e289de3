//! The descriptors that the agent leaves to a child, named by number on its command line.

use std::os::fd::{FromRawFd, OwnedFd};

/// Where the agent puts the child's descriptors.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// The plan, as JSON.
    pub(super) plan: OwnedFd,
    /// Reports go out, [`crate::report::GO`] comes in.
    pub(super) status: OwnedFd,
    /// The pidfd of the process whose namespaces are to be joined.
    pub(super) target: Option<OwnedFd>,
}

impl Inherited {
    /// Takes them over; none where the numbers are not what an agent gives. To be called once, first of all.
    pub(crate) fn take(mut numbers: impl Iterator<Item = String>) -> Option<Self> {
        let plan = take(&numbers.next()?)?;
        let status = take(&numbers.next()?)?;
        let target = match numbers.next() {
            Some(number) => Some(take(&number)?),
            None => None,
        };
        Some(Self {
            plan,
            status,
            target,
        })
    }
}

fn take(number: &str) -> Option<OwnedFd> {
    let number = number.parse().ok().filter(|number| *number > 2)?;
    // SAFETY: the agent opened the descriptor for this process, which has just begun and knows of no other owner.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}
