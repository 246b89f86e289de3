//! The header that begins every packet, in both directions (virtio 1.2, section 5.10.6): 44 bytes, little endian.
//!
//! ```text
//!   0        8        16        20        24   28    30  32     36         40       44
//!   src_cid  dst_cid  src_port  dst_port  len  type  op  flags  buf_alloc  fwd_cnt  payload of len bytes
//! ```
//!
//! Every pattern of bits is a header; what makes no sense is found out by whoever acts on it.

/// The bytes of a header.
pub(super) const HEADER_BYTES: usize = HEADER_LEN as usize;
const HEADER_LEN: u32 = 44;
/// The host's context id (section 5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// The only socket type this device has (section 5.10.6).
pub(super) const TYPE_STREAM: u16 = 1;
/// No port has this number; it stands for any.
pub(super) const PORT_ANY: u32 = u32::MAX;

/// What a packet is for (section 5.10.6.6 and the sections after it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Operation {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

/// The directions a sender has ended, as [`Operation::Shutdown`] carries them in `flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shutdown(u32);

impl Shutdown {
    /// The sender will receive no more.
    pub(super) const RECEIVE: Self = Self(1 << 0);
    /// The sender will send no more.
    pub(super) const SEND: Self = Self(1 << 1);
    /// Both.
    pub(super) const BOTH: Self = Self(Self::RECEIVE.0 | Self::SEND.0);

    /// The directions in `flags`; unknown bits are dropped.
    pub(super) fn from_flags(flags: u32) -> Self {
        Self(flags & Self::BOTH.0)
    }

    pub(super) fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(super) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn flags(self) -> u32 {
        self.0
    }
}

/// One header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of payload.
    pub(super) len: u32,
    pub(super) socket_type: u16,
    /// See [`Header::operation`].
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Bytes the sender can hold of what it receives on this connection.
    pub(super) buf_alloc: u32,
    /// Bytes, modulo 2³², the sender has passed on of what it received on this connection.
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            socket_type: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.socket_type.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The bytes of the whole packet.
    pub(super) fn packet_len(&self) -> u32 {
        self.len.saturating_add(HEADER_LEN)
    }

    /// What the packet is for; None if nobody knows.
    pub(super) fn operation(&self) -> Option<Operation> {
        Some(match self.op {
            1 => Operation::Request,
            2 => Operation::Response,
            3 => Operation::Reset,
            4 => Operation::Shutdown,
            5 => Operation::Data,
            6 => Operation::CreditUpdate,
            7 => Operation::CreditRequest,
            _ => return None,
        })
    }

    /// The reset that answers this packet, from whoever it was meant for. A reset's type is that of the packet it answers: a driver looks up
    /// the socket by it.
    pub(super) fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            socket_type: self.socket_type,
            op: Operation::Reset as u16,
            ..Self::default()
        }
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_lies_where_the_specification_puts_it() {
        let bytes: [u8; HEADER_BYTES] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_cid, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(header.src_port, 0x1312_1110);
        assert_eq!(header.dst_port, 0x1716_1514);
        assert_eq!(header.len, 0x1b1a_1918);
        assert_eq!(header.socket_type, 0x1d1c);
        assert_eq!(header.op, 0x1f1e);
        assert_eq!(header.flags, 0x2322_2120);
        assert_eq!(header.buf_alloc, 0x2726_2524);
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);
        assert_eq!(header.to_bytes(), bytes);
    }

    #[test]
    fn operations_survive_the_wire_and_unknown_ones_are_none() {
        for op in 0..=u16::MAX {
            let header = Header {
                op,
                ..Header::default()
            };
            match header.operation() {
                Some(operation) => assert_eq!(operation as u16, op),
                None => assert!(op == 0 || op > 7),
            }
        }
    }

    #[test]
    fn reset_goes_back_where_the_packet_came_from() {
        let packet = Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 7,
            dst_port: 9,
            len: 5,
            socket_type: 2,
            op: 1,
            ..Header::default()
        };
        let reset = packet.reset();
        assert_eq!((reset.src_cid, reset.dst_cid), (2, 3));
        assert_eq!((reset.src_port, reset.dst_port), (9, 7));
        assert_eq!((reset.len, reset.socket_type), (0, 2));
        assert_eq!(reset.operation(), Some(Operation::Reset));
    }
}
