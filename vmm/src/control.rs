//! The control socket, and the one thread that owns the [`Machine`].
//!
//! It waits for a command, for the end of the machine, for streams the guest opens, and for a pause
//! to come to its end. Every other command is answered at once. Nothing here waits for the guest,
//! for a device, for a file system of the host, or for a supervisor that does not read: so the
//! order to stop, and the machine's end, are always heard. The socket's end of file ends the
//! machine: a supervisor that dies takes its VM with it.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vmm_api::{
    Command, Event, Message, PACKET_MAX_BYTES, Reply, ReplyError, Request, Stats, StopReason,
};
use vmm_virtio::mem;
use vmm_virtio::vsock::ConnectError;

use crate::causes;
use crate::devices::ResizeError;
use crate::ending::Ending;
use crate::machine::Machine;
use crate::vcpu::VcpuError;

/// The name under which the thread confines itself.
pub const THREAD: &str = "control";

/// Why the machine was ended by an error.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The system call filter could not be set.
    #[error("confine the control thread")]
    Confine(#[source] io::Error),
    /// Waiting failed.
    #[error("wait for events")]
    Wait(#[source] io::Error),
    /// The control socket failed.
    #[error("receive a command")]
    Receive(#[source] io::Error),
    /// The supervisor does not take what it is sent.
    #[error("send a message")]
    Send(#[source] io::Error),
    /// The supervisor sent what is no command.
    #[error("understand a command")]
    Request(#[source] serde_json::Error),
    /// A message could not be written as JSON.
    #[error("write a message")]
    Message(#[source] serde_json::Error),
    /// A packet was cut off.
    #[error("a command is longer than {PACKET_MAX_BYTES} bytes, or has more than one descriptor")]
    TooLong,
    /// A vCPU failed.
    #[error(transparent)]
    Vcpu(VcpuError),
}

/// Streams of the guest's that are handed over before commands and the machine's end are looked at
/// again.
const ACCEPTED_TURN_MAX: usize = 8;

/// What control needs of the machine that it owns. None of it waits for the guest, or for a device.
trait Owned {
    fn is_running(&self) -> bool;
    fn resume(&mut self);
    fn begin_pause(&mut self);
    fn progress(&self) -> &vmm_virtio::Event;
    fn advance(&mut self) -> Result<bool, io::Error>;
    fn stats(&self) -> Stats;
    fn resize(&mut self, memory_mib: u32) -> Result<(), ResizeError>;
    fn memory_mib(&self) -> u32;
    fn resized(&self) -> Option<&vmm_virtio::Event>;
    fn connect(&self, port: u32, stream: OwnedFd) -> Result<(), ConnectError>;
    fn arrived(&self) -> &vmm_virtio::Event;
    fn accepted(&self) -> Option<(u32, OwnedFd)>;
    fn ending(&self) -> &Ending;
}

/// Runs the machine until it ends; returns how it ended. Its threads go on until the process exits,
/// which is next: one of them may be in a call that a file system of the host does not return from,
/// and none holds what would be lost.
pub fn serve(socket: OwnedFd, machine: Machine) -> Result<StopReason, ControlError> {
    machine
        .confine()
        .enter(THREAD)
        .map_err(ControlError::Confine)?;
    machine.timeline().mark("kernel");
    let mut control = Control::new(socket, ManuallyDrop::new(machine));
    control.machine.resume();
    let ended = control.run();
    control.machine.flush_log();
    let reason = ended?;
    // The supervisor may be gone already, or not listen; the exit status tells the same.
    let _told = control.say(&Message::Event(Event::Stopped { reason }), None);
    Ok(reason)
}

struct Control<M> {
    socket: OwnedFd,
    machine: M,
    /// What the supervisor does not take now. While there is something nothing is done that would
    /// add to it, so it holds what one turn says.
    outbox: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    /// The request to pause that has no reply yet.
    pausing: Option<u64>,
}

/// A command and the descriptor that came with it.
type Packet = (Request, Option<OwnedFd>);

/// What is to be done in a turn.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    ended: bool,
    advanced: bool,
    hung_up: bool,
    writable: bool,
    command: bool,
    accepted: bool,
    resized: bool,
}

impl<M: Owned> Control<M> {
    fn new(socket: OwnedFd, machine: M) -> Self {
        Self {
            socket,
            machine,
            outbox: VecDeque::new(),
            pausing: None,
        }
    }

    fn run(&mut self) -> Result<StopReason, ControlError> {
        loop {
            let ready = self.wait()?;
            if ready.ended
                && let Some(how) = self.machine.ending().take()
            {
                return how.map_err(ControlError::Vcpu);
            }
            if ready.writable {
                self.flush()?;
            }
            if ready.hung_up && !self.outbox.is_empty() {
                return Ok(StopReason::Stopped);
            }
            if ready.advanced {
                self.advance()?;
            }
            // Before what the guest can have any number of.
            if ready.command && self.command()? {
                return Ok(StopReason::Stopped);
            }
            if ready.accepted {
                self.hand_over_accepted()?;
            }
            if ready.resized {
                self.tell_resized()?;
            }
        }
    }

    /// Waits until something is to be done.
    fn wait(&self) -> Result<Ready, ControlError> {
        let free = self.outbox.is_empty();
        let socket = if free { PollFlags::IN } else { PollFlags::OUT };
        let mut files = vec![
            PollFd::new(&self.socket, socket),
            PollFd::new(self.machine.ending().event(), PollFlags::IN),
            PollFd::new(self.machine.progress(), PollFlags::IN),
        ];
        if free {
            files.push(PollFd::new(self.machine.arrived(), PollFlags::IN));
            let resized = self.machine.resized();
            files.extend(resized.map(|event| PollFd::new(event, PollFlags::IN)));
        }
        loop {
            match poll(&mut files, None) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(ControlError::Wait(error.into())),
            }
        }
        let mut seen = files.iter().map(PollFd::revents);
        let [socket, ended, advanced, accepted, resized] =
            [(); 5].map(|()| seen.next().unwrap_or(PollFlags::empty()));
        Ok(Ready {
            ended: !ended.is_empty(),
            advanced: !advanced.is_empty(),
            hung_up: socket.intersects(PollFlags::HUP | PollFlags::ERR),
            writable: socket.contains(PollFlags::OUT),
            command: free && !socket.is_empty(),
            accepted: !accepted.is_empty(),
            resized: !resized.is_empty(),
        })
    }

    /// Takes one command. True when it ends the machine.
    fn command(&mut self) -> Result<bool, ControlError> {
        let Some((request, file)) = receive(self.socket.as_fd())? else {
            return Ok(true);
        };
        let Request { id, command } = request;
        let result = match command {
            Command::Pause if self.machine.is_running() && self.pausing.is_none() => {
                self.pausing = Some(id);
                self.machine.begin_pause();
                return self.advance().map(|()| false);
            }
            _ => self.execute(&command, file),
        };
        self.say(&Message::Reply { id, result }, None)?;
        Ok(matches!(command, Command::Stop))
    }

    fn execute(&mut self, command: &Command, file: Option<OwnedFd>) -> Result<Reply, ReplyError> {
        match command {
            Command::Connect { port } => {
                let stream = file.ok_or_else(|| refuse("no stream came with the command"))?;
                self.machine
                    .connect(*port, stream)
                    .map_err(|error| refuse(&error.to_string()))?;
            }
            Command::Pause | Command::Resume if self.pausing.is_some() => {
                return Err(refuse("the machine is about to pause"));
            }
            Command::Pause => return Err(refuse("the machine is paused already")),
            Command::Resume if self.machine.is_running() => {
                return Err(refuse("the machine is running already"));
            }
            Command::Resume => self.machine.resume(),
            Command::Resize { memory_mib } => self
                .machine
                .resize(*memory_mib)
                .map_err(|error| refuse(&causes::line(&error)))?,
            Command::Stats => return Ok(Reply::Stats(self.machine.stats())),
            Command::Stop => {}
        }
        Ok(Reply::Done)
    }

    /// Goes on with a pause; tells of it once the machine stands still.
    fn advance(&mut self) -> Result<(), ControlError> {
        if self.machine.advance().map_err(ControlError::Wait)?
            && let Some(id) = self.pausing.take()
        {
            let result = Ok(Reply::Done);
            self.say(&Message::Reply { id, result }, None)?;
        }
        Ok(())
    }

    /// Gives the supervisor the streams of connections the guest has made.
    fn hand_over_accepted(&mut self) -> Result<(), ControlError> {
        for _ in 0..ACCEPTED_TURN_MAX {
            let Some((port, stream)) = self.machine.accepted() else {
                break;
            };
            let event = Message::Event(Event::Accepted { port });
            self.say(&event, Some(stream))?;
        }
        Ok(())
    }

    /// Tells the supervisor that the guest has the memory that it was to have.
    fn tell_resized(&mut self) -> Result<(), ControlError> {
        let cleared = self.machine.resized().map(vmm_virtio::Event::clear);
        if cleared.transpose().map_err(ControlError::Wait)? == Some(true) {
            let memory_mib = self.machine.memory_mib();
            self.say(&Message::Event(Event::Resized { memory_mib }), None)?;
        }
        Ok(())
    }

    /// Sends a message, now or as soon as the supervisor takes it.
    fn say(&mut self, message: &Message, file: Option<OwnedFd>) -> Result<(), ControlError> {
        let text = serde_json::to_vec(message).map_err(ControlError::Message)?;
        self.outbox.push_back((text, file));
        self.flush()
    }

    /// Sends what the supervisor takes now.
    fn flush(&mut self) -> Result<(), ControlError> {
        while let Some((text, file)) = self.outbox.front() {
            if !send(self.socket.as_fd(), text, file.as_ref())? {
                break;
            }
            self.outbox.pop_front();
        }
        Ok(())
    }
}

/// Sends one packet; false if the supervisor has no room for it now.
fn send(socket: BorrowedFd<'_>, text: &[u8], file: Option<&OwnedFd>) -> Result<bool, ControlError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = file.map(|file| [file.as_fd()]);
    if let Some(files) = &files {
        ancillary.push(SendAncillaryMessage::ScmRights(files));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match sendmsg(socket, &[io::IoSlice::new(text)], &mut ancillary, flags) {
            // A supervisor that is gone: the end of file tells, next.
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => return Ok(true),
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(ControlError::Send(error.into())),
        }
    }
}

impl Owned for ManuallyDrop<Machine> {
    fn is_running(&self) -> bool {
        Machine::is_running(self)
    }

    fn resume(&mut self) {
        Machine::resume(self);
    }

    fn begin_pause(&mut self) {
        Machine::begin_pause(self);
    }

    fn progress(&self) -> &vmm_virtio::Event {
        Machine::progress(self)
    }

    fn advance(&mut self) -> Result<bool, io::Error> {
        Machine::advance(self)
    }

    fn stats(&self) -> Stats {
        Machine::stats(self)
    }

    fn resize(&mut self, memory_mib: u32) -> Result<(), ResizeError> {
        Machine::resize(self, memory_mib)
    }

    fn memory_mib(&self) -> u32 {
        Machine::memory_mib(self)
    }

    fn resized(&self) -> Option<&vmm_virtio::Event> {
        self.mem().map(mem::Host::event)
    }

    fn connect(&self, port: u32, stream: OwnedFd) -> Result<(), ConnectError> {
        self.vsock().connect(port, stream)
    }

    fn arrived(&self) -> &vmm_virtio::Event {
        self.vsock().event()
    }

    fn accepted(&self) -> Option<(u32, OwnedFd)> {
        self.vsock().accepted()
    }

    fn ending(&self) -> &Ending {
        Machine::ending(self)
    }
}

fn refuse(message: &str) -> ReplyError {
    ReplyError {
        message: message.to_owned(),
    }
}

/// Receives one packet. None at the end of file.
fn receive(socket: BorrowedFd<'_>) -> Result<Option<Packet>, ControlError> {
    let mut text = vec![0; PACKET_MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let slices = &mut [IoSliceMut::new(&mut text)];
        match recvmsg(socket, slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(ControlError::Receive(error.into())),
        }
    };
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(ControlError::TooLong);
    }
    let file = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    if received.bytes == 0 {
        return Ok(None);
    }
    let text = text.get(..received.bytes).unwrap_or_default();
    let request = serde_json::from_slice(text).map_err(ControlError::Request)?;
    Ok(Some((request, file)))
}

#[cfg(test)]
mod tests;
