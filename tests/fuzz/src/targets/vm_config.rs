//! The VMM's configuration: JSON to a plan.
//!
//! Promised of every plan: vCPUs and memory within their bounds, the region for more memory beyond
//! RAM and in whole blocks, a command line that the kernel takes whole, as one line.

use husk_vmm::config::{CONFIG_MAX_BYTES, Plan};
use husk_vmm::layout::{self, CMDLINE_MAX_BYTES};
use vmm_api::VmConfig;
use vmm_virtio::mem::BLOCK_BYTES;

/// A large host.
const HOST_MIB: u64 = 1 << 20;

pub(crate) fn run(bytes: &[u8]) {
    assert!(u64::try_from(bytes.len()).unwrap() <= CONFIG_MAX_BYTES);
    let Ok(config) = serde_json::from_slice::<VmConfig>(bytes) else {
        return;
    };
    let written = serde_json::to_vec(&config);
    // A path need not be UTF-8, but one that came out of JSON is.
    let again: VmConfig = serde_json::from_slice(&written.unwrap()).unwrap();
    assert_eq!(again, config);
    let words = config.cmdline.len();
    if let Ok(plan) = Plan::new(config, HOST_MIB) {
        check(&plan, words);
    }
}

fn check(plan: &Plan, words: usize) {
    assert!((1..=plan.cpus.max).contains(&plan.cpus.boot));
    assert!(plan.memory_bytes <= HOST_MIB << 20);
    let ram = layout::ram(plan.memory_bytes);
    assert_eq!(
        ram.iter().map(|(_, bytes)| bytes).sum::<u64>(),
        plan.memory_bytes
    );
    let (start, bytes) = *ram.last().unwrap();
    let region = &plan.region;
    assert!(region.start >= start + bytes && region.end >= region.start);
    assert!((region.end - region.start).is_multiple_of(BLOCK_BYTES));
    assert!(region.is_empty() || region.start >= layout::MMIO_GAP_END);
    assert!(plan.cmdline.len() < CMDLINE_MAX_BYTES);
    assert!(
        plan.cmdline
            .bytes()
            .all(|byte| byte == b' ' || byte.is_ascii_graphic())
    );
    assert!(plan.cmdline.split(' ').count() >= words);
    assert!(plan.vsock.cid > 2 && plan.vsock.cid != u32::MAX);
}
