//! What the supervisor reads: bundles, which it trusts to be somebody's wish, and what a guest
//! says, which it trusts with nothing.
//!
//! Promised of a guest's bytes: what is understood of them is within the bounds of
//! `husk::guest::limits`, can be shown, and is what protocol buffers' own reader understands where
//! that writes the same bytes again. The promises about bundles are with the code, in
//! `shim/src/fuzzing.rs`.

use std::collections::HashMap;

use agent_api::agent as wire;
use husk::guest::events::{self as guest_events, GuestEvent};
use husk::guest::{limits, replies as guest_replies, text};
use protobuf::Message;

use crate::input::Input;

/// A configuration, an exec's process and new limits are all JSON: what is one of them is seldom
/// another.
pub(crate) fn config(bytes: &[u8]) {
    husk::fuzzing::configuration(bytes);
    husk::fuzzing::process(bytes);
    husk::fuzzing::resources(bytes);
}

/// Frames, in the order in which an agent sends them.
pub(crate) fn connection(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let stream = u32::from(input.u8() % 4);
    husk::fuzzing::connection(input.rest(), stream);
}

/// What the generated reader makes of `bytes`, if these are how it would write it.
fn canonical<M: Message>(bytes: &[u8]) -> Option<M> {
    let message = M::parse_from_bytes(bytes).ok()?;
    let plain = message
        .special_fields()
        .unknown_fields()
        .iter()
        .next()
        .is_none();
    (plain && message.write_to_bytes().ok()? == bytes).then_some(message)
}

pub(crate) fn events(bytes: &[u8]) {
    let event = guest_events::event(bytes);
    if let Ok(GuestEvent::Exit {
        container,
        exec,
        status,
        ..
    }) = &event
    {
        assert!(container.len() <= limits::ID_MAX_BYTES && exec.len() <= limits::ID_MAX_BYTES);
        assert!(*status <= 255);
    }
    let Some(wanted) = canonical::<wire::Event>(bytes).and_then(|event| event.kind) else {
        return;
    };
    let id_fits = |id: &str| id.len() <= limits::ID_MAX_BYTES;
    match (wanted, event) {
        (
            wire::event::Kind::Exit(wanted),
            Ok(GuestEvent::Exit {
                container,
                exec,
                status,
                at_ns,
                carried,
            }),
        ) => {
            assert_eq!((container, exec), (wanted.container_id, wanted.exec_id));
            assert_eq!(
                (carried.stdout, carried.stderr),
                (wanted.stdout, wanted.stderr)
            );
            assert_eq!(
                (status, at_ns),
                (wanted.status.min(255), wanted.at_ns.cast_unsigned())
            );
        }
        (wire::event::Kind::Oom(wanted), Ok(GuestEvent::Oom { container })) => {
            assert_eq!(container, wanted.container_id);
        }
        (wire::event::Kind::Ready(wanted), Ok(GuestEvent::Ready { container })) => {
            assert_eq!(container, wanted.container_id);
        }
        (wire::event::Kind::Ready(wanted), Err(error)) => {
            let known = wanted
                .special_fields
                .unknown_fields()
                .iter()
                .next()
                .is_none();
            assert!(
                !known || !id_fits(&wanted.container_id),
                "{error}: {wanted}"
            );
        }
        (wire::event::Kind::Exit(wanted), Err(error)) => {
            let known = wanted
                .special_fields
                .unknown_fields()
                .iter()
                .next()
                .is_none();
            let fits = id_fits(&wanted.container_id) && id_fits(&wanted.exec_id);
            assert!(
                !known || !fits || bytes.len() > limits::EVENT_MAX_BYTES,
                "{error}: {wanted}"
            );
        }
        (wire::event::Kind::Oom(wanted), Err(error)) => {
            let known = wanted
                .special_fields
                .unknown_fields()
                .iter()
                .next()
                .is_none();
            assert!(
                !known || !id_fits(&wanted.container_id),
                "{error}: {wanted}"
            );
        }
        (wanted, event) => panic!("{wanted:?} was understood as {event:?}"),
    }
}

pub(crate) fn replies(bytes: &[u8]) {
    assert_eq!(guest_replies::done(bytes).is_ok(), bytes.is_empty());
    let _refused_or_a_number = guest_replies::pid(bytes);
    let _refused_or_read = guest_replies::envelope(bytes);
    if let Ok(processes) = guest_replies::processes(bytes) {
        assert!(processes.len() <= limits::PROCESSES_MAX);
        let arguments = processes.iter().map(|process| process.command.len());
        assert!(arguments.sum::<usize>() <= limits::ALL_ARGUMENTS_MAX);
        for process in &processes {
            assert!(is_clean(&process.terminal, limits::TERMINAL_MAX_BYTES));
            assert!(
                process
                    .command
                    .iter()
                    .all(|word| is_clean(word, limits::ARGUMENT_MAX_BYTES))
            );
        }
    }
    if let Ok(stats) = guest_replies::stats(bytes) {
        assert!(stats.files.len() <= limits::FILES_MAX);
        for (name, text) in &stats.files {
            assert!(
                name.len() <= limits::FILE_NAME_MAX_BYTES && text.len() <= limits::FILE_MAX_BYTES
            );
        }
        husk::fuzzing::metrics(&stats.files);
        if let Some(wanted) = canonical::<wire::StatsResponse>(bytes) {
            assert_eq!(stats.files, wanted.files);
        }
    }
}

fn is_clean(shown: &str, max_bytes: usize) -> bool {
    shown.len() <= max_bytes
        && text::clean(shown, max_bytes) == shown
        && !shown.chars().any(char::is_control)
}

/// Files of a cgroup: names and texts, each ended by a zero.
pub(crate) fn stats(bytes: &[u8]) {
    let mut parts = bytes
        .split(|byte| *byte == 0)
        .map(|part| String::from_utf8_lossy(part).into_owned());
    let mut files = HashMap::new();
    while let (Some(name), Some(text)) = (parts.next(), parts.next()) {
        files.insert(name, text);
    }
    husk::fuzzing::metrics(&files);
}

/// Processes, mounts, interfaces and cgroups as the host's kernel tells of them.
pub(crate) fn proc_files(bytes: &[u8]) {
    husk::fuzzing::proc_files(bytes);
}
