//! Connections of the socket device, beside a model of both of their ends (virtio 1.2, section
//! 5.10.6).
//!
//! The input is a guest that keeps to the protocol or does not, and peers on the host that write,
//! read, shut down and close. Promised:
//!
//! - nothing is sent beyond the guest's credit, after a `SHUTDOWN` or an `RST`, or before a
//!   connection is established;
//! - a guest that breaks a rule gets `RST`, and each packet of no connection exactly one, in order;
//! - the host gets the bytes the guest was allowed to send, all of them and in order, however the
//!   connection ends;
//! - the guest gets what the host wrote, all of it and in order, while the connection lives;
//! - no more connections than there may be.

/// One connection, as both ends know it.
mod connection;
/// The device and all there is around it.
mod world;

use world::World;

use crate::input::Input;

/// Fewer than there are connections with a large buffer.
const STEPS_MAX: usize = 120;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut world = World::new();
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        step(&mut input, &mut world);
    }
    world.finish();
}

fn step(input: &mut Input<'_>, world: &mut World) {
    match input.u8() % 16 {
        0..=6 => world.guest_sends(input),
        7 => world.guest_sends_nonsense(input),
        8 | 9 => world.guest_receives(input),
        10 => world.look(),
        11 => world.dial(input),
        12 | 13 => world.peer_writes(input),
        14 => world.peer_reads(input),
        _ => world.peer_ends(input),
    }
}
