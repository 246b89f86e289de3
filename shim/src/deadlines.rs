//! How long each thing may take: the only place where that is said.
//!
//! A deadline is derived from what it waits for. Those of the first part wait for somebody who may hang; each of the second is the sum of
//! the steps it waits for, so that nobody gives up on somebody else who has not given up yet. All of them are wall-clock time and far
//! longer than what they wait for takes on an idle machine.
//!
//! ```text
//!   delete --force ─ KILL_ORDER ─► supervisor ─ CONTROL_REPLY, AGENT_QUICK ─► VMM, agent     then the VM is killed
//!                  ─ FINISH ─────► supervisor ─ EXITS_FOLLOW, DRAIN ─► its processes' output
//!                                             ─ POWER_OFF ─► agent, STOP ─► VMM, KILLED ─► kernel
//!                                             ─ DRAIN, LEAVE ─► what came late, the mounts
//!                  ─ KILLED ─────► kernel     the supervisor is killed
//! ```
//!
//! The agent's own, which bound what it does for a call, are in the agent and shorter than [`AGENT_QUICK`] and [`AGENT_WORK`]. How long an agent may take
//! to dial is the configuration's (`agent_timeout_s`), and a hook's deadline is its own.

use std::time::Duration;

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// The sum of steps that follow each other.
const fn sum(steps: &[Duration]) -> Duration {
    let mut sum = Duration::ZERO;
    let mut index = 0;
    while index < steps.len() {
        sum = sum.saturating_add(steps[index]);
        index += 1;
    }
    sum
}

// === what somebody else takes ===

/// For the agent to answer from what it has at hand.
pub(crate) const AGENT_QUICK: Duration = seconds(10);

/// For the agent to make or start a container, or to switch CPUs: much work for a guest, on a host that may be slow.
pub(crate) const AGENT_WORK: Duration = seconds(60);

/// For the agent to pause a container: it waits 10 s for its processes to stand still.
pub(crate) const AGENT_PAUSE: Duration = sum(&[seconds(10), AGENT_QUICK]);

/// For the VMM to answer on its control socket: it does so at once, or has stopped its vCPUs and devices before.
pub(crate) const CONTROL_REPLY: Duration = seconds(5);

/// For the VMM's end to follow the loss of its agent or of its control socket.
pub(crate) const END_FOLLOWS: Duration = seconds(2);

/// For the agent to flush file systems and power off.
pub(crate) const POWER_OFF: Duration = seconds(4);

/// For the VMM to stop its threads and exit.
pub(crate) const STOP: Duration = seconds(2);

/// For the kernel to end a killed process.
pub(crate) const KILLED: Duration = seconds(3);

/// For a guest to take memory: it describes and clears what describes a hundred GiB in this time.
pub(crate) const PLUGGED: Duration = seconds(60);

/// For a guest to give memory back; later it does so without being waited for.
pub(crate) const UNPLUGGED: Duration = seconds(5);

/// For the exits of a container's other processes to follow that of its init process.
pub(crate) const EXITS_FOLLOW: Duration = seconds(2);

/// For a stream of an exited process to move on before the rest of it is given up.
pub(crate) const DRAIN: Duration = seconds(10);

/// For a file system of the host to answer: a network's may be slow, and is tried again by the kernel for about this long.
pub(crate) const STORAGE: Duration = seconds(30);

/// For the mounts of a sandbox to be taken away at its end. What takes longer goes with the supervisor's mount namespace.
pub(crate) const LEAVE: Duration = seconds(5);

/// For whoever started a supervisor to ask it for a container; it may have died before.
pub(crate) const IDLE: Duration = seconds(60);

/// Between two attempts to undo what went on in a guest after its deadline, at first; doubled each time, up to [`AGENT_WORK`].
pub(crate) const UNDO_AGAIN: Duration = Duration::from_millis(100);

// === what the supervisor takes, step by step ===

/// To end a VM.
pub(crate) const END_VM: Duration = sum(&[POWER_OFF, STOP, KILLED]);

/// To end with a container that has exited, once its streams stand still.
pub(crate) const FINISH: Duration = sum(&[EXITS_FOLLOW, DRAIN, END_VM, DRAIN, LEAVE]);

/// To take a signal to its process: vCPUs that are stopped are started; an agent that does not answer costs its VM.
const SIGNAL: Duration = sum(&[CONTROL_REPLY, CONTROL_REPLY, AGENT_QUICK]);

/// To give up a container that is being made: what it waits for is the storage, the agent and the room for it.
const CREATE: Duration = sum(&[STORAGE, STORAGE, PLUGGED, AGENT_WORK, AGENT_WORK]);

// === what the command line waits for ===

/// For whoever waits for a container to have read that it is ready; runc gives it as long.
pub(crate) const NOTIFY_HEARD: Duration = seconds(30);

/// For a word of the supervisor to arrive that it has said already.
const ANSWER: Duration = seconds(5);

/// For a supervisor to take an order that does not wait for a guest's work: it gives up a guest that hangs well before, and says so.
pub(crate) const ORDER: Duration = sum(&[max(SIGNAL, END_VM), ANSWER]);

/// For a supervisor to take the order to kill.
pub(crate) const KILL_ORDER: Duration = sum(&[SIGNAL, ANSWER]);

/// For a supervisor to end by itself whose container has ended or was killed.
pub(crate) const ENDING: Duration = sum(&[FINISH, ANSWER]);

/// For a member to be made, should it be at that, to be killed, and to deliver its output.
pub(crate) const LEAVE_SANDBOX: Duration = sum(&[CREATE, SIGNAL, DRAIN, AGENT_WORK, ANSWER]);

/// For another cleaner to be done with a state directory: it may wait for a member to leave its sandbox.
pub(crate) const CLEANER: Duration = sum(&[LEAVE_SANDBOX, KILLED, ANSWER]);

const fn max(one: Duration, other: Duration) -> Duration {
    if one.as_nanos() > other.as_nanos() {
        one
    } else {
        other
    }
}

// What must hold between them, checked by the compiler.
const _: () = {
    assert!(ENDING.as_nanos() > FINISH.as_nanos());
    assert!(KILL_ORDER.as_nanos() > SIGNAL.as_nanos());
    assert!(ORDER.as_nanos() > END_VM.as_nanos());
    assert!(CONTROL_REPLY.as_nanos() < AGENT_QUICK.as_nanos());
};
