//! `husk features`: what of the OCI runtime specification is honoured, as its `features.md` wants it said. What is not here is refused.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::Failure;
use crate::spec::VERSION;

/// The oldest version of a configuration that is read.
const SPEC_VERSION_MIN: &str = "1.0.0";

const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// Beside those of a file system, which are its own.
const MOUNT_OPTIONS: [&str; 61] = [
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "nodirsync",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

const NAMESPACES: [&str; 8] = [
    "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
];

const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const SECCOMP_ACTIONS: [&str; 8] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

const SECCOMP_OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// Those whose programs a guest can run.
const SECCOMP_ARCHITECTURES: [&str; 3] = ["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"];

/// Annotations that make a VM large: who lets strangers write a configuration may want to refuse them.
const UNSAFE_ANNOTATIONS: [&str; 2] = ["io.husk.", "io.katacontainers.config.hypervisor."];

/// Print what of the OCI runtime specification is honoured, as JSON
#[derive(Debug, clap::Args)]
pub(super) struct FeaturesArgs {}

/// Prints it.
pub(super) fn run(_: &FeaturesArgs) -> Result<ExitCode, Failure> {
    println!("{}", serde_json::to_string_pretty(&features())?);
    Ok(ExitCode::SUCCESS)
}

fn features() -> Value {
    let disabled = json!({"enabled": false});
    json!({
        "ociVersionMin": SPEC_VERSION_MIN,
        "ociVersionMax": VERSION,
        "hooks": HOOKS,
        "mountOptions": &MOUNT_OPTIONS[..],
        "linux": {
            "namespaces": NAMESPACES,
            "capabilities": &CAPABILITIES[..],
            "cgroup": {
                "v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false,
            },
            "seccomp": {
                "enabled": true,
                "actions": SECCOMP_ACTIONS,
                "operators": SECCOMP_OPERATORS,
                "archs": SECCOMP_ARCHITECTURES,
            },
            "apparmor": disabled,
            "selinux": disabled,
            "intelRdt": disabled,
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": disabled,
        },
        "annotations": {
            "io.husk.version": env!("CARGO_PKG_VERSION"),
        },
        "potentiallyUnsafeConfigAnnotations": UNSAFE_ANNOTATIONS,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec;

    /// Whether the host takes a configuration with this instead of what the usual one has.
    fn is_taken(pointer: &str, key: &str, value: Value) -> bool {
        let mut config: Value = serde_json::from_str(crate::cli::spec::CONFIG).unwrap();
        config.pointer_mut(pointer).unwrap()[key] = value;
        spec::split(
            config.to_string().as_bytes(),
            "web",
            std::path::Path::new("/b"),
            &|_| None,
        )
        .is_ok()
    }

    #[test]
    fn document_is_what_the_specification_defines() {
        let features: oci_spec::runtime::Features = serde_json::from_value(features()).unwrap();
        assert_eq!(features.oci_version_max(), VERSION);
        let linux = features.linux().as_ref().unwrap();
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), NAMESPACES.len());
    }

    #[test]
    fn exactly_the_hooks_that_are_taken_are_named() {
        for kind in [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        ] {
            let hooks = json!({kind: [{"path": "/bin/true"}]});
            assert_eq!(
                is_taken("", "hooks", hooks),
                HOOKS.contains(&kind),
                "{kind}"
            );
        }
    }

    #[test]
    fn every_namespace_is_taken() {
        let namespaces: Vec<Value> = NAMESPACES.map(|name| json!({"type": name})).to_vec();
        assert!(is_taken("/linux", "namespaces", namespaces.into()));
    }

    #[test]
    fn exactly_the_seccomp_actions_that_are_taken_are_named() {
        for action in SECCOMP_ACTIONS.iter().chain(&["SCMP_ACT_NOTIFY"]) {
            let seccomp = json!({"defaultAction": action});
            let named = SECCOMP_ACTIONS.contains(action);
            assert_eq!(is_taken("/linux", "seccomp", seccomp), named, "{action}");
        }
    }

    #[test]
    fn lists_are_sorted_and_without_repetition() {
        for list in [&MOUNT_OPTIONS[..], &NAMESPACES, &SECCOMP_ACTIONS] {
            assert!(list.is_sorted_by(|a, b| a < b));
        }
    }
}
