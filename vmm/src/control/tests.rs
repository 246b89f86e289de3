//! Control with a machine that does as the test says.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use rustix::event::Timespec;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;

/// How long what must come is waited for.
const DEADLINE: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// The test's side of the machine.
#[derive(Clone)]
struct Hands(Arc<Parts>);

struct Parts {
    ending: Ending,
    progress: vmm_virtio::Event,
    arrived: vmm_virtio::Event,
    /// The guest dials without end.
    floods: AtomicBool,
    stands_still: AtomicBool,
}

struct Fake {
    parts: Arc<Parts>,
    running: bool,
}

impl Owned for Fake {
    fn is_running(&self) -> bool {
        self.running
    }

    fn resume(&mut self) {
        self.running = true;
    }

    fn begin_pause(&mut self) {
        self.running = false;
    }

    fn progress(&self) -> &vmm_virtio::Event {
        &self.parts.progress
    }

    fn advance(&mut self) -> Result<bool, io::Error> {
        self.parts.progress.clear()?;
        Ok(self.parts.stands_still.load(Ordering::SeqCst))
    }

    fn stats(&self) -> Stats {
        Stats {
            user_exits: 7,
            ..Stats::default()
        }
    }

    fn resize(&mut self, _: u32) -> Result<(), ResizeError> {
        Err(ResizeError::Fixed)
    }

    fn memory_mib(&self) -> u32 {
        0
    }

    fn resized(&self) -> Option<&vmm_virtio::Event> {
        None
    }

    fn connect(&self, _: u32, _: OwnedFd) -> Result<(), ConnectError> {
        Ok(())
    }

    fn arrived(&self) -> &vmm_virtio::Event {
        &self.parts.arrived
    }

    fn accepted(&self) -> Option<(u32, OwnedFd)> {
        let floods = self.parts.floods.load(Ordering::SeqCst);
        floods.then(|| (1024, UnixStream::pair().unwrap().0.into()))
    }

    fn ending(&self) -> &Ending {
        &self.parts.ending
    }
}

impl Hands {
    fn flood(&self) {
        self.0.floods.store(true, Ordering::SeqCst);
        self.0.arrived.signal().unwrap();
    }

    fn stand_still(&self) {
        self.0.stands_still.store(true, Ordering::SeqCst);
        self.0.progress.signal().unwrap();
    }
}

type Ended = JoinHandle<Result<StopReason, ControlError>>;

/// The supervisor's end, the machine, and control, which runs.
fn start() -> (OwnedFd, Hands, Ended) {
    let flags = SocketFlags::CLOEXEC;
    let (socket, ours) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let event = || vmm_virtio::Event::new().unwrap();
    let parts = Arc::new(Parts {
        ending: Ending::new().unwrap(),
        progress: event(),
        arrived: event(),
        floods: AtomicBool::new(false),
        stands_still: AtomicBool::new(false),
    });
    let machine = Fake {
        parts: Arc::clone(&parts),
        running: true,
    };
    let ended = thread::spawn(move || Control::new(socket, machine).run());
    (ours, Hands(parts), ended)
}

fn order(socket: &OwnedFd, id: u64, command: Command) {
    let text = serde_json::to_vec(&Request { id, command }).unwrap();
    rustix::io::write(socket, &text).unwrap();
}

/// The next message, without its descriptor.
fn hear(socket: &OwnedFd) -> Message {
    let mut files = [PollFd::new(socket, PollFlags::IN)];
    assert_eq!(poll(&mut files, Some(&DEADLINE)), Ok(1), "nothing is said");
    let mut text = vec![0; PACKET_MAX_BYTES];
    let length = rustix::io::read(socket, &mut text).unwrap();
    serde_json::from_slice(&text[..length]).unwrap()
}

fn reply(id: u64, result: Result<Reply, &str>) -> Message {
    Message::Reply {
        id,
        result: result.map_err(refuse),
    }
}

fn is_accepted(message: &Message) -> bool {
    matches!(message, Message::Event(Event::Accepted { .. }))
}

#[test]
fn pause_is_replied_to_when_the_machine_stands_still() {
    let (socket, hands, _ended) = start();
    order(&socket, 1, Command::Pause);
    order(&socket, 2, Command::Pause);
    order(&socket, 3, Command::Resume);
    order(&socket, 4, Command::Stats);
    for id in [2, 3] {
        let refused = reply(id, Err("the machine is about to pause"));
        assert_eq!(hear(&socket), refused);
    }
    assert!(matches!(
        hear(&socket),
        Message::Reply {
            id: 4,
            result: Ok(Reply::Stats(_))
        }
    ));
    hands.stand_still();
    assert_eq!(hear(&socket), reply(1, Ok(Reply::Done)));
    order(&socket, 5, Command::Pause);
    assert_eq!(
        hear(&socket),
        reply(5, Err("the machine is paused already"))
    );
    order(&socket, 6, Command::Resume);
    assert_eq!(hear(&socket), reply(6, Ok(Reply::Done)));
}

#[test]
fn stop_is_heard_during_a_pause_without_end() {
    let (socket, _hands, ended) = start();
    order(&socket, 1, Command::Pause);
    order(&socket, 2, Command::Stop);
    assert_eq!(hear(&socket), reply(2, Ok(Reply::Done)));
    assert_eq!(ended.join().unwrap().unwrap(), StopReason::Stopped);
}

#[test]
fn commands_are_answered_in_a_flood_of_connections() {
    let (socket, hands, ended) = start();
    hands.flood();
    assert!(is_accepted(&hear(&socket)));
    order(&socket, 1, Command::Stats);
    while is_accepted(&hear(&socket)) {}
    order(&socket, 2, Command::Stop);
    assert_eq!(ended.join().unwrap().unwrap(), StopReason::Stopped);
}

#[test]
fn machine_ends_though_the_supervisor_reads_nothing() {
    let (_socket, hands, ended) = start();
    hands.flood();
    hands.0.ending.reach(StopReason::PoweredOff);
    assert_eq!(ended.join().unwrap().unwrap(), StopReason::PoweredOff);
}

#[test]
fn what_the_supervisor_does_not_take_is_bounded_and_comes_later() {
    let (socket, hands, ended) = start();
    hands.flood();
    // Control has come to a stop when its end takes nothing more.
    let full = |socket: &OwnedFd| {
        let mut now = [PollFd::new(socket, PollFlags::IN)];
        poll(&mut now, Some(&DEADLINE)).unwrap()
    };
    assert_eq!(full(&socket), 1);
    order(&socket, 1, Command::Stats);
    let mut before = 0;
    while is_accepted(&hear(&socket)) {
        before += 1;
        assert!(before < 100_000, "a command is never answered");
    }
    drop(socket);
    assert_eq!(ended.join().unwrap().unwrap(), StopReason::Stopped);
}

#[test]
fn supervisor_that_is_gone_ends_the_machine() {
    for floods in [false, true] {
        let (socket, hands, ended) = start();
        if floods {
            hands.flood();
            assert!(is_accepted(&hear(&socket)));
        }
        drop(socket);
        assert_eq!(ended.join().unwrap().unwrap(), StopReason::Stopped);
    }
}

#[test]
fn packets_that_are_no_commands_end_the_machine() {
    let cases: [(&[u8], &str); 2] = [
        (b"{}", "understand a command"),
        (
            &[b' '; PACKET_MAX_BYTES + 1],
            "a command is longer than 16384 bytes, or has more than one descriptor",
        ),
    ];
    for (packet, message) in cases {
        let (socket, _hands, ended) = start();
        rustix::io::write(&socket, packet).unwrap();
        assert_eq!(ended.join().unwrap().unwrap_err().to_string(), message);
    }
}

#[test]
fn more_descriptors_than_one_end_the_machine() {
    let (socket, _hands, ended) = start();
    let text = serde_json::to_vec(&Request {
        id: 1,
        command: Command::Stats,
    })
    .unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = [socket.as_fd(); 16];
    ancillary.push(SendAncillaryMessage::ScmRights(&files));
    sendmsg(
        &socket,
        &[io::IoSlice::new(&text)],
        &mut ancillary,
        SendFlags::empty(),
    )
    .unwrap();
    assert!(matches!(ended.join().unwrap(), Err(ControlError::TooLong)));
}

#[test]
fn stream_is_asked_for_and_a_resize_of_a_fixed_machine_refused() {
    let (socket, _hands, _ended) = start();
    order(&socket, 1, Command::Connect { port: 7 });
    assert_eq!(
        hear(&socket),
        reply(1, Err("no stream came with the command"))
    );
    order(&socket, 2, Command::Resize { memory_mib: 1 });
    let fixed = "the machine was made without memory to gain";
    assert_eq!(hear(&socket), reply(2, Err(fixed)));
}
