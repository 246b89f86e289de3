//! The loopback interface of the current network namespace.
//!
//! One rtnetlink message (`RTM_NEWLINK`, rtnetlink(7)) and its acknowledgement, laid out by hand.

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
/// The loopback interface is always the first one.
const LOOPBACK_INDEX: i32 = 1;
const IFF_UP: u32 = 1;
/// `nlmsghdr` and `ifinfomsg`.
const MESSAGE_LEN: usize = 16 + 16;

/// Brings `lo` up.
pub(crate) fn loopback_up() -> Result<(), Errno> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sendto(
        &socket,
        &set_up(LOOPBACK_INDEX),
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;
    let mut reply = [0; 256];
    let (_, len) = recv(&socket, &mut reply[..], RecvFlags::empty())?;
    acknowledged(reply.get(..len).unwrap_or_default())
}

fn set_up(index: i32) -> [u8; MESSAGE_LEN] {
    let mut message = [0; MESSAGE_LEN];
    let mut put = |at: usize, bytes: &[u8]| message[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &32_u32.to_ne_bytes());
    put(4, &RTM_NEWLINK.to_ne_bytes());
    put(6, &(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    put(20, &index.to_ne_bytes());
    put(24, &IFF_UP.to_ne_bytes());
    put(28, &IFF_UP.to_ne_bytes());
    message
}

/// An acknowledgement is an error message with the number 0.
fn acknowledged(reply: &[u8]) -> Result<(), Errno> {
    let field = |at: usize| {
        reply
            .get(at..at + 4)
            .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
    };
    let (Some(kind), Some(error)) = (field(4), field(16)) else {
        return Err(Errno::BADMSG);
    };
    if u16::from_ne_bytes([kind[0], kind[1]]) != NLMSG_ERROR {
        return Err(Errno::BADMSG);
    }
    match i32::from_ne_bytes(error) {
        0 => Ok(()),
        error => Err(Errno::from_raw_os_error(error.saturating_neg())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(kind: u16, error: i32) -> Vec<u8> {
        let mut reply = vec![0; 36];
        reply[4..6].copy_from_slice(&kind.to_ne_bytes());
        reply[16..20].copy_from_slice(&error.to_ne_bytes());
        reply
    }

    #[test]
    fn an_acknowledgement_is_an_error_of_zero() {
        assert_eq!(acknowledged(&reply(NLMSG_ERROR, 0)), Ok(()));
        assert_eq!(acknowledged(&reply(NLMSG_ERROR, -1)), Err(Errno::PERM));
        assert_eq!(acknowledged(&reply(RTM_NEWLINK, 0)), Err(Errno::BADMSG));
        assert_eq!(acknowledged(&[0; 19]), Err(Errno::BADMSG));
    }

    #[test]
    fn the_message_says_its_own_length() {
        let message = set_up(LOOPBACK_INDEX);
        assert_eq!(
            message[..4],
            u32::try_from(message.len()).unwrap().to_ne_bytes()
        );
        assert_eq!(message[20..24], LOOPBACK_INDEX.to_ne_bytes());
    }
}
