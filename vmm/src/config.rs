//! `VmConfig` → [`Plan`]: every check and every default (pure).

use std::ops::Range;
use std::path::PathBuf;

use vmm_api::{Cpus, Jail, MEMORY_BLOCK_MIB, Share, VmConfig, Vsock};
use vmm_virtio::mem::BLOCK_BYTES;

use crate::boot::cmdline::{self, CmdlineError};
use crate::layout::{self, Slot};

/// A configuration is a page of JSON; a longer document is not one.
pub const CONFIG_MAX_BYTES: u64 = 1 << 20;

/// A thread and an APIC id per vCPU; beyond this nobody has tried.
const VCPUS_MAX: u8 = 64;
/// Below this no kernel of ours reaches its first process.
const MEMORY_MIN_MIB: u32 = 32;
/// The supervisor listens on a handful.
const HOST_PORTS_MAX: usize = 64;
/// virtio 1.2, section 5.11.4: the field's length.
const TAG_MAX_BYTES: usize = 36;
/// virtio 1.2, section 5.10.4: 0, 1 and 2 have other meanings.
const CID_MIN: u32 = 3;

/// What is wrong with a configuration. The field's name comes first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// vCPU counts.
    #[error("cpus: 1 <= boot ({boot}) <= max ({max}) <= {VCPUS_MAX} does not hold")]
    Cpus {
        /// Online at boot.
        boot: u8,
        /// Created.
        max: u8,
    },
    /// Too little memory.
    #[error("memory_mib {mib}: less than {MEMORY_MIN_MIB}")]
    MemoryTooSmall {
        /// What was asked for.
        mib: u32,
    },
    /// More memory than there is.
    #[error("memory_mib {mib}: the host has {host_mib}")]
    MemoryTooLarge {
        /// What was asked for.
        mib: u32,
        /// What there is.
        host_mib: u64,
    },
    /// More memory to come than there is.
    #[error("memory_max_mib {mib}: the host has {host_mib}")]
    MemoryMaxTooLarge {
        /// What was asked for.
        mib: u32,
        /// What there is.
        host_mib: u64,
    },
    /// A reserved context id.
    #[error("vsock.cid {cid}: reserved")]
    Cid {
        /// The id.
        cid: u32,
    },
    /// Too many ports.
    #[error("vsock.host_ports: more than {HOST_PORTS_MAX}")]
    HostPorts,
    /// No tag, or one too long.
    #[error("share.tag {tag:?}: not 1 to {TAG_MAX_BYTES} bytes")]
    Tag {
        /// The tag.
        tag: String,
    },
    /// The file server takes only text for a path.
    #[error("share.root {}: not utf-8", root.display())]
    Root {
        /// The path.
        root: PathBuf,
    },
    /// The command line does not come out right.
    #[error("cmdline")]
    Cmdline(#[source] CmdlineError),
}

/// The shared directory, where the host has it and where the file server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// On the host.
    pub outside: PathBuf,
    /// From within the jail.
    pub root: String,
    /// The name by which the guest mounts it.
    pub tag: String,
}

/// A machine that can be built as far as the configuration tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// vCPUs.
    pub cpus: Cpus,
    /// Guest memory at boot, a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// Guest addresses of the memory that it can gain, whole blocks; empty when there are none.
    pub region: Range<u64>,
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initrd's file.
    pub initrd: PathBuf,
    /// The whole command line.
    pub cmdline: String,
    /// The socket device.
    pub vsock: Vsock,
    /// The shared directory.
    pub share: Option<Shared>,
    /// Confinement.
    pub jail: Jail,
}

impl Plan {
    /// Checks a configuration for a host with this much memory.
    pub fn new(config: VmConfig, host_mib: u64) -> Result<Self, ConfigError> {
        let Cpus { boot, max } = config.cpus;
        if boot == 0 || boot > max || max > VCPUS_MAX {
            return Err(ConfigError::Cpus { boot, max });
        }
        check_memory(&config, host_mib)?;
        let memory_bytes = u64::from(config.memory_mib) << 20;
        let more_mib = config.memory_max_mib.saturating_sub(config.memory_mib);
        let more = u64::from(more_mib / MEMORY_BLOCK_MIB) * BLOCK_BYTES;
        let region = layout::region(memory_bytes, more);
        let cid = config.vsock.cid;
        if cid < CID_MIN || cid == u32::MAX {
            return Err(ConfigError::Cid { cid });
        }
        if config.vsock.host_ports.len() > HOST_PORTS_MAX {
            return Err(ConfigError::HostPorts);
        }
        let share = config
            .share
            .map(|share| shared(share, config.jail))
            .transpose()?;
        let online = (boot < max).then_some(boot);
        let slots = slots(share.is_some(), !region.is_empty());
        let cmdline =
            cmdline::compose(&slots, online, &config.cmdline).map_err(ConfigError::Cmdline)?;
        Ok(Self {
            cpus: config.cpus,
            memory_bytes,
            region,
            kernel: config.kernel,
            initrd: config.initrd,
            cmdline,
            vsock: config.vsock,
            share,
            jail: config.jail,
        })
    }
}

fn check_memory(config: &VmConfig, host_mib: u64) -> Result<(), ConfigError> {
    let mib = config.memory_mib;
    if mib < MEMORY_MIN_MIB {
        return Err(ConfigError::MemoryTooSmall { mib });
    }
    if u64::from(mib) > host_mib {
        return Err(ConfigError::MemoryTooLarge { mib, host_mib });
    }
    let mib = config.memory_max_mib;
    if u64::from(mib) > host_mib {
        return Err(ConfigError::MemoryMaxTooLarge { mib, host_mib });
    }
    Ok(())
}

fn shared(share: Share, jail: Jail) -> Result<Shared, ConfigError> {
    let Share { root: outside, tag } = share;
    if tag.is_empty() || tag.len() > TAG_MAX_BYTES {
        return Err(ConfigError::Tag { tag });
    }
    let root = match outside.to_str() {
        _ if jail.enabled => "/".to_owned(),
        Some(path) => path.to_owned(),
        None => return Err(ConfigError::Root { root: outside }),
    };
    Ok(Shared { outside, root, tag })
}

/// The slots that have a device.
fn slots(share: bool, region: bool) -> Vec<Slot> {
    let has_device = |slot: &Slot| match slot {
        Slot::Fs => share,
        Slot::Mem => region,
        Slot::Vsock | Slot::Console | Slot::Rng => true,
    };
    Slot::ALL.into_iter().filter(has_device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VmConfig {
        VmConfig {
            id: "test".into(),
            cpus: Cpus { boot: 1, max: 2 },
            memory_mib: 128,
            memory_max_mib: 0,
            kernel: "k".into(),
            initrd: "i".into(),
            cmdline: vec!["--".into(), "x".into()],
            vsock: Vsock {
                cid: 3,
                host_ports: vec![1024],
            },
            share: Some(Share {
                root: "/s".into(),
                tag: "husk".into(),
            }),
            jail: Jail::default(),
        }
    }

    fn refusal(change: impl FnOnce(&mut VmConfig)) -> String {
        let mut config = config();
        change(&mut config);
        Plan::new(config, 1000).unwrap_err().to_string()
    }

    #[test]
    fn good_configuration_becomes_a_plan() {
        let plan = Plan::new(config(), 1000).unwrap();
        assert_eq!(plan.memory_bytes, 128 << 20);
        assert!(plan.cmdline.contains(" maxcpus=1 "));
        assert!(plan.cmdline.contains("virtio_mmio.device=4K@0xd0001000:6"));
        assert!(plan.cmdline.ends_with(" -- x"));
    }

    #[test]
    fn machine_without_share_has_no_file_system_slot() {
        let plan = Plan::new(
            VmConfig {
                share: None,
                ..config()
            },
            1000,
        )
        .unwrap();
        assert!(!plan.cmdline.contains("0xd0001000"));
        assert!(plan.cmdline.contains("0xd0002000"));
    }

    #[test]
    fn machine_that_can_grow_has_a_region_of_whole_blocks() {
        let grown = |memory_max_mib| {
            let config = VmConfig {
                memory_max_mib,
                ..config()
            };
            let plan = Plan::new(config, 1000).unwrap();
            (plan.region, plan.cmdline.contains("0xd0004000"))
        };
        assert_eq!(grown(133), (4 << 30..(4 << 30) + (4 << 20), true));
        for none in [0, 1, 128, 129] {
            let (region, slot) = grown(none);
            assert!(region.is_empty() && !slot);
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_fields_name() {
        assert!(refusal(|c| c.cpus = Cpus { boot: 0, max: 2 }).starts_with("cpus: "));
        assert!(refusal(|c| c.cpus = Cpus { boot: 3, max: 2 }).starts_with("cpus: "));
        assert!(refusal(|c| c.cpus = Cpus { boot: 1, max: 65 }).starts_with("cpus: "));
        assert!(refusal(|c| c.memory_mib = 1).starts_with("memory_mib 1: "));
        assert_eq!(
            refusal(|c| c.memory_mib = 1001),
            "memory_mib 1001: the host has 1000"
        );
        assert_eq!(
            refusal(|c| c.memory_max_mib = 1001),
            "memory_max_mib 1001: the host has 1000"
        );
        assert!(refusal(|c| c.vsock.cid = 2).starts_with("vsock.cid 2"));
        assert!(refusal(|c| c.vsock.host_ports = vec![1; 65]).starts_with("vsock.host_ports"));
        assert!(refusal(|c| c.cmdline = vec!["a b".into()]).starts_with("cmdline"));
        let long = "x".repeat(37);
        assert!(
            refusal(|c| c.share = Some(Share {
                root: "/".into(),
                tag: long
            }))
            .starts_with("share.tag ")
        );
    }
}
