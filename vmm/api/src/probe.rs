//! What `husk-vmm --probe` prints: one JSON line about this host's KVM.

use serde::{Deserialize, Serialize};

/// What was found. Later fields are empty when an earlier one is bad.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// `/dev/kvm` is there.
    pub present: bool,
    /// This user may open it.
    pub permitted: bool,
    /// It is the KVM a husk VMM needs: API version and capabilities.
    pub complete: bool,
    /// The speed of a tight loop in guest kernel mode.
    pub instructions_per_second: Option<u64>,
    /// What stopped the probe, in one line: a lower-case sentence without a full stop.
    pub error: Option<String>,
}
