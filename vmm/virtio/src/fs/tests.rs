//! The file server as a guest's kernel uses it, and as one that was taken over would.

/// A FUSE client that lays messages out in memory.
mod client;
/// The device: its configuration space, its worker, its sessions.
mod device;
/// Files as a container needs them.
mod files;
/// Messages that make no sense, and a guest that wants more than its share.
mod hostile;
/// Changes above the files of containers.
mod levels;
/// Directories that shrink while they are read.
mod listing;
/// Locks that host and guest have on the same files.
mod locks;
/// Names that lead out of the share.
mod names;
/// Files without a name, and the attributes of an overlay's upper layer.
mod unnamed;
