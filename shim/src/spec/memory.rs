//! A tmpfs of the host's that is to be a container's `/dev/shm` (pure): the guest's kernel makes one of the same size in its place.

use std::path::Path;

use agent_api::SHARED_MEMORY;
use oci_spec::runtime::Mount;

use super::is_bind;

/// What it is in a guest, beside its size: it cannot be shared with host processes.
const SHM_OPTIONS: [&str; 4] = ["nosuid", "noexec", "nodev", "mode=1777"];

/// A tmpfs of the host's, see [`crate::shm`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostMemory {
    /// No other is called so.
    pub(crate) name: String,
    /// How much fits in; 0: as much as there is.
    pub(crate) bytes: u64,
}

/// Looks at what is bound to `/dev/shm`: the one thing that a configuration alone does not say. The path is absolute.
pub(crate) type LookAtMemory<'a> = &'a dyn Fn(&Path) -> Option<HostMemory>;

/// Turns a tmpfs of the host's at `/dev/shm` into one of the guest's. Returns whether it was one.
pub(super) fn take(mount: &mut Mount, look: LookAtMemory<'_>) -> bool {
    let destination = Path::new("/").join(mount.destination());
    if !is_bind(mount) || destination != Path::new("/dev/shm") {
        return false;
    }
    let Some(memory) = mount.source().as_deref().and_then(look) else {
        return false;
    };
    let read_only = |option: &&String| matches!(option.as_str(), "ro" | "rro");
    let mut options = SHM_OPTIONS.map(String::from).to_vec();
    let given = mount.options().iter().flatten();
    options.extend(given.filter(read_only).map(|_| "ro".to_owned()));
    options.push(format!("{SHARED_MEMORY}{}", memory.name));
    if memory.bytes > 0 {
        options.push(format!("size={}", memory.bytes));
    }
    mount.set_destination(destination);
    mount.set_typ(Some("tmpfs".into()));
    mount.set_source(Some("shm".into()));
    mount.set_options(Some(options));
    true
}
