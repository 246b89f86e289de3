//! What the program lets through, by a machine of the tests' own that runs it.

use oci_spec::runtime::LinuxDeviceCgroup;
use serde_json::{Value, json};

use super::program::{
    AND, EXIT, Instruction, JUMP_IF_EQUAL, JUMP_UNLESS_EQUAL, LOAD_WORD, MOVE, MOVE_REGISTER,
    SHIFT_RIGHT,
};
use super::{DeviceRulesError, instructions};

const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;

fn rules(given: &Value) -> Vec<LinuxDeviceCgroup> {
    serde_json::from_value(given.clone()).unwrap()
}

/// What the kernel's machine does with the program, for this access to this device.
fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
    let context = [access << 16 | kind, major, minor];
    let mut registers = [0_u32; 11];
    let mut next = 0;
    loop {
        let instruction = program[next];
        let to = usize::from(instruction.registers & 15);
        let from = usize::from(instruction.registers >> 4);
        let mut jumps = false;
        match instruction.opcode {
            LOAD_WORD => {
                // Register 1 still has the address of the context.
                assert_eq!(from, 1);
                registers[to] = context[usize::try_from(instruction.offset).unwrap() / 4];
            }
            MOVE => registers[to] = instruction.immediate,
            MOVE_REGISTER => registers[to] = registers[from],
            AND => registers[to] &= instruction.immediate,
            SHIFT_RIGHT => registers[to] >>= instruction.immediate,
            JUMP_IF_EQUAL => jumps = registers[to] == instruction.immediate,
            JUMP_UNLESS_EQUAL => jumps = registers[to] != instruction.immediate,
            EXIT => return registers[0] == 1,
            other => panic!("opcode {other:#x}"),
        }
        next += 1;
        if jumps {
            next += usize::try_from(instruction.offset).unwrap();
        }
    }
}

fn allowed(given: &Value, kind: u32, access: u32, major: u32, minor: u32) -> bool {
    let program = instructions(&rules(given)).unwrap();
    run(&program, kind, access, major, minor)
}

#[test]
fn without_rules_the_devices_of_every_container_are_allowed_and_no_others() {
    for none in [json!([]), json!([{"allow": false, "access": "rwm"}])] {
        for (major, minor) in [
            (1, 3),
            (1, 5),
            (1, 7),
            (1, 8),
            (1, 9),
            (5, 0),
            (5, 1),
            (5, 2),
            (10, 200),
            (136, 7),
        ] {
            assert!(
                allowed(&none, CHARACTER, READ | WRITE | MKNOD, major, minor),
                "{major}:{minor}"
            );
        }
        for (kind, access, major, minor) in [
            (CHARACTER, READ, 1, 1),
            (CHARACTER, READ, 1, 4),
            (CHARACTER, WRITE, 10, 229),
            (BLOCK, READ, 1, 3),
            (BLOCK, READ, 8, 0),
        ] {
            assert!(
                !allowed(&none, kind, access, major, minor),
                "{major}:{minor}"
            );
        }
        assert!(allowed(&none, BLOCK, MKNOD, 8, 0));
        assert!(!allowed(&none, BLOCK, MKNOD | READ, 8, 0));
    }
}

#[test]
fn accesses_of_several_rules_add_up() {
    let given = json!([
        {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "r"},
        {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "w"},
        {"allow": true, "type": "b", "major": 9, "access": "r"},
    ]);
    assert!(allowed(&given, BLOCK, READ | WRITE, 8, 0));
    assert!(!allowed(&given, BLOCK, READ, 8, 1));
    assert!(allowed(&given, BLOCK, READ, 9, 77));
    assert!(!allowed(&given, BLOCK, READ | WRITE, 9, 77));
}

#[test]
fn the_last_rule_that_names_an_access_decides() {
    let given = json!([
        {"allow": true, "type": "a", "access": "rwm"},
        {"allow": false, "type": "b", "major": 8, "minor": -1, "access": "w"},
        {"allow": true, "type": "b", "major": 8, "minor": 3, "access": "w"},
    ]);
    assert!(allowed(&given, BLOCK, READ, 8, 0));
    assert!(!allowed(&given, BLOCK, WRITE, 8, 0));
    assert!(!allowed(&given, BLOCK, READ | WRITE, 8, 0));
    assert!(allowed(&given, BLOCK, READ | WRITE, 8, 3));
    assert!(allowed(&given, CHARACTER, READ | WRITE | MKNOD, 8, 0));
}

#[test]
fn a_rule_for_all_devices_replaces_those_before_it() {
    let given = json!([
        {"allow": true, "type": "b", "major": 8, "access": "rwm"},
        {"allow": false},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
    ]);
    assert!(!allowed(&given, BLOCK, READ, 8, 0));
    assert!(allowed(&given, CHARACTER, READ | WRITE, 10, 229));
}

#[test]
fn a_rule_without_access_or_for_a_number_that_no_device_has_says_nothing() {
    let given = json!([
        {"allow": true, "type": "b", "major": 8},
        {"allow": true, "type": "b", "major": 4_294_967_304_i64, "access": "rwm"},
    ]);
    assert!(!allowed(&given, BLOCK, READ, 8, 0));
}

#[test]
fn what_names_no_device_or_access_is_refused() {
    let refused = |given| instructions(&rules(&given)).unwrap_err();
    let kind = refused(json!([{"allow": true, "type": "p", "access": "r"}]));
    assert!(matches!(kind, DeviceRulesError::Kind(_)));
    let access = refused(json!([{"allow": true, "type": "c", "access": "rx"}]));
    assert!(matches!(access, DeviceRulesError::Access('x')));
}
