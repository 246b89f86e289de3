//! Programs are run by a small interpreter, with the kernel's data for one call.

use super::*;

const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | 38;

/// What a program says to a call; none where it comes to its end without a word.
fn answer(program: &[sock_filter], arch: u32, nr: u32) -> Option<u32> {
    answer_with(program, arch, nr, 0)
}

/// The same with a first argument.
fn answer_with(program: &[sock_filter], arch: u32, nr: u32, argument: u32) -> Option<u32> {
    let data = [nr, arch, 0, 0, argument];
    let (mut at, mut word) = (0, 0);
    while let Some(step) = program.get(at) {
        let code = u32::from(step.code);
        at += 1;
        let condition = match (code & 7, code & 0xf0) {
            (libc::BPF_RET, _) => return Some(step.k),
            (libc::BPF_LD, _) => {
                let offset = usize::try_from(step.k / 4).unwrap();
                word = data.get(offset).copied().unwrap_or(0);
                continue;
            }
            (libc::BPF_ALU, libc::BPF_AND) => {
                word &= step.k;
                continue;
            }
            (libc::BPF_JMP, libc::BPF_JA) => {
                at += usize::try_from(step.k).unwrap();
                continue;
            }
            (libc::BPF_JMP, libc::BPF_JEQ) => word == step.k,
            (libc::BPF_JMP, libc::BPF_JGT) => word > step.k,
            (libc::BPF_JMP, libc::BPF_JGE) => word >= step.k,
            (libc::BPF_JMP, libc::BPF_JSET) => word & step.k != 0,
            other => panic!("operation {other:?}"),
        };
        at += usize::from(if condition { step.jt } else { step.jf });
    }
    None
}

#[test]
fn calls_above_the_newest_of_their_abi_are_missing() {
    let program = too_new(Newest {
        x86_64: Some(450),
        x32: Some(X32_BIT | 547),
        i386: Some(440),
    });
    for (arch, last) in [
        (AUDIT_ARCH_X86_64, 450),
        (AUDIT_ARCH_X86_64, X32_BIT | 547),
        (AUDIT_ARCH_I386, 440),
    ] {
        assert_eq!(answer(&program, arch, last), None, "{arch:#x} {last:#x}");
        assert_eq!(answer(&program, arch, last & X32_BIT), None);
        assert_eq!(answer(&program, arch, last + 1), Some(ENOSYS));
    }
    assert_eq!(answer(&program, 0xc000_00b7, 10_000), None);
}

#[test]
fn an_abi_without_rules_is_left_to_the_filter() {
    let program = too_new(Newest {
        x86_64: Some(450),
        ..Newest::default()
    });
    assert_eq!(answer(&program, AUDIT_ARCH_I386, 10_000), None);
    assert_eq!(answer(&program, AUDIT_ARCH_X86_64, X32_BIT | 10_000), None);
    assert_eq!(answer(&program, AUDIT_ARCH_X86_64, 451), Some(ENOSYS));
}

#[test]
fn the_newest_is_the_highest_number_that_the_library_knows() {
    let seccomp: LinuxSeccomp = serde_json::from_value(serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [
            {"names": ["close_range", "read", "call_of_tomorrow"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["socketcall"], "action": "SCMP_ACT_ALLOW"},
        ],
    }))
    .unwrap();
    let newest = newest(&seccomp);
    assert_eq!(newest.x86_64, Some(436));
    assert_eq!(newest.i386, Some(436));
    assert_eq!(newest.x32, None);
}

#[test]
fn a_masked_comparison_is_of_the_masked_argument_with_the_second_value() {
    let seccomp: LinuxSeccomp = serde_json::from_value(serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{
            "names": ["clone"],
            "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
        }],
    }))
    .unwrap();
    let rules = program(&rules(&seccomp).unwrap()).unwrap();
    let clone = |flags| answer_with(&rules, AUDIT_ARCH_X86_64, 56, flags);
    assert_eq!(clone(17), Some(libc::SECCOMP_RET_ERRNO | 1));
    assert_eq!(clone(0x1000_0000), Some(libc::SECCOMP_RET_ALLOW));
}
