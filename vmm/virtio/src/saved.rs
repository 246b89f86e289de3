//! What is left of a device when it is stopped: plain data, from which the same device, in this process or another, starts again.
//!
//! Queue positions are the transport's part ([`crate::QueueState`]); here is what each device adds. A variant belongs to one device; a
//! device that is given another's refuses to start.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A device's own state.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SavedDevice {
    /// As after a reset; also all there is of a device without state.
    #[default]
    Fresh,
    /// A file system in the middle of a session. Inodes and open files are descriptors: the process that has them goes on with them.
    FsSession {
        /// Which pause of the device this is the state of.
        pause: u64,
        /// The request that begins the session in another process. None when the guest holds files, which another process cannot know.
        init: Option<Vec<u8>>,
    },
    /// A memory device. What is plugged is the guest's for as long as the guest lives, whatever happens to the device.
    Mem {
        /// What the guest is asked to have plugged, bytes.
        requested: u64,
        /// The blocks that are plugged.
        plugged: Vec<Range<u64>>,
    },
    /// A socket device that was running. Its connections are descriptors: the process that has them goes on with them, another resets them.
    Vsock,
}
