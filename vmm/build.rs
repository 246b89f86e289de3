//! Compiles `seccomp/x86_64.json` into one BPF program per thread, so that starting a VMM parses
//! nothing.
//!
//! The file lists for each thread the calls it may make, and with which arguments. The thread
//! `devices` gets those of all workers besides its own, since it makes them. A call with an
//! `answer` is not made: it fails with that error, where the C library then does without. Any other
//! is a `SIGSYS`.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::{env, fs};

use seccompiler::{BpfProgram, TargetArch, compile_from_json, sock_filter};
use serde_json::{Value, json};

const RULES: &str = "seccomp/x86_64.json";
const MAKER: &str = "devices";
const WORKERS: &[&str] = &["vsock", "fs", "console", "rng", "mem"];
/// Calls that a filter can answer instead, and their numbers.
const ANSWERED: &[(&str, u32)] = &[("clone3", 435)];
const ENOSYS: u32 = 38;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={RULES}");
    let threads: BTreeMap<String, Vec<Value>> = serde_json::from_str(&fs::read_to_string(RULES)?)?;
    let mut filters = serde_json::Map::new();
    let mut answers = BTreeMap::new();
    for (thread, rules) in &threads {
        let mut rules = rules.clone();
        if thread == MAKER {
            rules.extend(
                WORKERS
                    .iter()
                    .filter_map(|name| threads.get(*name))
                    .flatten()
                    .cloned(),
            );
        }
        let answered = rules.extract_if(.., |rule| rule.get("answer").is_some());
        let answered: Result<Vec<BpfProgram>, _> = answered.map(|rule| answer(&rule)).collect();
        answers.insert(thread.clone(), answered?);
        filters.insert(thread.clone(), filter(&united(&rules)));
    }
    let text = serde_json::to_vec(&filters)?;
    let out = env::var("OUT_DIR")?;
    for (thread, program) in compile_from_json(text.as_slice(), TargetArch::x86_64)? {
        let mut whole: BpfProgram = answers.remove(&thread).unwrap_or_default().concat();
        whole.extend(program);
        fs::write(
            Path::new(&out).join(thread).with_extension("bpf"),
            bytes(&whole),
        )?;
    }
    Ok(())
}

/// Each rule once. A call that is allowed with any arguments by one rule is so by all.
fn united(rules: &[Value]) -> Vec<Value> {
    let same = |a: &Value, b: &Value| a["syscall"] == b["syscall"] && a["args"] == b["args"];
    let mut united: Vec<Value> = Vec::new();
    for rule in rules {
        let free = |other: &&Value| other["syscall"] == rule["syscall"] && other["args"].is_null();
        let wider = !rule["args"].is_null() && rules.iter().any(|other| free(&other));
        if !wider && !united.iter().any(|known| same(known, rule)) {
            united.push(rule.clone());
        }
    }
    united
}

fn filter(rules: &[Value]) -> Value {
    json!({ "mismatch_action": "trap", "match_action": "allow", "filter": rules })
}

/// The steps that answer one call, to stand before a program: load its number, and return the error
/// if it is that.
fn answer(rule: &Value) -> Result<BpfProgram, Box<dyn Error>> {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ERRNO: u32 = 0x0005_0000;
    let known = ANSWERED.iter().find(|(name, _)| rule["syscall"] == *name);
    let (Some((_, number)), Some("ENOSYS")) = (known, rule["answer"].as_str()) else {
        return Err(format!("no answer is known for {rule}").into());
    };
    let step = |code, jf, k| sock_filter { code, jt: 0, jf, k };
    Ok(vec![
        step(LOAD_WORD, 0, 0),
        step(JUMP_IF_EQUAL, 1, *number),
        step(RETURN, 0, ERRNO | ENOSYS),
    ])
}

/// `struct sock_filter` as the kernel has it in memory.
fn bytes(program: &BpfProgram) -> Vec<u8> {
    program
        .iter()
        .flat_map(|step| {
            let [a, b] = step.code.to_le_bytes();
            let [k0, k1, k2, k3] = step.k.to_le_bytes();
            [a, b, step.jt, step.jf, k0, k1, k2, k3]
        })
        .collect()
}
