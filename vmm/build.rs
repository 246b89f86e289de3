//! Compiles `seccomp/x86_64.json` into one BPF program per thread, so that starting a VMM parses nothing.
//!
//! The file lists for each thread the calls it may make. The thread `devices` gets those of all workers besides its own, since it makes them.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::{env, fs};

use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde_json::{Value, json};

const RULES: &str = "seccomp/x86_64.json";
const MAKER: &str = "devices";
const WORKERS: &[&str] = &["vsock", "fs", "console", "rng", "mem"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={RULES}");
    let threads: BTreeMap<String, Vec<Value>> = serde_json::from_str(&fs::read_to_string(RULES)?)?;
    let mut filters = serde_json::Map::new();
    for (thread, rules) in &threads {
        let mut rules = rules.clone();
        if thread == MAKER {
            for rule in WORKERS
                .iter()
                .filter_map(|name| threads.get(*name))
                .flatten()
            {
                if !rules
                    .iter()
                    .any(|known| known["syscall"] == rule["syscall"])
                {
                    rules.push(rule.clone());
                }
            }
        }
        filters.insert(thread.clone(), filter(&rules));
    }
    let text = serde_json::to_vec(&filters)?;
    let out = env::var("OUT_DIR")?;
    for (thread, program) in compile_from_json(text.as_slice(), TargetArch::x86_64)? {
        fs::write(
            Path::new(&out).join(thread).with_extension("bpf"),
            bytes(&program),
        )?;
    }
    Ok(())
}

fn filter(rules: &[Value]) -> Value {
    json!({ "mismatch_action": "kill_process", "match_action": "allow", "filter": rules })
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
