//! The control socket, and the one thread that owns the [`Machine`].
//!
//! It waits for a command, for the end of the machine, and for streams the guest opens. Every command is answered at once; nothing here waits
//! for the guest. The socket's end of file ends the machine: a supervisor that dies takes its VM with it.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vmm_api::{Command, Event, Message, PACKET_MAX_BYTES, Reply, ReplyError, Request, StopReason};

use vmm_virtio::mem;

use crate::causes;
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
    #[error("a command is longer than {PACKET_MAX_BYTES} bytes")]
    TooLong,
    /// A vCPU failed.
    #[error(transparent)]
    Vcpu(VcpuError),
}

/// Runs the machine until it ends; returns how it ended.
pub fn serve(socket: OwnedFd, mut machine: Machine) -> Result<StopReason, ControlError> {
    machine
        .confine()
        .enter(THREAD)
        .map_err(ControlError::Confine)?;
    machine.timeline().mark("kernel");
    machine.resume();
    let mut control = Control { socket, machine };
    let reason = control.run()?;
    // The supervisor may be gone already; the exit status tells the same.
    let _told = control.send(&Message::Event(Event::Stopped { reason }), None);
    Ok(reason)
}

struct Control {
    socket: OwnedFd,
    machine: Machine,
}

/// A command and the descriptor that came with it.
type Packet = (Request, Option<OwnedFd>);

impl Control {
    fn run(&mut self) -> Result<StopReason, ControlError> {
        loop {
            let mut files = vec![
                PollFd::new(&self.socket, PollFlags::IN),
                PollFd::new(self.machine.ending().event(), PollFlags::IN),
                PollFd::new(self.machine.vsock().event(), PollFlags::IN),
            ];
            let resized = self.machine.mem().map(mem::Host::event);
            files.extend(resized.map(|event| PollFd::new(event, PollFlags::IN)));
            match poll(&mut files, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(ControlError::Wait(error.into())),
            }
            let mut ready = files.iter().map(|file| !file.revents().is_empty());
            let [command, ended, accepted, resized] =
                [(); 4].map(|()| ready.next().unwrap_or(false));
            if ended && let Some(how) = self.machine.ending().take() {
                return how.map_err(ControlError::Vcpu);
            }
            if accepted {
                self.hand_over_accepted()?;
            }
            if resized {
                self.tell_resized()?;
            }
            if command && self.command()? {
                return Ok(StopReason::Stopped);
            }
        }
    }

    /// Takes one command. True when it ends the machine.
    fn command(&mut self) -> Result<bool, ControlError> {
        let Some((request, file)) = receive(self.socket.as_fd())? else {
            return Ok(true);
        };
        let result = self.execute(&request.command, file);
        self.send(
            &Message::Reply {
                id: request.id,
                result,
            },
            None,
        )?;
        Ok(matches!(request.command, Command::Stop))
    }

    fn execute(&mut self, command: &Command, file: Option<OwnedFd>) -> Result<Reply, ReplyError> {
        let running = self.machine.is_running();
        match command {
            Command::Connect { port } => {
                let stream = file.ok_or_else(|| refuse("no stream came with the command"))?;
                self.machine
                    .vsock()
                    .connect(*port, stream)
                    .map_err(|error| refuse(&error.to_string()))?;
            }
            Command::Pause if !running => return Err(refuse("the machine is paused already")),
            Command::Pause => self.machine.pause(),
            Command::Resume if running => return Err(refuse("the machine is running already")),
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

    /// Gives the supervisor the streams of connections the guest has made.
    fn hand_over_accepted(&self) -> Result<(), ControlError> {
        while let Some((port, stream)) = self.machine.vsock().accepted() {
            let event = Message::Event(Event::Accepted { port });
            self.send(&event, Some(stream.as_fd()))?;
        }
        Ok(())
    }

    /// Tells the supervisor that the guest has the memory that it was to have.
    fn tell_resized(&self) -> Result<(), ControlError> {
        let Some(mem) = self.machine.mem() else {
            return Ok(());
        };
        if mem.event().clear().map_err(ControlError::Wait)? {
            let memory_mib = self.machine.memory_mib();
            self.send(&Message::Event(Event::Resized { memory_mib }), None)?;
        }
        Ok(())
    }

    fn send(&self, message: &Message, file: Option<BorrowedFd<'_>>) -> Result<(), ControlError> {
        let text = serde_json::to_vec(message).map_err(ControlError::Message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
        if !files.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&files));
        }
        let slices = [io::IoSlice::new(&text)];
        match sendmsg(&self.socket, &slices, &mut ancillary, SendFlags::NOSIGNAL) {
            // A supervisor that is gone: the end of file tells, next.
            Ok(_) | Err(Errno::PIPE) => Ok(()),
            Err(error) => Err(ControlError::Send(error.into())),
        }
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
    if received.flags.contains(ReturnFlags::TRUNC) {
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
