//! The network namespace of a sandbox, where the bundle names one.
//!
//! The supervisor enters it before it starts the VMM, so that both are where engines look for a container's network. Guests have
//! loopback only: a namespace that has more is refused. Ways to fail: it is none, or it has an interface.

use std::fs::{self, File};
use std::path::Path;

use nix::sched::CloneFlags;

use crate::spec::SpecError;

/// The interface that every namespace has.
const LOOPBACK: &str = "lo";

/// Moves this thread, and what it will start, into the namespace.
pub(crate) fn enter(path: &Path) -> Result<(), SpecError> {
    let failed = |source| SpecError::Read {
        path: path.to_owned(),
        source,
    };
    let namespace = File::open(path).map_err(failed)?;
    nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|e| failed(e.into()))?;
    let devices = fs::read_to_string("/proc/thread-self/net/dev").map_err(failed)?;
    match interfaces(&devices).find(|name| *name != LOOPBACK) {
        None => Ok(()),
        Some(name) => Err(SpecError::Refused {
            what: format!(
                "the interface {name} of the network namespace {}",
                path.display()
            ),
            why: "a guest has no network but loopback; use a namespace without interfaces",
        }),
    }
}

/// The names in a `/proc/net/dev` (pure).
fn interfaces(devices: &str) -> impl Iterator<Item = &str> {
    let lines = devices.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(name, _)| name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_found_below_the_header() {
        let devices = "Inter-|   Receive\n face |bytes\n    lo: 0 0\n  eth0: 1 2\n";
        assert_eq!(interfaces(devices).collect::<Vec<_>>(), ["lo", "eth0"]);
    }

    #[test]
    fn missing_namespace_is_named() {
        let error = enter(Path::new("/nowhere/net")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/net");
    }
}
