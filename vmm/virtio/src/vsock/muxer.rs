//! All connections of a device: which of them a packet belongs to, and which may send next.
//!
//! ```text
//!   tx queue ─ packet ─► receive ─► connection ─► its stream          (what the stream will not take waits, within credit)
//!   rx queue ◄─ permit ─ send ◄──── turns ◄────── its stream          (nothing is read before there is a permit)
//! ```
//!
//! Connections with something to send take turns, one packet each. A permit is room in the guest; bytes are read from a stream straight into
//! it, so a guest that offers no room stops the reading, and the peers' sockets fill up.
//!
//! Streams are watched edge-triggered by an epoll instance of the muxer's own: a stream is touched when it has news and when a
//! queue has, never in between, whatever state it is in. Wake-ups for room to write are asked for only while bytes wait for it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::buffers::{Buffers, Permit};
use super::connection::{BUFFER_BYTES, Connection, SMALL_BUFFER_BYTES};
use super::endpoint::Endpoint;
use super::host::{Ends, set_nonblocking};
use super::packet::{HOST_CID, Header, Operation, PORT_ANY, TYPE_STREAM};
use super::stream::Stream;

/// Connections at one time, those that still write out what an ended one has left included. A container needs three and an exec
/// three; each costs a file descriptor.
pub(super) const CONNECTIONS_MAX: usize = 1024;
/// Connections that may be there when one gets a large buffer: at most this many have one. With the
/// small ones of all others that is 88 MiB, should all be stalled.
const LARGE_BUFFERS_MAX: usize = 128;
/// Resets that wait for room in the guest because no connection is there to owe them. While there are so many, no packet is taken.
const RESETS_MAX: usize = 128;
/// The first source port of connections the host makes, out of the way of well-known ones.
const DIAL_PORT_MIN: u32 = 1 << 30;
/// The last one. There are far more than connections.
const DIAL_PORT_MAX: u32 = (1 << 31) - 1;
/// Streams with news that are looked at before the queues are again.
const NEWS_MAX: usize = 64;

/// Names a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    host_port: u32,
    guest_port: u32,
}

impl Key {
    fn token(self) -> u64 {
        u64::from(self.host_port) << 32 | u64::from(self.guest_port)
    }

    fn from_token(token: u64) -> Option<Self> {
        Some(Self {
            host_port: u32::try_from(token >> 32).ok()?,
            guest_port: u32::try_from(token & u64::from(u32::MAX)).ok()?,
        })
    }
}

/// A connection's place in the table.
#[derive(Debug)]
struct Entry {
    endpoint: Endpoint,
    /// Listed in [`Muxer::turns`].
    queued: bool,
    /// Epoll tells of room to write.
    watches_room: bool,
}

/// The connections of one device.
#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    /// Ports that the guest may dial, or has dialled: none for connections of the host's to come
    /// from.
    host_ports: Vec<u32>,
    ends: Arc<Ends>,
    table: HashMap<Key, Entry>,
    turns: VecDeque<Key>,
    resets: VecDeque<Header>,
    epoll: OwnedFd,
    next_port: u32,
    /// The guest must yet be told that connections it believes in are not there.
    transport_reset_owed: bool,
}

impl Muxer {
    /// No connections. `restored`: the guest believes that there are some.
    pub(super) fn new(
        guest_cid: u64,
        host_ports: &[u32],
        ends: Arc<Ends>,
        restored: bool,
    ) -> io::Result<Self> {
        Ok(Self {
            guest_cid,
            host_ports: host_ports.to_vec(),
            ends,
            table: HashMap::new(),
            turns: VecDeque::new(),
            resets: VecDeque::new(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            next_port: DIAL_PORT_MIN,
            transport_reset_owed: restored,
        })
    }

    /// Whether the guest must be told that its connections are gone.
    pub(super) fn owes_transport_reset(&self) -> bool {
        self.transport_reset_owed
    }

    /// The guest was told.
    pub(super) fn transport_reset_sent(&mut self) {
        self.transport_reset_owed = false;
    }

    /// Readable when some stream has news.
    pub(super) fn news(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// How many connections there are.
    #[cfg(fuzzing)]
    pub(super) fn connections(&self) -> usize {
        self.table.len()
    }

    /// Whether a packet of the guest's may be taken now.
    pub(super) fn may_receive(&self) -> bool {
        self.resets.len() < RESETS_MAX
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn may_send(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    // === From the guest ===

    /// Takes one packet; `payload` is all that follows its header.
    pub(super) fn receive(&mut self, header: &Header, mut payload: Buffers<'_>) {
        if header.src_cid != self.guest_cid {
            // Nobody has that address (section 5.10.6.4).
            return;
        }
        if header.dst_cid != HOST_CID || header.socket_type != TYPE_STREAM {
            return self.refuse(header);
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        if header.operation() == Some(Operation::Request) && self.may_open(key) {
            return self.accept(key, header);
        }
        let Some(entry) = self.table.get_mut(&key) else {
            return self.refuse(header);
        };
        if entry.endpoint.is_forgotten() {
            return self.refuse(header);
        }
        let cut = usize::try_from(header.len).ok();
        match cut.and_then(|len| payload.split_front(len)) {
            Some(payload) => entry.endpoint.receive(header, payload),
            // The packet is shorter than it says.
            None => entry.endpoint.reset(),
        }
        self.settle(key);
    }

    /// Whether nothing is in the way of a connection the guest asks for.
    fn may_open(&self, key: Key) -> bool {
        match self.table.get(&key) {
            // The guest is done with one whose host end is gone, or it would not use its port again.
            Some(entry) => entry.endpoint.is_left(),
            None => self.table.len() < CONNECTIONS_MAX,
        }
    }

    fn accept(&mut self, key: Key, request: &Header) {
        if !self.ends.listens(key.host_port) || key.host_port == PORT_ANY {
            return self.refuse(request);
        }
        self.remove(key);
        // What the host lacks, the guest sees as a refusal.
        if self.try_accept(key, request).is_err() {
            self.remove(key);
            self.refuse(request);
        }
    }

    fn try_accept(&mut self, key: Key, request: &Header) -> io::Result<()> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        set_nonblocking(&ours)?;
        let connection = Connection::accepted(request).with_buffer(self.buffer_bytes());
        self.insert(key, connection, ours)?;
        self.ends.arrive(key.host_port, theirs)
    }

    /// Answers a packet that belongs to no connection.
    fn refuse(&mut self, header: &Header) {
        if header.operation() != Some(Operation::Reset) {
            self.resets.push_back(header.reset());
        }
    }

    // === From the host ===

    /// Takes the streams that wait to be connected.
    pub(super) fn dial(&mut self) -> io::Result<()> {
        for dial in self.ends.dials()? {
            if self.table.len() >= CONNECTIONS_MAX {
                // Dropped, that is closed: the peer sees a refusal.
                continue;
            }
            let key = self.free_key(dial.port);
            let connection = Connection::requested().with_buffer(self.buffer_bytes());
            if self.insert(key, connection, dial.stream).is_err() {
                self.remove(key);
            }
        }
        Ok(())
    }

    /// What the next connection may have waiting for the host.
    fn buffer_bytes(&self) -> u32 {
        if self.table.len() < LARGE_BUFFERS_MAX {
            BUFFER_BYTES
        } else {
            SMALL_BUFFER_BYTES
        }
    }

    /// A source port that no connection to `guest_port` has.
    fn free_key(&mut self, guest_port: u32) -> Key {
        loop {
            let key = Key {
                host_port: self.next_port,
                guest_port,
            };
            self.next_port = match self.next_port {
                DIAL_PORT_MAX => DIAL_PORT_MIN,
                port => port + 1,
            };
            if !self.table.contains_key(&key) && !self.host_ports.contains(&key.host_port) {
                return key;
            }
        }
    }

    /// Looks at the streams that have news.
    pub(super) fn look(&mut self) -> io::Result<()> {
        let mut room = [const { MaybeUninit::uninit() }; NEWS_MAX];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let (events, _) = match epoll::wait(&self.epoll, &mut room, Some(&now)) {
            Ok(events) => events,
            // The worker's own epoll will say so again.
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for event in events {
            if let Some(key) = Key::from_token(event.data.u64()) {
                if let Some(entry) = self.table.get_mut(&key) {
                    let flags = event.flags;
                    entry.endpoint.woken(flags.contains(epoll::EventFlags::HUP));
                }
                self.settle(key);
            }
        }
        Ok(())
    }

    // === To the guest ===

    /// Sends one packet, if there is one; returns its length.
    pub(super) fn send(&mut self, permit: &Permit<'_>) -> Option<u32> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(permit.fill(reset));
        }
        while let Some(key) = self.turns.pop_front() {
            let mut header = self.header(key);
            let Some(entry) = self.table.get_mut(&key) else {
                continue;
            };
            entry.queued = false;
            let sent = entry.endpoint.send(permit, &mut header);
            self.settle(key);
            if sent.is_some() {
                return sent.map(|()| permit.fill(header));
            }
        }
        None
    }

    fn header(&self, key: Key) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: key.host_port,
            dst_port: key.guest_port,
            socket_type: TYPE_STREAM,
            ..Header::default()
        }
    }

    // === The table ===

    fn insert(&mut self, key: Key, connection: Connection, stream: OwnedFd) -> io::Result<()> {
        let data = epoll::EventData::new_u64(key.token());
        epoll::add(&self.epoll, &stream, data, interest(false))?;
        let entry = Entry {
            endpoint: Endpoint::new(connection, stream),
            queued: false,
            watches_room: false,
        };
        self.table.insert(key, entry);
        self.settle(key);
        Ok(())
    }

    /// Brings stream, epoll, turns and table in line with what has become of a connection.
    fn settle(&mut self, key: Key) {
        let Some(entry) = self.table.get_mut(&key) else {
            return;
        };
        if let Some(stream) = entry.endpoint.settle() {
            unwatch(&self.epoll, &stream);
        }
        if entry.endpoint.is_over() {
            return self.remove(key);
        }
        if let Some(stream) = entry.endpoint.stream()
            && stream.has_backlog() != entry.watches_room
        {
            let data = epoll::EventData::new_u64(key.token());
            let wanted = stream.has_backlog();
            match epoll::modify(&self.epoll, stream, data, interest(wanted)) {
                Ok(()) => entry.watches_room = wanted,
                Err(_) => entry.endpoint.reset(),
            }
        }
        if !entry.queued && entry.endpoint.has_packet() {
            entry.queued = true;
            self.turns.push_back(key);
        }
    }

    fn remove(&mut self, key: Key) {
        let Some(entry) = self.table.remove(&key) else {
            return;
        };
        if entry.queued {
            self.turns.retain(|waiting| *waiting != key);
        }
        if let Some(stream) = entry.endpoint.stream() {
            unwatch(&self.epoll, stream);
        }
    }
}

/// Takes a stream that is about to be closed from epoll: explicitly, since its peer may hold a copy of our end.
fn unwatch(epoll: &OwnedFd, stream: &Stream) {
    // Fails only for a stream that is not there.
    let _ = epoll::delete(epoll, stream);
}

/// What is asked of epoll for a stream.
fn interest(room: bool) -> epoll::EventFlags {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
    if room {
        flags | epoll::EventFlags::OUT
    } else {
        flags
    }
}

#[cfg(test)]
mod tests;
