//! The boundary to the guest: nothing that an agent says goes further into the supervisor than here before it is bounded and cleaned.
//!
//! ```text
//!   agent ── bytes ──► frames ── whole frames of bounded size ──► ttrpc ── a payload ──► replies, events ── bounded values ──► sandbox
//!                        │          one event stream, so many events ahead                  text without control characters
//!                        └─ a frame that breaks the protocol: the connection ends, and with it the VM, with a reason
//! ```
//!
//! A guest is trusted with nothing: each count, length and rate that it could drive has its bound in [`limits`], with the reason beside
//! it. What is here but for the connection itself ([`frames`]) is pure: bytes in, a value or a [`Malformed`] out, so that it can be fed with anything.

use std::fmt;

/// How often something may be written to the log that a guest can cause at will.
pub(crate) mod budget;
/// Events, as the agent's stream carries them.
pub mod events;
/// The agent's connection, frame by frame.
pub mod frames;
/// The bounds.
pub mod limits;
/// Replies, method by method.
pub mod replies;
/// Text for logs, records and terminals.
pub mod text;
/// Protocol buffers, field by field.
pub mod wire;

/// Bytes of a guest that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Malformed {
    /// Of what.
    what: &'static str,
    why: Why,
}

/// What is wrong with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A number, a length or a field reaches beyond the end.
    CutOff,
    /// A field has no known number, or not its type.
    Unknown,
    /// Text is not UTF-8.
    Text,
    /// There is more of something than [`limits`] allows.
    TooMuch,
}

impl Malformed {
    /// A message `what` that is wrong like this.
    #[must_use]
    pub fn new(what: &'static str, why: Why) -> Self {
        Self { what, why }
    }

    /// What is wrong with it.
    #[must_use]
    pub fn why(&self) -> Why {
        self.why
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.why {
            Why::CutOff => "is cut off",
            Why::Unknown => "has a field that it cannot have",
            Why::Text => "has text that is not UTF-8",
            Why::TooMuch => "has more in it than there may be",
        };
        write!(out, "{} of the guest {why}", self.what)
    }
}
