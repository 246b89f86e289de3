//! The control socket: requests out, replies and events in.
//!
//! One JSON document per `SOCK_SEQPACKET` packet, with at most one descriptor beside it (`vmm_api`). A packet is sent whole
//! or not at all, so any task may send; one task receives and hands each reply to whoever asked. Each call has a deadline. When the socket
//! closes, or the VMM breaks the protocol, the connection is over on both sides: every call fails with [`ControlError::Closed`], those that wait
//! and those to come, the channel of events ends, and [`Control::lost`] says why. A VMM may have been taken over by its guest: its words are cleaned.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg, shutdown,
};
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot, watch};
use vmm_api::{Command, Event, Message, PACKET_MAX_BYTES, Reply, ReplyError, Request, Stats};

use crate::deadlines::CONTROL_REPLY;
use crate::guest::{limits, text};
use crate::polled::{self, Polled};

/// Milestones of a boot: there are some ten.
const MILESTONES_MAX: usize = 64;

/// The name of one.
const MILESTONE_MAX_BYTES: usize = 32;

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
    lost: watch::Receiver<Option<Loss>>,
}

/// Why there is no control of a VMM any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Loss {
    #[error("the VMM closed its control socket")]
    Closed,
    #[error("the control socket of the VMM cannot be read: {0}")]
    Unreadable(String),
    #[error("the VMM sent a packet that is not a message: {0}")]
    NotAMessage(String),
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
    /// It is there and says nothing.
    #[error("the VMM does not answer")]
    TimedOut,
}

type Answer = oneshot::Sender<Result<Reply, ReplyError>>;

/// Calls without a reply, by request id; None when there will be no replies any more.
#[derive(Clone, Debug)]
struct Waiting(Arc<Mutex<Option<HashMap<u64, Answer>>>>);

impl Waiting {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(HashMap::new()))))
    }

    fn insert(&self, id: u64, answer: Answer) -> Result<(), ControlError> {
        let mut waiting = self.lock();
        let calls = waiting.as_mut().ok_or(ControlError::Closed)?;
        calls.insert(id, answer);
        Ok(())
    }

    fn take(&self, id: u64) -> Option<Answer> {
        self.lock().as_mut()?.remove(&id)
    }

    fn close(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<HashMap<u64, Answer>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that waits. However it ends, it is forgotten.
struct Call<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.waiting.take(self.id);
    }
}

/// What the receiving task tells.
struct Told {
    waiting: Waiting,
    events: mpsc::Sender<Arrived>,
    resized: watch::Sender<u32>,
    lost: watch::Sender<Option<Loss>>,
}

/// Takes over the supervisor's end of a control socket.
pub(crate) fn open(socket: OwnedFd) -> io::Result<(Control, mpsc::Receiver<Arrived>)> {
    let (resized, last_size) = watch::channel(0);
    let (lost, loss) = watch::channel(None);
    let control = Control {
        socket: Arc::new(polled::watch(socket)?),
        waiting: Waiting::new(),
        next_id: Arc::new(AtomicU64::new(1)),
        resized: last_size,
        lost: loss,
    };
    let (events, arrived) = mpsc::channel(EVENTS_AHEAD_MAX);
    let told = Told {
        waiting: control.waiting.clone(),
        events,
        resized,
        lost,
    };
    tokio::spawn(receive_all(control.socket.clone(), told));
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

    /// Waits until there is no control any more, and says why.
    pub(crate) async fn lost(&self) -> Loss {
        let mut lost = self.lost.clone();
        let loss = lost.wait_for(Option::is_some).await;
        // The sender speaks before it goes, but when the whole runtime ends.
        loss.ok()
            .and_then(|loss| loss.clone())
            .unwrap_or(Loss::Closed)
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
        let called = self.call_unhurried(command, fd);
        tokio::time::timeout(CONTROL_REPLY, called)
            .await
            .unwrap_or(Err(ControlError::TimedOut))
    }

    async fn call_unhurried(
        &self,
        command: Command,
        fd: Option<OwnedFd>,
    ) -> Result<Reply, ControlError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let packet = serde_json::to_vec(&Request { id, command })
            .map_err(|e| ControlError::Send(e.into()))?;
        let (answer, answered) = oneshot::channel();
        self.waiting.insert(id, answer)?;
        let _call = Call {
            waiting: &self.waiting,
            id,
        };
        let sent = self.socket.async_io(Interest::WRITABLE, |socket| {
            send(socket.as_fd(), &packet, fd.as_ref())
        });
        sent.await.map_err(|e| match e.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ControlError::Closed,
            _ => ControlError::Send(e),
        })?;
        match answered.await {
            Ok(Ok(reply)) => Ok(bounded(reply)),
            Ok(Err(refusal)) => {
                let words = text::clean(&refusal.message, limits::ERROR_MAX_BYTES);
                Err(ControlError::Refused(words))
            }
            Err(_) => Err(ControlError::Closed),
        }
    }
}

/// The reply with names that can be shown.
fn bounded(reply: Reply) -> Reply {
    match reply {
        Reply::Done => Reply::Done,
        Reply::Stats(mut stats) => {
            stats.timeline.truncate(MILESTONES_MAX);
            for mark in &mut stats.timeline {
                mark.name = text::clean(&mark.name, MILESTONE_MAX_BYTES);
            }
            Reply::Stats(stats)
        }
    }
}

/// Receives until the socket closes or the VMM breaks the protocol; then the connection is over on both sides.
async fn receive_all(socket: Arc<Polled>, told: Told) {
    let loss = receive_until_lost(&socket, &told).await;
    if loss != Loss::Closed {
        tracing::warn!("{loss}");
    }
    // The VMM ends when it reads the end.
    if let Err(e) = shutdown(socket.get_ref(), Shutdown::Both) {
        tracing::debug!("the control socket is closed already: {e}");
    }
    told.waiting.close();
    told.lost.send_replace(Some(loss));
}

async fn receive_until_lost(socket: &Polled, told: &Told) -> Loss {
    let mut buffer = vec![0; PACKET_MAX_BYTES];
    loop {
        let received = socket.async_io(Interest::READABLE, |socket| {
            receive(socket.as_fd(), &mut buffer)
        });
        let (length, fd) = match received.await {
            Ok((0, _)) => return Loss::Closed,
            Ok(received) => received,
            // It ended with a request unread.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Loss::Closed,
            Err(e) => return Loss::Unreadable(e.to_string()),
        };
        match serde_json::from_slice(&buffer[..length]) {
            Ok(Message::Reply { id, result }) => {
                // Nobody waits when the caller was cancelled.
                if let Some(answer) = told.waiting.take(id) {
                    let _ = answer.send(result);
                }
            }
            Ok(Message::Event(Event::Resized { memory_mib })) => {
                told.resized.send_replace(memory_mib);
            }
            Ok(Message::Event(event)) => {
                // Once nobody listens a guest that dials on is not worth a line: its connection ends here.
                let _ = told.events.send(Arrived { event, fd }).await;
            }
            Err(e) => {
                let words = text::clean(&e.to_string(), limits::ERROR_MAX_BYTES);
                return Loss::NotAMessage(words);
            }
        }
    }
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
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    // None of these is a message of the protocol, and of the first two the rest is gone.
    if fds.len() > 1
        || message
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        let what = "a packet or what came beside it was too long";
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok((message.bytes, fds.pop()))
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

        async fn say_when_it_can(&self, message: &Message, fd: Option<&OwnedFd>) {
            let packet = serde_json::to_vec(message).unwrap();
            let sent = self.0.async_io(Interest::WRITABLE, |socket| {
                send(socket.as_fd(), &packet, fd)
            });
            sent.await.unwrap();
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
        assert_eq!(control.lost().await, Loss::Closed);
        assert!(matches!(control.stop().await, Err(ControlError::Closed)));
    }

    #[tokio::test]
    async fn a_packet_that_is_no_message_ends_the_connection_for_both() {
        let (vmm, control, mut events) = FakeVmm::start();
        let caller = control.clone();
        let call = tokio::spawn(async move { caller.stop().await });
        vmm.request().await;
        send(vmm.0.get_ref().as_fd(), b"{]", None).unwrap();
        assert!(events.recv().await.is_none());
        assert!(matches!(call.await.unwrap(), Err(ControlError::Closed)));
        assert!(matches!(control.lost().await, Loss::NotAMessage(_)));
        // The VMM's end is still open: only a flag keeps later calls from waiting for it.
        assert!(matches!(control.stats().await, Err(ControlError::Closed)));
        let mut byte = [0; 1];
        assert_eq!(rustix::io::read(vmm.0.get_ref(), &mut byte), Ok(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_vmm_that_does_not_answer_is_not_waited_for() {
        let (vmm, control, _events) = FakeVmm::start();
        for _ in 0..3 {
            assert!(matches!(control.stop().await, Err(ControlError::TimedOut)));
            vmm.request().await;
        }
        assert_eq!(control.waiting.lock().as_ref().map(HashMap::len), Some(0));
    }

    #[tokio::test]
    async fn a_packet_or_descriptors_that_are_cut_off_end_the_connection() {
        let (vmm, control, _events) = FakeVmm::start();
        send(vmm.0.get_ref().as_fd(), &[b' '; PACKET_MAX_BYTES + 1], None).unwrap();
        assert!(matches!(control.lost().await, Loss::Unreadable(_)));
        for count in [2, 4] {
            let (vmm, control, _events) = FakeVmm::start();
            let (near, _far) = UnixStream::pair().unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let fds = vec![near.as_fd(); count];
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            let accepted = Message::Event(Event::Accepted { port: 1024 });
            let packet = serde_json::to_vec(&accepted).unwrap();
            let slices = [IoSlice::new(&packet)];
            sendmsg(vmm.0.get_ref(), &slices, &mut ancillary, SendFlags::empty()).unwrap();
            assert!(matches!(control.lost().await, Loss::Unreadable(_)));
        }
    }

    /// Packets as fast as the socket takes them, of all kinds that nobody waits for.
    #[tokio::test]
    async fn a_flood_of_packets_keeps_no_call_waiting() {
        const FLOOD: u32 = 5_000;
        let (vmm, control, events) = FakeVmm::start();
        // Nobody listens to events any more.
        drop(events);
        let flooding = async {
            for number in 0..FLOOD {
                let id = u64::MAX - u64::from(number);
                let result = Ok(Reply::Done);
                let (_near, far) = UnixStream::pair().unwrap();
                vmm.say_when_it_can(&Message::Reply { id, result }, None)
                    .await;
                let resized = Event::Resized { memory_mib: number };
                vmm.say_when_it_can(&Message::Event(resized), None).await;
                let accepted = Message::Event(Event::Accepted { port: 1024 });
                vmm.say_when_it_can(&accepted, Some(&far.into())).await;
            }
        };
        let answering = async {
            for _ in 0..10 {
                let (request, _) = vmm.request().await;
                let result = Ok(Reply::Stats(Stats::default()));
                let id = request.id;
                vmm.say_when_it_can(&Message::Reply { id, result }, None)
                    .await;
            }
        };
        let asking = async {
            for _ in 0..10 {
                control.stats().await.unwrap();
            }
        };
        tokio::join!(flooding, answering, asking);
    }

    #[tokio::test]
    async fn words_of_a_vmm_can_be_shown() {
        let (vmm, control, _events) = FakeVmm::start();
        let call = tokio::spawn(async move { control.stop().await });
        let (request, _) = vmm.request().await;
        let message = "\x1b[2Jno\n".into();
        let result = Err(ReplyError { message });
        vmm.say(
            &Message::Reply {
                id: request.id,
                result,
            },
            None,
        );
        let refused = call.await.unwrap().unwrap_err();
        assert_eq!(refused.to_string(), "the VMM refused: ?[2Jno?");
    }
}
