//! One connection joined to its stream: what a packet, a permit or news of the stream does to both.

use std::os::fd::OwnedFd;

use super::buffers::{Buffers, Permit};
use super::connection::{Connection, Outgoing, Received};
use super::packet::Header;
use super::stream::{NotTaken, Read, Stream};

/// One connection and the host's end of it.
#[derive(Debug)]
pub(super) struct Endpoint {
    connection: Connection,
    /// None once the host's peer is gone and the guest is yet to acknowledge it.
    stream: Option<Stream>,
    /// Both directions of the stream have ended, though there may still be bytes to read.
    hung_up: bool,
}

impl Endpoint {
    /// A connection to be had on `stream`, which does not block.
    pub(super) fn new(connection: Connection, stream: OwnedFd) -> Self {
        Self {
            connection,
            stream: Some(Stream::new(stream)),
            hung_up: false,
        }
    }

    /// The stream, while something may pass through it.
    pub(super) fn stream(&self) -> Option<&Stream> {
        self.stream.as_ref()
    }

    /// Bytes wait for the stream to take them.
    pub(super) fn has_backlog(&self) -> bool {
        self.stream.as_ref().is_some_and(Stream::has_backlog)
    }

    /// There may be a packet for the guest.
    pub(super) fn has_packet(&self) -> bool {
        self.next().is_some()
    }

    /// To the guest the connection is no more.
    pub(super) fn is_forgotten(&self) -> bool {
        self.connection.is_forgotten()
    }

    /// The guest has forgotten the connection and the host has got all of it.
    pub(super) fn is_over(&self) -> bool {
        self.connection.is_forgotten() && !self.has_backlog()
    }

    /// The host is done with the connection; only the guest's acknowledgement is missing.
    pub(super) fn is_left(&self) -> bool {
        self.connection.host_is_gone() && self.stream.is_none()
    }

    /// Ends the connection by a reset.
    pub(super) fn reset(&mut self) {
        self.connection.reset();
    }

    /// Takes a packet of the guest's; `payload` is as long as the header says.
    pub(super) fn receive(&mut self, header: &Header, payload: Buffers<'_>) {
        if self.connection.receive(header) == Received::Data
            && let Some(stream) = &mut self.stream
        {
            let taken = stream.write(payload);
            self.forwarded(taken);
        }
    }

    /// Takes note that the stream has news. `hung_up`: both its directions have ended.
    pub(super) fn woken(&mut self, hung_up: bool) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        self.hung_up |= hung_up;
        stream.woken();
        let ended = stream.reading_ended();
        let taken = stream.flush();
        self.forwarded(taken);
        if ended && self.hung_up {
            self.read_end();
        }
    }

    /// Puts the next packet's payload into the guest's room and the rest into `header`; None if there is none after all.
    pub(super) fn send(&mut self, permit: &Permit<'_>, header: &mut Header) -> Option<()> {
        loop {
            let outgoing = self.next()?;
            let mut len = 0;
            if let Outgoing::Data { limit } = outgoing {
                match self.stream.as_mut()?.read(permit.payload(), limit) {
                    Read::Bytes(count) => len = count,
                    Read::Empty => continue,
                    Read::End => {
                        self.read_end();
                        continue;
                    }
                    Read::Broken => {
                        self.connection.reset();
                        continue;
                    }
                }
            }
            self.connection.sent(outgoing, len, header);
            return Some(());
        }
    }

    /// Shows the stream what has become of the connection. Returns the stream once nothing will pass through it any more.
    pub(super) fn settle(&mut self) -> Option<Stream> {
        let stream = self.stream.as_mut()?;
        if self.connection.guest_ended_receiving() {
            stream.stop_reading();
        }
        if self.connection.guest_ended_sending() {
            stream.finish();
        }
        let done = self.connection.host_is_gone() || self.connection.is_ended();
        if done && !stream.has_backlog() {
            return self.stream.take();
        }
        None
    }

    fn next(&self) -> Option<Outgoing> {
        let readable = self.stream.as_ref().is_some_and(Stream::is_readable);
        self.connection.next(readable)
    }

    fn forwarded(&mut self, taken: Result<u32, NotTaken>) {
        match taken {
            Ok(count) => self.connection.forwarded(count),
            Err(NotTaken) => {
                self.connection.host_ends_receiving();
                if let Some(stream) = &mut self.stream {
                    stream.discard();
                }
            }
        }
    }

    /// Nothing more is to be read: the host sends no more, and if it has hung up, takes no more either.
    fn read_end(&mut self) {
        self.connection.host_ends_sending();
        if self.hung_up {
            self.connection.host_ends_receiving();
        }
    }
}
