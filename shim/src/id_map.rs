//! Mounts whose files have other owners when seen through them (`mount_setattr(2)`, "ID-mapped mounts").
//!
//! The host's kernel maps, before the guest sees the mount: a file system that it can map is mapped for a guest too, and the guest's
//! kernel, for which every volume is virtio-fs, need not know how. The map is that of a user namespace, which a process of its own makes
//! and leaves behind, since no process with threads can enter one:
//!
//! ```text
//!   supervisor ── starts ──► husk user-namespace: unshare ── a line ──► supervisor writes the maps, opens the namespace
//!                                                 ends  ◄── end of input ──┘
//! ```
//!
//! Ways to fail: the file system cannot be mapped, or the kernel refuses the maps.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::libc;
use nix::sched::CloneFlags;
use oci_spec::runtime::LinuxIdMapping;

use crate::mount_attributes::{self, Change};

/// The verb of the process that makes a user namespace.
pub(crate) const VERB: &str = "user-namespace";

/// Whose files are whose behind a mount. In the specification's terms `container_id` is the file's owner and `host_id` who it is seen as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMap {
    pub(crate) uids: Vec<LinuxIdMapping>,
    pub(crate) gids: Vec<LinuxIdMapping>,
    /// Through all mounts below it too.
    pub(crate) recursive: bool,
}

/// Maps the owners of files behind `tree`, a mount that is nowhere yet.
pub(crate) fn map_owners(tree: BorrowedFd<'_>, map: &IdMap) -> io::Result<()> {
    let namespace = user_namespace(map)?;
    match mount_attributes::set(tree, Change::Owners(namespace.as_fd()), map.recursive) {
        // What the kernel says of a file system that does not know how.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "its file system cannot be id-mapped",
        )),
        result => result,
    }
}

/// A new user namespace with the maps.
fn user_namespace(map: &IdMap) -> io::Result<OwnedFd> {
    let mut holder = Command::new("/proc/self/exe")
        .arg(VERB)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let pid = holder.id();
    let made = match &mut holder.stdout {
        Some(said) => said.read_exact(&mut [0; 1]),
        None => Ok(()),
    };
    let namespace = made.and_then(|()| {
        for (file, maps) in [("uid_map", &map.uids), ("gid_map", &map.gids)] {
            fs::write(format!("/proc/{pid}/{file}"), lines(maps))?;
        }
        File::open(format!("/proc/{pid}/ns/user"))
    });
    // Closes its input, which ends it.
    holder.wait()?;
    Ok(namespace?.into())
}

/// As the kernel reads them: first id inside, first id outside, how many.
fn lines(maps: &[LinuxIdMapping]) -> String {
    let line = |map: &LinuxIdMapping| {
        let (inside, outside) = (map.container_id(), map.host_id());
        format!("{inside} {outside} {}\n", map.size())
    };
    maps.iter().map(line).collect()
}

/// Is in a user namespace of its own until its input ends.
pub(crate) fn hold_user_namespace() -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER)?;
    io::stdout().write_all(b"\n")?;
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_written_as_the_kernel_reads_them() {
        let maps: Vec<LinuxIdMapping> = serde_json::from_str(
            r#"[{"containerID":0,"hostID":1000,"size":10},{"containerID":20,"hostID":5,"size":1}]"#,
        )
        .unwrap();
        assert_eq!(lines(&maps), "0 1000 10\n20 5 1\n");
    }
}
