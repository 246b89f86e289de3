//! Rules as instructions of the kernel's BPF machine (RFC 9669).
//!
//! The program goes through the rules from the last to the first and keeps in a register what is still to be decided of the wanted access. A rule that
//! names the device takes away what it allows, and all is allowed when nothing is left; or it denies at once what it names.

/// One rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) allow: bool,
    pub(super) device: Device,
    pub(super) access: Access,
}

/// The devices it is about: with a number of none, all that have the other one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device {
    pub(super) kind: Kind,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
}

/// `BPF_DEVCG_DEV_BLOCK` and `BPF_DEVCG_DEV_CHAR`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Block = 1,
    Character = 2,
}

/// `BPF_DEVCG_ACC_MKNOD`, `_READ`, `_WRITE`, any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access(pub(super) u32);

impl Access {
    pub(super) const NONE: Self = Self(0);
    pub(super) const MKNOD: Self = Self(1);
    pub(super) const READ: Self = Self(2);
    pub(super) const WRITE: Self = Self(4);
    pub(super) const ALL: Self = Self(7);

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) opcode: u8,
    /// Source in the upper, destination in the lower four bits.
    pub(super) registers: u8,
    pub(super) offset: i16,
    pub(super) immediate: u32,
}

/// Opcodes; arithmetic and comparisons are those of 32 bits.
pub(super) const LOAD_WORD: u8 = 0x61;
pub(super) const MOVE: u8 = 0xb4;
pub(super) const MOVE_REGISTER: u8 = 0xbc;
pub(super) const AND: u8 = 0x54;
pub(super) const SHIFT_RIGHT: u8 = 0x74;
pub(super) const JUMP_IF_EQUAL: u8 = 0x16;
pub(super) const JUMP_UNLESS_EQUAL: u8 = 0x56;
pub(super) const EXIT: u8 = 0x95;

/// Registers: the result, the address of the context at first, and what is read from it.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const UNDECIDED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// The program of the rules; `otherwise` is its answer to what none of them decides.
pub(super) fn of(rules: &[Rule], otherwise: bool) -> Vec<Instruction> {
    let load = |register, offset| Instruction {
        opcode: LOAD_WORD,
        registers: CONTEXT << 4 | register,
        offset,
        immediate: 0,
    };
    let mut program = vec![
        load(KIND, 0),
        copied(UNDECIDED, KIND),
        with(AND, KIND, 0xffff),
        with(SHIFT_RIGHT, UNDECIDED, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    program.extend(rules.iter().rev().flat_map(block));
    program.extend(answer(otherwise));
    program
}

/// The instructions of one rule. Those of another kind of device, another number or another access go on behind them.
fn block(rule: &Rule) -> Vec<Instruction> {
    let Device { kind, major, minor } = rule.device;
    let mut block = vec![with(JUMP_UNLESS_EQUAL, KIND, kind as u32)];
    block.extend(major.map(|number| with(JUMP_UNLESS_EQUAL, MAJOR, number)));
    block.extend(minor.map(|number| with(JUMP_UNLESS_EQUAL, MINOR, number)));
    if rule.allow {
        block.push(with(AND, UNDECIDED, !rule.access.0));
        block.push(with(JUMP_UNLESS_EQUAL, UNDECIDED, 0));
    } else {
        block.push(copied(RESULT, UNDECIDED));
        block.push(with(AND, RESULT, rule.access.0));
        block.push(with(JUMP_IF_EQUAL, RESULT, 0));
    }
    block.extend(answer(rule.allow));
    for (behind, instruction) in (0..).zip(block.iter_mut().rev()) {
        if [JUMP_IF_EQUAL, JUMP_UNLESS_EQUAL].contains(&instruction.opcode) {
            instruction.offset = behind;
        }
    }
    block
}

fn answer(allowed: bool) -> [Instruction; 2] {
    [with(MOVE, RESULT, u32::from(allowed)), with(EXIT, 0, 0)]
}

fn copied(to: u8, from: u8) -> Instruction {
    with(MOVE_REGISTER, from << 4 | to, 0)
}

fn with(opcode: u8, registers: u8, immediate: u32) -> Instruction {
    Instruction {
        opcode,
        registers,
        offset: 0,
        immediate,
    }
}
