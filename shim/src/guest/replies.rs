//! Replies of the agent, method by method, and the envelope that ttrpc puts each of them in (pure).

use std::collections::HashMap;

use agent_api::agent::{ProcessInfo, StatsResponse};

use super::wire::{Fields, Value};
use super::{Malformed, Why, limits, text};

/// Checks ttrpc's own message around a reply, a `Response`, before ttrpc reads it: a status without details, and a payload.
///
/// # Errors
///
/// There is something else in it.
pub fn envelope(bytes: &[u8]) -> Result<(), Malformed> {
    let mut fields = Fields::of("a reply", bytes);
    while let Some(field) = fields.next_field()? {
        match field {
            (1, Value::Bytes(bytes)) => status(bytes)?,
            (2, Value::Bytes(_)) => {}
            _ => return Err(fields.unknown()),
        }
    }
    Ok(())
}

/// A code and a message. What could be behind them, `details`, no agent sends.
fn status(bytes: &[u8]) -> Result<(), Malformed> {
    let mut fields = Fields::of("a status", bytes);
    while let Some(field) = fields.next_field()? {
        match field {
            (1, Value::Number(number)) => drop(fields.short(number)?),
            (2, Value::Bytes(message)) => drop(fields.text(message)?),
            _ => return Err(fields.unknown()),
        }
    }
    Ok(())
}

/// A reply that says nothing but that it is done.
///
/// # Errors
///
/// It says something.
pub fn done(bytes: &[u8]) -> Result<(), Malformed> {
    match Fields::of("a reply", bytes) {
        _ if bytes.is_empty() => Ok(()),
        fields => Err(fields.unknown()),
    }
}

/// The number of a process in the guest, which `CreateContainer`, `StartContainer` and `StartProcess` are answered with.
///
/// # Errors
///
/// The bytes are no such reply.
pub fn pid(bytes: &[u8]) -> Result<u32, Malformed> {
    let mut fields = Fields::of("the number of a process", bytes);
    let mut pid = 0;
    while let Some(field) = fields.next_field()? {
        match field {
            (1, Value::Number(number)) => pid = fields.short(number)?,
            _ => return Err(fields.unknown()),
        }
    }
    Ok(pid)
}

/// The files of a container's cgroup, by their names. Their text is for those who look for numbers in it ([`crate::guest`] does not).
///
/// # Errors
///
/// The bytes are no such reply, or are more than a cgroup has.
pub fn stats(bytes: &[u8]) -> Result<StatsResponse, Malformed> {
    let mut fields = Fields::of("the statistics", bytes);
    let mut files = HashMap::new();
    while let Some(field) = fields.next_field()? {
        let (1, Value::Bytes(entry)) = field else {
            return Err(fields.unknown());
        };
        if files.len() >= limits::FILES_MAX {
            return Err(fields.malformed(Why::TooMuch));
        }
        let (name, text) = file(entry)?;
        files.insert(name.to_owned(), text.to_owned());
    }
    Ok(StatsResponse {
        files,
        ..Default::default()
    })
}

fn file(bytes: &[u8]) -> Result<(&str, &str), Malformed> {
    let mut fields = Fields::of("a file of the statistics", bytes);
    let (mut name, mut text) = ("", "");
    while let Some(field) = fields.next_field()? {
        match field {
            (1, Value::Bytes(bytes)) => name = fields.name(bytes, limits::FILE_NAME_MAX_BYTES)?,
            (2, Value::Bytes(bytes)) => text = fields.name(bytes, limits::FILE_MAX_BYTES)?,
            _ => return Err(fields.unknown()),
        }
    }
    Ok((name, text))
}

/// The processes of a container, with text that can be shown.
///
/// # Errors
///
/// The bytes are no such reply, or there are more processes than a guest has.
pub fn processes(bytes: &[u8]) -> Result<Vec<ProcessInfo>, Malformed> {
    let mut fields = Fields::of("the list of processes", bytes);
    let mut processes = Vec::new();
    let mut arguments_left = limits::ALL_ARGUMENTS_MAX;
    while let Some(field) = fields.next_field()? {
        let (1, Value::Bytes(bytes)) = field else {
            return Err(fields.unknown());
        };
        if processes.len() >= limits::PROCESSES_MAX {
            return Err(fields.malformed(Why::TooMuch));
        }
        let process = process(bytes, arguments_left.min(limits::ARGUMENTS_MAX))?;
        arguments_left -= process.command.len();
        processes.push(process);
    }
    Ok(processes)
}

fn process(bytes: &[u8], arguments_max: usize) -> Result<ProcessInfo, Malformed> {
    let mut fields = Fields::of("a process", bytes);
    let mut process = ProcessInfo::default();
    while let Some(field) = fields.next_field()? {
        match field {
            (1, Value::Number(number)) => process.pid = fields.short(number)?,
            (2, Value::Number(number)) => process.parent = fields.short(number)?,
            (3, Value::Number(number)) => process.uid = fields.short(number)?,
            // A time that no clock shows is none.
            (4, Value::Number(number)) => {
                process.started_ns = i64::try_from(number).unwrap_or_default();
            }
            (5, Value::Number(number)) => process.cpu_ns = number,
            (6, Value::Bytes(name)) => {
                process.terminal = text::clean(fields.text(name)?, limits::TERMINAL_MAX_BYTES);
            }
            (7, Value::Bytes(word)) => {
                if process.command.len() < arguments_max {
                    let word = text::clean(fields.text(word)?, limits::ARGUMENT_MAX_BYTES);
                    process.command.push(word);
                }
            }
            (8, Value::Number(number)) => process.gid = fields.short(number)?,
            (9, Value::Number(number)) => process.process_group = fields.short(number)?,
            (10, Value::Number(number)) => process.session = fields.short(number)?,
            (11, Value::Number(number)) => process.foreground = number != 0,
            (12, Value::Bytes(letter)) => process.state = text::clean(fields.text(letter)?, 1),
            (13, Value::Bytes(name)) => {
                process.name = text::clean(fields.text(name)?, limits::PROGRAM_MAX_BYTES);
            }
            (14, Value::Number(number)) => process.niceness = fields.short(number)?,
            (15, Value::Number(number)) => process.priority = fields.short(number)?,
            (16, Value::Number(number)) => process.threads = fields.short(number)?,
            (17, Value::Number(number)) => process.resident_bytes = number,
            (18, Value::Number(number)) => process.virtual_bytes = number,
            (19, Value::Number(number)) => process.memory_permille = fields.short(number)?,
            _ => return Err(fields.unknown()),
        }
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use agent_api::agent as wire;
    use protobuf::Message as _;

    use super::*;

    /// `count` fields of number 1, each an empty message.
    fn empty_messages(count: usize) -> Vec<u8> {
        [0x0a, 0].repeat(count)
    }

    #[test]
    fn an_agents_replies_are_understood() {
        let process = ProcessInfo {
            pid: 7,
            parent: 1,
            uid: 1000,
            started_ns: 5,
            cpu_ns: 6,
            terminal: "pts/0".into(),
            command: vec!["sh".into(), "-c".into()],
            gid: 8,
            process_group: 9,
            session: 10,
            foreground: true,
            state: "S".into(),
            name: "sh".into(),
            niceness: 20,
            priority: 19,
            threads: 2,
            resident_bytes: 17,
            virtual_bytes: 18,
            memory_permille: 19,
            ..Default::default()
        };
        let reply = wire::ProcessesResponse {
            processes: vec![process.clone()],
            ..Default::default()
        };
        let bytes = reply.write_to_bytes().unwrap();
        assert_eq!(processes(&bytes).unwrap(), [process]);
        let reply = StatsResponse {
            files: HashMap::from([("cpu.stat".into(), "usage_usec 1\n".into())]),
            ..Default::default()
        };
        let bytes = reply.write_to_bytes().unwrap();
        assert_eq!(stats(&bytes).unwrap(), reply);
        assert_eq!(pid(&[0x08, 7]).unwrap(), 7);
        done(&[]).unwrap();
    }

    #[test]
    fn four_mib_of_empty_processes_are_refused_at_the_first_too_many() {
        let bytes = empty_messages(limits::REPLY_MAX_BYTES / 2);
        assert_eq!(processes(&bytes).unwrap_err().why(), Why::TooMuch);
        let most = empty_messages(limits::PROCESSES_MAX);
        assert_eq!(processes(&most).unwrap().len(), limits::PROCESSES_MAX);
        // The same of files, whose names are equal: they are one.
        assert_eq!(stats(&bytes).unwrap().files.len(), 1);
    }

    #[test]
    fn four_mib_of_empty_arguments_are_cut() {
        let words = [0x3a, 0].repeat(limits::REPLY_MAX_BYTES / 2 - 8);
        let reply = message_in(1, &words);
        let found = processes(&reply).unwrap();
        assert_eq!(found[0].command.len(), limits::ARGUMENTS_MAX);
    }

    #[test]
    fn text_of_processes_can_be_shown() {
        let process = ProcessInfo {
            terminal: "\x1b]0;x\x07".repeat(100),
            command: vec![
                "a\x1b[2Jb".into(),
                "y".repeat(2 * limits::ARGUMENT_MAX_BYTES),
            ],
            ..Default::default()
        };
        let reply = message_in(1, &process.write_to_bytes().unwrap());
        let found = processes(&reply).unwrap();
        assert!(found[0].terminal.len() <= limits::TERMINAL_MAX_BYTES);
        assert_eq!(found[0].command[0], "a?[2Jb");
        assert!(found[0].command[1].len() <= limits::ARGUMENT_MAX_BYTES);
        assert!(!found[0].terminal.contains('\x1b'));
    }

    #[test]
    fn more_files_and_longer_ones_than_a_cgroup_has_are_refused() {
        let entry = |name: &str, text: &str| {
            let entry = [
                message_in(1, name.as_bytes()),
                message_in(2, text.as_bytes()),
            ];
            message_in(1, &entry.concat())
        };
        let many: Vec<u8> = (0..=limits::FILES_MAX)
            .flat_map(|number| entry(&number.to_string(), ""))
            .collect();
        let long_name = entry(&"n".repeat(limits::FILE_NAME_MAX_BYTES + 1), "");
        let long_text = entry("cpu.stat", &"t".repeat(limits::FILE_MAX_BYTES + 1));
        for bytes in [many, long_name, long_text] {
            assert_eq!(stats(&bytes).unwrap_err().why(), Why::TooMuch);
        }
    }

    #[test]
    fn an_envelope_has_a_status_and_a_payload_and_nothing_else() {
        let status = [&[0x08, 5][..], &message_in(2, b"no")].concat();
        envelope(&message_in(1, &status)).unwrap();
        envelope(&message_in(2, &[0xff; 100])).unwrap();
        let details = message_in(1, &[0x1a, 0].repeat(1000));
        let unknown = [0x58, 0].repeat(1000);
        for bytes in [details, unknown] {
            assert_eq!(envelope(&bytes).unwrap_err().why(), Why::Unknown);
        }
    }

    /// A field of bytes.
    fn message_in(field: u8, bytes: &[u8]) -> Vec<u8> {
        let mut message = vec![field << 3 | 2];
        let mut length = bytes.len();
        while length >= 0x80 {
            message.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        message.push(u8::try_from(length).unwrap());
        message.extend_from_slice(bytes);
        message
    }
}
