//! The control socket's messages: both ends read JSON that the other has written, or something that
//! took its place.
//!
//! Promised: an error or a value that says the same when it is written and read again. The
//! supervisor reads what a VMM says that its guest may have taken over.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use vmm_api::{Message, PACKET_MAX_BYTES, Probe, Request};

pub(crate) fn run(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(PACKET_MAX_BYTES)];
    twice::<Request>(bytes);
    twice::<Message>(bytes);
    twice::<Probe>(bytes);
}

fn twice<T: Debug + DeserializeOwned + PartialEq + Serialize>(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let written = serde_json::to_vec(&value).unwrap();
        assert_eq!(serde_json::from_slice::<T>(&written).unwrap(), value);
    }
}
