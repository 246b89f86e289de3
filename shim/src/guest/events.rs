//! Events of the agent's stream (pure).

use super::wire::{Fields, Value};
use super::{Malformed, limits};

/// The largest exit status there is, 8 bits.
const STATUS_MAX: u32 = 255;

/// Something that happened in a guest, by its own word. Whether there is such a container or exec is not known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// A process ended.
    Exit {
        /// Its container.
        container: String,
        /// Its exec, empty for the init process.
        exec: String,
        /// Exit code, or 128 + signal.
        status: u32,
        /// Nanoseconds since 1970, by the guest's clock.
        at_ns: u64,
        /// What it had put out by then.
        carried: Carried,
    },
    /// The guest's kernel killed a process of a container for memory.
    Oom {
        /// The container.
        container: String,
    },
    /// The program of a container has said that it is ready.
    Ready {
        /// The container.
        container: String,
    },
}

/// Bytes that each output of a process had carried when it ended, all of its own among them; None: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Of standard output.
    pub stdout: Option<u64>,
    /// Of standard error.
    pub stderr: Option<u64>,
}

/// What an event says.
///
/// # Errors
///
/// The bytes are not an event.
pub fn event(bytes: &[u8]) -> Result<GuestEvent, Malformed> {
    let mut fields = Fields::of("an event", bytes);
    if bytes.len() > limits::EVENT_MAX_BYTES {
        return Err(fields.malformed(super::Why::TooMuch));
    }
    let mut event = None;
    while let Some(field) = fields.next_field()? {
        event = Some(match field {
            (1, Value::Bytes(bytes)) => exit(bytes)?,
            (2, Value::Bytes(bytes)) => GuestEvent::Oom {
                container: container_of("an out-of-memory event", bytes)?,
            },
            (3, Value::Bytes(bytes)) => GuestEvent::Ready {
                container: container_of("a word of readiness", bytes)?,
            },
            _ => return Err(fields.unknown()),
        });
    }
    event.ok_or_else(|| fields.unknown())
}

fn exit(bytes: &[u8]) -> Result<GuestEvent, Malformed> {
    let mut fields = Fields::of("an exit", bytes);
    let (mut container, mut exec) = ("", "");
    let (mut status, mut at_ns) = (0, 0);
    let mut carried = Carried::default();
    while let Some(field) = fields.next_field()? {
        match field {
            (1, Value::Bytes(id)) => container = fields.name(id, limits::ID_MAX_BYTES)?,
            (2, Value::Bytes(id)) => exec = fields.name(id, limits::ID_MAX_BYTES)?,
            // Its pid in the guest, which nobody asks for.
            (3, Value::Number(_)) => {}
            (4, Value::Number(number)) => status = fields.short(number)?.min(STATUS_MAX),
            // A negative one is written as a very large one.
            (5, Value::Number(number)) => at_ns = number,
            // A wrong one costs the wait for what does not come, which has an end.
            (6, Value::Number(number)) => carried.stdout = Some(number),
            (7, Value::Number(number)) => carried.stderr = Some(number),
            _ => return Err(fields.unknown()),
        }
    }
    Ok(GuestEvent::Exit {
        container: container.to_owned(),
        exec: exec.to_owned(),
        status,
        at_ns,
        carried,
    })
}

/// The container of an event that says nothing else.
fn container_of(what: &'static str, bytes: &[u8]) -> Result<String, Malformed> {
    let mut fields = Fields::of(what, bytes);
    let mut container = "";
    while let Some(field) = fields.next_field()? {
        match field {
            (1, Value::Bytes(id)) => container = fields.name(id, limits::ID_MAX_BYTES)?,
            _ => return Err(fields.unknown()),
        }
    }
    Ok(container.to_owned())
}

#[cfg(test)]
mod tests {
    use agent_api::agent as wire;
    use protobuf::Message as _;

    use super::*;
    use crate::guest::Why;

    fn exit_of(container: &str, exec: &str, status: u32, at_ns: i64) -> Vec<u8> {
        let exit = wire::Exit {
            container_id: container.into(),
            exec_id: exec.into(),
            pid: 7,
            status,
            at_ns,
            stdout: Some(3),
            ..Default::default()
        };
        wire::Event {
            kind: Some(wire::event::Kind::Exit(exit)),
            ..Default::default()
        }
        .write_to_bytes()
        .unwrap()
    }

    #[test]
    fn an_agents_events_are_understood() {
        let exit = GuestEvent::Exit {
            container: "web".into(),
            exec: "sh".into(),
            status: 137,
            at_ns: 5,
            carried: Carried {
                stdout: Some(3),
                stderr: None,
            },
        };
        assert_eq!(event(&exit_of("web", "sh", 137, 5)).unwrap(), exit);
        let oom = wire::Oom {
            container_id: "web".into(),
            ..Default::default()
        };
        let oom = wire::Event {
            kind: Some(wire::event::Kind::Oom(oom)),
            ..Default::default()
        };
        let expected = GuestEvent::Oom {
            container: "web".into(),
        };
        assert_eq!(event(&oom.write_to_bytes().unwrap()).unwrap(), expected);
        let ready = GuestEvent::Ready {
            container: "web".into(),
        };
        assert_eq!(event(b"\x1a\x05\x0a\x03web").unwrap(), ready);
    }

    #[test]
    fn hostile_numbers_and_names_have_bounds() {
        let Ok(GuestEvent::Exit { status, .. }) = event(&exit_of("web", "", u32::MAX, 0)) else {
            panic!("an exit");
        };
        assert_eq!(status, STATUS_MAX);
        let long = "x".repeat(limits::ID_MAX_BYTES + 1);
        for bytes in [exit_of(&long, "", 0, 0), exit_of("web", &long, 0, 0)] {
            assert_eq!(event(&bytes).unwrap_err().why(), Why::TooMuch);
        }
        let flood = vec![0; limits::EVENT_MAX_BYTES + 1];
        assert_eq!(event(&flood).unwrap_err().why(), Why::TooMuch);
    }

    #[test]
    fn what_is_no_event_is_refused() {
        // Nothing, an unknown kind, text that is none.
        for bytes in [&[][..], &[0x22, 0], &[0x12, 3, 0x0a, 1, 0xff], b"hello"] {
            assert!(event(bytes).is_err(), "{bytes:x?}");
        }
    }
}
