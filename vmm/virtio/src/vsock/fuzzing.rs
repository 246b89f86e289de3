//! All connections of a device without its queues, for fuzzing: packets in as bytes, packets out as
//! bytes, at the word of the caller.

use std::io;

use super::Host;
use super::buffers::{Buffers, Permit};
use super::muxer::Muxer;
use super::packet::{HEADER_BYTES, Header};

/// The largest number of connections there may be.
pub const CONNECTIONS_MAX: usize = super::muxer::CONNECTIONS_MAX;
/// What the device holds per connection of what the guest has sent.
pub const BUFFER_BYTES: u32 = super::connection::BUFFER_BYTES;

/// The connections and the host's end of them.
#[derive(Debug)]
pub struct Sockets {
    muxer: Muxer,
    host: Host,
}

impl Sockets {
    /// No connections; the guest with this context id may dial `host_ports`.
    pub fn new(guest_cid: u32, host_ports: &[u32]) -> io::Result<Self> {
        let host = Host::new(host_ports.to_vec())?;
        let muxer = Muxer::new(guest_cid.into(), host_ports, host.ends(), false)?;
        Ok(Self { muxer, host })
    }

    /// The host's end.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Lets the guest dial a port once more.
    pub fn listen(&self, port: u32) {
        self.host.ends().listen(port);
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.muxer.connections()
    }

    /// Whether a packet of the guest's may be taken now.
    #[must_use]
    pub fn may_receive(&self) -> bool {
        self.muxer.may_receive()
    }

    /// Takes what the guest has sent in pieces, if it is long enough for a packet.
    pub fn receive(&mut self, pieces: Vec<&mut [u8]>) -> bool {
        let mut payload = Buffers::of_pieces(pieces);
        let Some(header) = payload.split_front(HEADER_BYTES) else {
            return false;
        };
        let mut bytes = [0; HEADER_BYTES];
        header.copy_to(&mut bytes);
        self.muxer.receive(&Header::from_bytes(&bytes), payload);
        true
    }

    /// Puts the next packet into the guest's room; returns its length. None if there is no packet,
    /// or no room for one.
    pub fn send(&mut self, pieces: Vec<&mut [u8]>) -> Option<u32> {
        if !self.muxer.may_send() {
            return None;
        }
        let permit = Permit::from_room(Buffers::of_pieces(pieces))?;
        self.muxer.send(&permit)
    }

    /// Looks at the streams that have news.
    pub fn look(&mut self) -> io::Result<()> {
        self.muxer.look()
    }

    /// Takes the streams that the host wants connected.
    pub fn dial(&mut self) -> io::Result<()> {
        self.muxer.dial()
    }
}
