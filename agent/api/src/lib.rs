//! The contract between the supervisor and the agent: `proto/agent.proto`, and the few constants both ends need.
//!
//! Wire types only; there is no I/O here.

/// The messages of the contract.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    warnings,
    reason = "generated code"
)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// The service and its client.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    warnings,
    reason = "generated code"
)]
pub mod agent_ttrpc {
    use super::agent;
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}

/// Host port the agent dials when it is ready; it then serves ttrpc on that connection.
pub const PORT_CONTROL: u32 = 1024;
/// Guest port that takes one connection per stream. The first 8 bytes are the [stream id](StreamId), little endian.
pub const PORT_STREAM: u32 = 1025;

/// The virtio-fs tag of the shared directory.
pub const SHARE_TAG: &str = "husk";
/// Where the agent mounts the shared directory. A container `c` has its root file system at `SHARE_DIR/c/rootfs`.
pub const SHARE_DIR: &str = "/run/husk/share";

/// The option of a tmpfs that all containers of the VM share which are given the same name behind it.
pub const SHARED_MEMORY: &str = "husk.shared=";

/// The option of a recursive bind that names a place in it, behind this, where the host has mounted something: the
/// guest's kernel mounts it there when it is looked at, and then with the options of the bind.
pub const MOUNT_BELOW: &str = "husk.below=";

/// The type of a mount that is the directory of the container's notify socket, `notify.sock`.
pub const NOTIFY_MOUNT: &str = "husk.notify";

/// The I/O port by which PID 1 speaks to the machine; one byte out.
pub const POWER_PORT: u16 = 0x600;
/// Written to [`POWER_PORT`]: power off.
pub const POWER_OFF: u8 = 0x01;
/// Written to [`POWER_PORT`]: PID 1 has begun (a mark on the boot's timeline).
pub const POWER_MARK_INIT: u8 = 0x02;

/// Names one stream of one process, and is the right to it: whoever opens a connection with it has the stream. So it is 64 random bits that the
/// supervisor makes, used once, shown to nobody; never 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamId(std::num::NonZeroU64);

impl StreamId {
    /// None for 0, which means "no stream" on the wire.
    #[must_use]
    pub fn new(id: u64) -> Option<Self> {
        std::num::NonZeroU64::new(id).map(Self)
    }

    /// The number on the wire.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl std::fmt::Debug for StreamId {
    /// Not the number: logs are read by others.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("StreamId(..)")
    }
}
