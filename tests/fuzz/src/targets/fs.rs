//! The file server over a directory laid out as the supervisor does, with files beside it that no
//! guest may touch.
//!
//! The input is a guest kernel that was taken over: it knows every operation, uses the inodes and
//! handles it was given, and lies where it likes. Promised: whatever it sends, nothing outside of
//! the served directory is changed, opened or read, nothing of the supervisor's levels above the
//! mounts is changed, no descriptor leads outside, and the server goes on to serve who mounts it
//! anew.

/// A guest that speaks FUSE.
mod guest;
/// The directories, and whether they were left alone.
mod outside;

use std::cell::RefCell;

use vmm_virtio::fs::fuzzing::FileServer;

use guest::Guest;
use outside::Outside;

use crate::input::Input;

const STEPS_MAX: usize = 96;
/// Few enough for an input to come to the end of them.
const DESCRIPTORS: u64 = 24;

thread_local! {
    /// Made once: what is outside must be as it was, whatever was sent before.
    static OUTSIDE: RefCell<Outside> = RefCell::new(Outside::new());
}

pub(crate) fn run(bytes: &[u8]) {
    OUTSIDE.with_borrow_mut(|outside| {
        let mut input = Input::new(bytes);
        outside.lay_out_share();
        let known = outside::descriptors();
        let mut server = FileServer::new(outside.share(), DESCRIPTORS).unwrap();
        let mut guest = Guest::new(outside.path());
        guest.mount(&mut server);
        for _ in 0..STEPS_MAX {
            if input.is_empty() {
                break;
            }
            guest.step(&mut input, &mut server);
            outside.check();
        }
        outside.check_descriptors(&known);
        guest.mount(&mut server);
        outside.check();
    });
}
