//! Is this host's KVM fit? The VMM's probe finds out ([`probe`]); what that means is judged here ([`judge`], pure).

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vmm_api::Probe;

const KVM_DEVICE: &str = "/dev/kvm";

/// What a loop in the guest's kernel must reach. Hardware reaches thousands of millions, a busy virtual KVM host two hundred, a KVM that
/// emulates guest kernels less than ten.
const FIT_PER_SECOND: u64 = 50_000_000;

/// Why there is no finding.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// The VMM's executable cannot be started.
    #[error("cannot run {}", vmm.display())]
    Run {
        /// The executable.
        vmm: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It printed something else.
    #[error("{} --probe does not answer as a husk-vmm of this version does", vmm.display())]
    Answer {
        /// The executable.
        vmm: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// There is no KVM to use.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {KVM_DEVICE} (husk check says what to do)")]
pub(crate) struct AccessError(#[source] io::Error);

/// Ok when this user may open the device. Whether it is fit takes a [`probe`].
pub(crate) fn access() -> Result<(), AccessError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(KVM_DEVICE)
        .map(drop)
        .map_err(AccessError)
}

/// Lets the VMM look at this host's KVM; takes less than a second.
pub(crate) fn probe(vmm: &Path) -> Result<Probe, ProbeError> {
    let output = Command::new(vmm)
        .arg("--probe")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ProbeError::Run {
            vmm: vmm.to_owned(),
            source,
        })?;
    serde_json::from_slice(&output.stdout).map_err(|source| ProbeError::Answer {
        vmm: vmm.to_owned(),
        source,
    })
}

/// Ok: fit, and how fast. Err: not fit, why, and what to do.
pub(crate) fn judge(probe: &Probe) -> Result<String, String> {
    let why = probe.error.as_deref().unwrap_or("no reason was given");
    if !probe.present {
        return Err("there is no /dev/kvm: load kvm_intel or kvm_amd, or turn virtualisation on in the firmware or the hypervisor".into());
    }
    if !probe.permitted {
        return Err(format!("no permission on /dev/kvm ({why}): run as root"));
    }
    if !probe.complete {
        return Err(format!("present but not what husk needs: {why}"));
    }
    let Some(speed) = probe.instructions_per_second else {
        return Err(format!("present but no guest runs: {why}"));
    };
    let millions = format!("{}.{}", speed / 1_000_000, speed / 100_000 % 10);
    if speed < FIT_PER_SECOND {
        return Err(format!(
            "present but emulated: {millions} M guest instructions per second ({} M needed), use hack/kvm-host",
            FIT_PER_SECOND / 1_000_000
        ));
    }
    Ok(format!("{millions} M guest instructions per second"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(speed: Option<u64>) -> Probe {
        Probe {
            present: true,
            permitted: true,
            complete: true,
            instructions_per_second: speed,
            error: None,
        }
    }

    #[test]
    fn hardware_is_fit() {
        let answer = judge(&at(Some(3_210_012_345))).unwrap();
        assert_eq!(answer, "3210.0 M guest instructions per second");
    }

    #[test]
    fn emulating_kvm_is_not_fit() {
        let answer = judge(&at(Some(2_000_000))).unwrap_err();
        assert!(
            answer.starts_with("present but emulated: 2.0 M"),
            "{answer}"
        );
    }

    #[test]
    fn earliest_obstacle_is_told() {
        assert!(
            judge(&Probe::default())
                .unwrap_err()
                .contains("no /dev/kvm")
        );
        let mut probe = at(None);
        probe.permitted = false;
        probe.error = Some("open /dev/kvm: permission denied".into());
        let answer = judge(&probe).unwrap_err();
        assert!(answer.contains("run as root"), "{answer}");
        probe.permitted = true;
        assert!(judge(&probe).unwrap_err().contains("no guest runs"));
    }
}
