//! Messages on the control socket. One JSON document per `SOCK_SEQPACKET` packet, at most [`PACKET_MAX_BYTES`].

use serde::{Deserialize, Serialize};

/// The largest packet either side sends. Every message is far smaller; a longer one is a protocol error.
pub const PACKET_MAX_BYTES: usize = 16 * 1024;

/// Supervisor to VMM.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Request {
    /// Chosen by the supervisor, repeated in the reply.
    pub id: u64,
    /// What to do.
    pub command: Command,
}

/// An order to the machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Connect the stream socket that comes beside this packet to a port of the guest. The VMM owns its end from then on; a refusal by the
    /// guest shows as end-of-file on it. Replied at once.
    Connect {
        /// A port some process in the guest listens on.
        port: u32,
    },
    /// Stop all vCPUs, then all devices. Allowed while running. Replied to once they have stopped,
    /// which takes as long as a call of the host's that a device is in; other commands are answered
    /// meanwhile.
    Pause,
    /// Start devices and vCPUs again. Allowed while paused.
    Resume,
    /// Ask the guest to have this much memory: between what it has booted with and `memory_max_mib`, the difference a multiple of
    /// [`crate::MEMORY_BLOCK_MIB`]. Replied at once; [`Event::Resized`] follows when it is so, which is up to the guest.
    Resize {
        /// All of the guest's memory.
        memory_mib: u32,
    },
    /// Ask for [`Stats`].
    Stats,
    /// End the machine now, without asking the guest. The VMM replies, then exits with [`crate::ExitCode::Stopped`].
    Stop,
}

/// VMM to supervisor.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The answer to the request with the same id.
    Reply {
        /// The request's id.
        id: u64,
        /// What came of it.
        result: Result<Reply, ReplyError>,
    },
    /// Something happened by itself.
    Event(Event),
}

/// The result of a command.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done,
    /// The answer to [`Command::Stats`].
    Stats(Stats),
}

/// Why a command was not carried out. The machine is as before.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ReplyError {
    /// A lower-case sentence without a full stop.
    pub message: String,
}

/// What a VMM knows about itself.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Times a vCPU thread came back to the VMM from `KVM_RUN`, all vCPUs.
    pub user_exits: u64,
    /// Times a vCPU left guest mode for any reason, as KVM counts them; None where KVM has no binary statistics.
    pub kvm_exits: Option<u64>,
    /// The memory that the guest has now: what it booted with, and what it has plugged.
    pub memory_mib: u32,
    /// When the machine passed its milestones, oldest first.
    pub timeline: Vec<TimelineMark>,
}

/// One milestone of a boot.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct TimelineMark {
    /// Its name: `start`, `jailed`, `kernel` (first guest instruction), `init` (first line of PID 1), or a number PID 1 wrote.
    pub name: String,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub at_ns: u64,
    /// VM exits until then, where KVM counts them.
    pub kvm_exits: Option<u64>,
}

/// Something the machine did.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The guest dialled an allowed host port. The host's end of the stream comes beside this packet.
    Accepted {
        /// The host port dialled.
        port: u32,
    },
    /// The guest has as much memory as the last [`Command::Resize`] asked for. Comes once for each.
    Resized {
        /// How much.
        memory_mib: u32,
    },
    /// The machine has ended; the VMM exits right after this.
    Stopped {
        /// How it ended.
        reason: StopReason,
    },
}

/// How a machine ended.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// PID 1 powered the machine off.
    PoweredOff,
    /// The guest reset itself: `reboot(2)`, or a kernel panic (the kernel's log tells).
    Reset,
    /// [`Command::Stop`], or the control socket closed.
    Stopped,
}
