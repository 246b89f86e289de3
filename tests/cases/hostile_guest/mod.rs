//! A guest whose kernel means harm can end its own machine and nothing else. The guest is `tests/hostile`; which attack is in which case is in
//! the README.

mod machine;
mod oracle;
mod sandbox;

use harness::{Runtime, only_husk};
use machine::{End, Machine};
use oracle::{Bounds, Canary};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use sandbox::Sandbox;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use vmm_api::{Command, ExitCode, Reply};

/// The state directory of machines that no supervisor has.
const NO_STATE: &str = "/nonexistent";

/// Connections that a VMM holds for one guest at the most, and what else it has open.
const FLOODED: Bounds = Bounds {
    descriptors: 1024 + 64 + Bounds::IDLE.descriptors,
    own_kib: 48 * 1024,
    ..Bounds::IDLE
};

/// Inodes and open files that a VMM holds for one guest where its limit is 4096, with what each costs in it.
const FULL: Bounds = Bounds {
    descriptors: 4096,
    own_kib: 16 * 1024,
    ..Bounds::IDLE
};

/// The guest goes through all of it, nothing of which comes out wrong, and resets its machine.
#[track_caller]
fn assert_survived(end: &End, attacks: &str) {
    end.words.assert_all_well(attacks);
    let reset = i32::from(u8::from(ExitCode::Reset));
    assert_eq!(end.status.code(), Some(reset), "{end:?}");
}

/// Runs attacks in a machine of its own to their end.
fn survives(attacks: &str, vcpus: u8, bounds: Bounds) {
    only_husk("runc has no guest kernel to take the place of");
    let host = Runtime::from_environment();
    let canary = Canary::on(&host);
    let mut machine = Machine::start(attacks, vcpus);
    let id = machine.id.clone();
    let scales = machine.weighed();
    machine.await_words("begins");
    canary.answers();
    machine.stats();
    let end = machine.end();
    assert_survived(&end, attacks);
    scales.assert_within(bounds);
    canary.assert_untouched(&id, Path::new(NO_STATE));
}

#[test]
fn queues_that_lie_break_their_own_device() {
    survives("rings indices", 1, Bounds::IDLE);
}

#[test]
fn chains_that_lie_break_their_own_device() {
    survives("chains indirect", 1, Bounds::IDLE);
}

#[test]
fn registers_keep_what_is_the_devices() {
    survives(
        "registers configuration relaid kicks nowhere",
        1,
        Bounds::IDLE,
    );
}

#[test]
fn packets_that_lie_are_answered_by_resets() {
    survives("packets ports credit storm dials", 1, FLOODED);
}

#[test]
fn memory_is_had_as_offered_and_no_further() {
    only_husk("runc has no guest kernel to take the place of");
    let host = Runtime::from_environment();
    let canary = Canary::on(&host);
    let attacks = "orders plugging";
    let mut machine = Machine::start(attacks, 1);
    let id = machine.id.clone();
    let scales = machine.weighed();
    machine.await_words("memory is wanted");
    assert_eq!(
        machine.answer(Command::Resize { memory_mib: 96 }),
        Reply::Done
    );
    canary.answers();
    assert_eq!(machine.await_resized(), 96);
    let end = machine.end();
    assert_survived(&end, attacks);
    scales.assert_within(Bounds::IDLE);
    canary.assert_untouched(&id, Path::new(NO_STATE));

    // What touches memory that is not there ends the machine, and nothing else.
    for attack in ["unplugged", "unplugged-ring"] {
        let mut machine = Machine::start(attack, 1);
        let id = machine.id.clone();
        machine.await_words("memory is wanted");
        // It may end before it answers.
        machine.order(Command::Resize { memory_mib: 96 });
        let End { status, words } = machine.end();
        let is_its_own = status.code() == Some(i32::from(u8::from(ExitCode::Failed)))
            || status.signal() == Some(Signal::SEGV.as_raw())
            || words.0.contains("1 tried, 0 wrong");
        assert!(is_its_own, "{attack}: {status} {words:?}");
        canary.assert_untouched(&id, Path::new(NO_STATE));
    }
}

#[test]
fn a_device_that_is_fed_by_one_vcpu_and_reset_by_another_holds_up_nobody() {
    only_husk("runc has no guest kernel to take the place of");
    let host = Runtime::from_environment();
    let canary = Canary::on(&host);
    let mut machine = Machine::start("resets fed", 2);
    let id = machine.id.clone();
    let scales = machine.weighed();
    machine.await_words("is fed");
    canary.answers();
    // The first of these is of the very device.
    for memory_mib in [66, 96, 64] {
        assert_eq!(machine.answer(Command::Resize { memory_mib }), Reply::Done);
        machine.stats();
    }
    let end = machine.stop();
    end.words.assert_all_well("resets");
    let stopped = i32::from(u8::from(ExitCode::Stopped));
    assert_eq!(end.status.code(), Some(stopped), "{end:?}");
    scales.assert_within(Bounds::IDLE);
    canary.assert_untouched(&id, Path::new(NO_STATE));
}

#[test]
fn connections_without_end_hold_up_nobody() {
    only_husk("runc has no guest kernel to take the place of");
    let host = Runtime::from_environment();
    let canary = Canary::on(&host);
    // One supervisor takes what comes, the other one does not.
    let mut machine = Machine::start("dials-for-ever", 1);
    let id = machine.id.clone();
    let scales = machine.weighed();
    machine.await_words("begins");
    for _ in 0..10 {
        machine.stats();
    }
    canary.answers();
    let end = machine.stop();
    let stopped = i32::from(u8::from(ExitCode::Stopped));
    assert_eq!(end.status.code(), Some(stopped), "{end:?}");
    scales.assert_within(FLOODED);
    canary.assert_untouched(&id, Path::new(NO_STATE));

    let machine = Machine::start("dials dials dials reset", 1);
    let id = machine.id.clone();
    canary.answers();
    machine.leave();
    canary.assert_untouched(&id, Path::new(NO_STATE));
}

#[test]
fn a_sandboxs_share_is_the_supervisors_above_the_containers_files() {
    only_husk("runc has no guest kernel to take the place of");
    let host = Runtime::from_environment();
    let canary = Canary::on(&host);
    // It goes on for ever, so that the levels can be looked at.
    let mut sandbox = Sandbox::start("levels halt", 600);
    sandbox.await_words("halt: begins");
    sandbox.assert_answers();
    sandbox.words().assert_all_well("levels");
    sandbox.assert_levels();
    sandbox.delete(&canary);
}

#[test]
fn messages_to_the_file_server_stay_in_the_containers_files() {
    only_husk("runc has no guest kernel to take the place of");
    let host = Runtime::from_environment();
    let canary = Canary::on(&host);
    let attacks = "names messages handles links nodes ranges syncs";
    let mut sandbox = Sandbox::start(attacks, 600);
    let scales = sandbox.weighed();
    sandbox.await_words("names: begins");
    sandbox.assert_answers();
    canary.answers();
    let (_, words) = sandbox.end(&canary);
    words.assert_all_well(attacks);
    scales.assert_within(Bounds::IDLE);
}

#[test]
fn files_are_opened_as_far_as_a_limit_and_the_vmm_keeps_its_own() {
    /// Far fewer than a host lets a process have: there is no need to open them all.
    const LIMIT: u64 = 4096;
    only_husk("runc has no guest kernel to take the place of");
    let host = Runtime::from_environment();
    let canary = Canary::on(&host);
    let limit = Rlimit {
        current: Some(LIMIT),
        maximum: Some(LIMIT),
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut sandbox = Sandbox::start("descriptors", 600);
    let scales = sandbox.weighed();
    sandbox.await_words("descriptors: begins");
    sandbox.assert_answers();
    canary.answers();
    let (_, words) = sandbox.end(&canary);
    words.assert_all_well("descriptors");
    scales.assert_within(FULL);
}

#[test]
fn floods_of_logs_and_marks_fill_nothing() {
    /// A supervisor logs no more than a MiB of a console, each line with a time and a few words.
    const LOG_MAX_BYTES: usize = 16 << 20;
    only_husk("runc has no guest kernel to take the place of");
    let host = Runtime::from_environment();
    let canary = Canary::on(&host);
    let mut sandbox = Sandbox::start("marks serial console", 600);
    let scales = sandbox.weighed();
    sandbox.await_words("begins");
    sandbox.assert_answers();
    canary.answers();
    let (output, words) = sandbox.end(&canary);
    // The log is cut; the last lines of the console come with the error.
    assert!(output.errors().contains("all done, 0 wrong"), "{output:?}");
    assert!(
        words.0.len() < LOG_MAX_BYTES,
        "{} bytes were logged",
        words.0.len()
    );
    scales.assert_within(Bounds::IDLE);
}

#[test]
fn an_agents_dial_and_bad_answers_end_the_sandbox_alone() {
    only_husk("runc has no guest kernel to take the place of");
    let host = Runtime::from_environment();
    let canary = Canary::on(&host);
    for (attacks, patience_s) in [("agent reset", 600), ("dials-for-ever", 5)] {
        let mut sandbox = Sandbox::start(attacks, patience_s);
        let scales = sandbox.weighed();
        sandbox.await_words("begins");
        canary.answers();
        let (output, words) = sandbox.end(&canary);
        assert!(!words.0.contains("WRONG"), "{output:?}");
        scales.assert_within(FLOODED);
    }
}

#[test]
fn a_guest_that_ends_or_never_answers_leaves_nothing() {
    only_husk("runc has no guest kernel to take the place of");
    let host = Runtime::from_environment();
    let canary = Canary::on(&host);
    for (attack, told) in [
        ("triple-fault", "the guest reset itself"),
        ("reset", "the guest reset itself"),
        ("power-off", "the guest powered off"),
    ] {
        let (output, _) = Sandbox::start(attack, 600).end(&canary);
        assert!(output.errors().contains(told), "{output:?}");
    }
    let (output, _) = Sandbox::start("halt", 3).end(&canary);
    assert!(
        output.errors().contains("the agent did not answer"),
        "{output:?}"
    );
    for attack in ["halt", "spin"] {
        let mut sandbox = Sandbox::start(attack, 600);
        sandbox.await_words("begins");
        sandbox.assert_answers();
        canary.answers();
        sandbox.delete(&canary);
    }
}
