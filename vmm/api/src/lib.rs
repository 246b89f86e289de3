//! What may be asked of a husk VMM: plain data, no I/O.
//!
//! A supervisor starts `husk-vmm` with a [`VmConfig`] (one JSON document on its standard input) and one connected
//! `SOCK_SEQPACKET` socket, the control socket. Everything else goes through that socket as one JSON document per
//! packet, with file descriptors beside it (`SCM_RIGHTS`) where a message says so:
//!
//! ```text
//!   supervisor ── Request { id, command } [+ fd] ──► husk-vmm
//!              ◄── Message::Reply { id, result } ───
//!              ◄── Message::Event(event) [+ fd] ────
//! ```
//!
//! The VMM ends when the socket closes, so a supervisor that dies takes its VM with it.

mod config;
mod control;
mod exit;
mod probe;

pub use config::{Cpus, Jail, MEMORY_BLOCK_MIB, Share, VmConfig, Vsock};
pub use control::{
    Command, Event, Message, PACKET_MAX_BYTES, Reply, ReplyError, Request, Stats, StopReason,
    TimelineMark,
};
pub use exit::ExitCode;
pub use probe::Probe;
