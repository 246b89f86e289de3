//! The control socket: requests out, replies and events in.
//!
//! One JSON document per `SOCK_SEQPACKET` packet, with at most one descriptor beside it (`vmm_api`). A packet is sent whole
//! or not at all, so any task may send; one task receives and hands each reply to whoever asked. When the socket
//! closes, every call that waits fails with [`ControlError::Closed`] and the channel of events ends.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot, watch};
use vmm_api::{Command, Event, Message, PACKET_MAX_BYTES, Reply, ReplyError, Request, Stats};

use crate::polled::{self, Polled};

/// Events the receiving task may be ahead of their reader. A VMM that says more is not listened to until they are read.
const EVENTS_AHEAD_MAX: usize = 16;

/// Room for one descriptor beside a packet.
const ANCILLARY_BYTES: usize = rustix::cmsg_space!(ScmRights(1));

/// The sending side; clones share the socket.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    socket: Arc<Polled>,
    waiting: Waiting,
    next_id: Arc<AtomicU64>,
    /// What [`Event::Resized`] said last.
    resized: watch::Receiver<u32>,
}

/// An event, and the descriptor that came beside it.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) event: Event,
    pub(crate) fd: Option<OwnedFd>,
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The VMM has gone away.
    #[error("the VMM closed its control socket")]
    Closed,
    /// The VMM said no.
    #[error("the VMM refused: {0}")]
    Refused(String),
    /// The VMM answered with something else than what the command asks for.
    #[error("the VMM gave an unexpected reply")]
    Unexpected,
    #[error("cannot write to the control socket")]
    Send(#[source] io::Error),
}

type Answer = oneshot::Sender<Result<Reply, ReplyError>>;

/// Calls without a reply, by request id. Emptied for good when the socket closes.
#[derive(Clone, Debug, Default)]
struct Waiting(Arc<Mutex<HashMap<u64, Answer>>>);

impl Waiting {
    fn insert(&self, id: u64, answer: Answer) {
        self.lock().insert(id, answer);
    }

    fn take(&self, id: u64) -> Option<Answer> {
        self.lock().remove(&id)
    }

    fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Answer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes over the supervisor's end of a control socket.
pub(crate) fn open(socket: OwnedFd) -> io::Result<(Control, mpsc::Receiver<Arrived>)> {
    let (resized, seen) = watch::channel(0);
    let control = Control {
        socket: Arc::new(polled::watch(socket)?),
        waiting: Waiting::default(),
        next_id: Arc::new(AtomicU64::new(1)),
        resized: seen,
    };
    let (events, arrived) = mpsc::channel(EVENTS_AHEAD_MAX);
    tokio::spawn(receive_all(
        control.socket.clone(),
        control.waiting.clone(),
        events,
        resized,
    ));
    Ok((control, arrived))
}

impl Control {
    /// Gives the VMM one end of a stream socket, to be connected to the guest's `port`.
    pub(crate) async fn connect(&self, port: u32, stream: OwnedFd) -> Result<(), ControlError> {
        self.done(Command::Connect { port }, Some(stream)).await
    }

    /// Ends the machine without asking the guest.
    pub(crate) async fn stop(&self) -> Result<(), ControlError> {
        self.done(Command::Stop, None).await
    }

    /// Stops the vCPUs, then the devices.
    pub(crate) async fn pause(&self) -> Result<(), ControlError> {
        self.done(Command::Pause, None).await
    }

    /// The reverse.
    pub(crate) async fn resume(&self) -> Result<(), ControlError> {
        self.done(Command::Resume, None).await
    }

    /// Asks the guest to have this much memory, and waits for as long as it takes until it has.
    pub(crate) async fn resize(&self, memory_mib: u32) -> Result<(), ControlError> {
        let mut resized = self.resized.clone();
        resized.mark_unchanged();
        self.done(Command::Resize { memory_mib }, None).await?;
        loop {
            resized.changed().await.map_err(|_| ControlError::Closed)?;
            // What an earlier call asked for may be reached late.
            if *resized.borrow_and_update() == memory_mib {
                return Ok(());
            }
        }
    }

    /// Asks the VMM what it knows about itself.
    pub(crate) async fn stats(&self) -> Result<Stats, ControlError> {
        match self.call(Command::Stats, None).await? {
            Reply::Stats(stats) => Ok(stats),
            Reply::Done => Err(ControlError::Unexpected),
        }
    }

    async fn done(&self, command: Command, fd: Option<OwnedFd>) -> Result<(), ControlError> {
        match self.call(command, fd).await? {
            Reply::Done => Ok(()),
            Reply::Stats(_) => Err(ControlError::Unexpected),
        }
    }

    async fn call(&self, command: Command, fd: Option<OwnedFd>) -> Result<Reply, ControlError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let packet = serde_json::to_vec(&Request { id, command })
            .map_err(|e| ControlError::Send(e.into()))?;
        let (answer, answered) = oneshot::channel();
        self.waiting.insert(id, answer);
        let sent = self
            .socket
            .async_io(Interest::WRITABLE, |socket| {
                send(socket.as_fd(), &packet, fd.as_ref())
            })
            .await;
        if let Err(e) = sent {
            self.waiting.take(id);
            return Err(match e.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ControlError::Closed,
                _ => ControlError::Send(e),
            });
        }
        match answered.await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(refusal)) => Err(ControlError::Refused(refusal.message)),
            Err(_) => Err(ControlError::Closed),
        }
    }
}

/// Receives until the socket closes or the VMM breaks the protocol.
async fn receive_all(
    socket: Arc<Polled>,
    waiting: Waiting,
    events: mpsc::Sender<Arrived>,
    resized: watch::Sender<u32>,
) {
    let mut buffer = vec![0; PACKET_MAX_BYTES];
    loop {
        let received = socket
            .async_io(Interest::READABLE, |socket| {
                receive(socket.as_fd(), &mut buffer)
            })
            .await;
        let (length, fd) = match received {
            Ok((0, _)) => break,
            Ok(received) => received,
            // It ended with a request unread.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => break,
            Err(e) => {
                tracing::warn!("cannot read from the control socket: {e}");
                break;
            }
        };
        match serde_json::from_slice(&buffer[..length]) {
            Ok(Message::Reply { id, result }) => {
                // Nobody waits when the caller was cancelled.
                if let Some(answer) = waiting.take(id) {
                    let _ = answer.send(result);
                }
            }
            Ok(Message::Event(Event::Resized { memory_mib })) => {
                resized.send_replace(memory_mib);
            }
            Ok(Message::Event(event)) => {
                // Once nobody listens a guest that dials on is not worth a line: its connection ends here.
                let _ = events.send(Arrived { event, fd }).await;
            }
            Err(e) => {
                tracing::warn!("the VMM sent a packet that is not a message: {e}");
                break;
            }
        }
    }
    waiting.clear();
}

fn send(socket: BorrowedFd<'_>, packet: &[u8], fd: Option<&OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd.as_fd()]);
    if let Some(fds) = &fds {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(packet)], &mut ancillary, flags)?;
    Ok(())
}

/// The packet's length, 0 at the end, and its descriptor.
fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut ancillary,
        flags,
    )?;
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((message.bytes, fd))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use vmm_api::{Stats, StopReason};

    use super::*;

    /// The VMM's end, used by the test itself, packet by packet.
    struct FakeVmm(Polled);

    impl FakeVmm {
        fn start() -> (Self, Control, mpsc::Receiver<Arrived>) {
            let (ours, theirs) = socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )
            .unwrap();
            let (control, events) = open(ours).unwrap();
            (Self(polled::watch(theirs).unwrap()), control, events)
        }

        async fn request(&self) -> (Request, Option<OwnedFd>) {
            let mut buffer = vec![0; PACKET_MAX_BYTES];
            let (length, fd) = self
                .0
                .async_io(Interest::READABLE, |s| receive(s.as_fd(), &mut buffer))
                .await
                .unwrap();
            (serde_json::from_slice(&buffer[..length]).unwrap(), fd)
        }

        fn say(&self, message: &Message, fd: Option<&OwnedFd>) {
            let packet = serde_json::to_vec(message).unwrap();
            send(self.0.get_ref().as_fd(), &packet, fd).unwrap();
        }
    }

    #[tokio::test]
    async fn connect_hands_over_the_stream() {
        let (vmm, control, _events) = FakeVmm::start();
        let (mut near, far) = UnixStream::pair().unwrap();
        let call = tokio::spawn(async move { control.connect(1025, far.into()).await });
        let (request, fd) = vmm.request().await;
        assert_eq!(request.command, Command::Connect { port: 1025 });
        vmm.say(
            &Message::Reply {
                id: request.id,
                result: Ok(Reply::Done),
            },
            None,
        );
        call.await.unwrap().unwrap();
        UnixStream::from(fd.unwrap()).write_all(b"hi").unwrap();
        let mut text = String::new();
        near.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hi");
    }

    #[tokio::test]
    async fn replies_find_their_callers_in_any_order() {
        let (vmm, control, _events) = FakeVmm::start();
        let other = control.clone();
        let stats = tokio::spawn(async move { other.call(Command::Stats, None).await });
        let (first, _) = vmm.request().await;
        let stop = tokio::spawn(async move { control.stop().await });
        let (second, _) = vmm.request().await;
        vmm.say(
            &Message::Reply {
                id: second.id,
                result: Err(ReplyError {
                    message: "no".into(),
                }),
            },
            None,
        );
        vmm.say(
            &Message::Reply {
                id: first.id,
                result: Ok(Reply::Stats(Stats::default())),
            },
            None,
        );
        assert!(matches!(stats.await.unwrap(), Ok(Reply::Stats(_))));
        assert!(
            matches!(stop.await.unwrap(), Err(ControlError::Refused(message)) if message == "no")
        );
    }

    #[tokio::test]
    async fn events_carry_their_descriptor() {
        let (vmm, _control, mut events) = FakeVmm::start();
        let (_near, far) = UnixStream::pair().unwrap();
        vmm.say(
            &Message::Event(Event::Accepted { port: 1024 }),
            Some(&far.into()),
        );
        let stopped = Event::Stopped {
            reason: StopReason::PoweredOff,
        };
        vmm.say(&Message::Event(stopped.clone()), None);
        let accepted = events.recv().await.unwrap();
        assert_eq!(accepted.event, Event::Accepted { port: 1024 });
        assert!(accepted.fd.is_some());
        let last = events.recv().await.unwrap();
        assert_eq!(last.event, stopped);
        assert!(last.fd.is_none());
    }

    #[tokio::test]
    async fn a_resize_ends_when_its_own_amount_is_reached() {
        let (vmm, control, _events) = FakeVmm::start();
        let resized = |memory_mib| vmm.say(&Message::Event(Event::Resized { memory_mib }), None);
        let done = |id, result| vmm.say(&Message::Reply { id, result }, None);
        let other = control.clone();
        let call = tokio::spawn(async move { control.resize(640).await });
        let (request, _) = vmm.request().await;
        assert_eq!(request.command, Command::Resize { memory_mib: 640 });
        done(request.id, Ok(Reply::Done));
        resized(512);
        // Answered after the event has been seen.
        let stats = tokio::spawn(async move { other.stats().await });
        let (request, _) = vmm.request().await;
        done(request.id, Ok(Reply::Stats(Stats::default())));
        stats.await.unwrap().unwrap();
        assert!(!call.is_finished());
        resized(640);
        call.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_gone_vmm_ends_waiting_calls_and_events() {
        let (vmm, control, mut events) = FakeVmm::start();
        let caller = control.clone();
        let call = tokio::spawn(async move { caller.stop().await });
        vmm.request().await;
        drop(vmm);
        assert!(matches!(call.await.unwrap(), Err(ControlError::Closed)));
        assert!(events.recv().await.is_none());
        assert!(matches!(control.stop().await, Err(ControlError::Closed)));
    }

    #[tokio::test]
    async fn a_packet_that_is_no_message_ends_the_connection() {
        let (vmm, _control, mut events) = FakeVmm::start();
        send(vmm.0.get_ref().as_fd(), b"{]", None).unwrap();
        assert!(events.recv().await.is_none());
    }
}
