//! The session keyring: one for each container, which its execs join by name, as runc does.
//!
//! Without one of their own the processes of all containers would find each other's keys in the agent's. The name is that of the container's cgroup,
//! which its id is. A user namespace has names of its own for keyrings.
//!
//! Fails where the kernel makes no keyring; a kernel without keys has none to share either.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;

use super::{Doing, StepError};
use crate::plan::Namespaces;
use crate::syscall::checked;

/// Whose it is to be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Of {
    /// The first process of a container in these namespaces.
    First(Namespaces),
    /// A process that comes to a container.
    Exec,
}

/// Operations of keyctl(2).
const JOIN_SESSION_KEYRING: libc::c_int = 1;
const SETPERM: libc::c_int = 5;
/// What a new session keyring allows: all but changing its attributes to who possesses it, reading and linking to its owner.
const PERMISSIONS: u32 = 0x3f13_0000;
/// Its owner may search it, and so join it by name.
const SEARCH_OWNER: u32 = 0x0008_0000;
/// So may anybody: in a user namespace its owner has another id.
const SEARCH_OTHERS: u32 = 0x0000_0008;

/// Joins the keyring of the container that the cgroup at `cgroup` is of.
pub(super) fn join(cgroup: &Path, of: Of) -> Result<(), StepError> {
    let id = cgroup.file_name().unwrap_or_default();
    let name = [b"_ses.", id.as_bytes()].concat();
    let joined = CString::new(name)
        .map_err(|_| Errno::INVAL)
        .and_then(|name| keyctl(JOIN_SESSION_KEYRING, Argument::Name(&name), 0));
    let keyring = match joined {
        Err(Errno::NOSYS) => return Ok(()),
        joined => joined.doing(|| "cannot join the session keyring".to_owned())?,
    };
    if let Of::First(namespaces) = of {
        let search = match namespaces.contains(Namespaces::USER) {
            true => SEARCH_OTHERS,
            false => SEARCH_OWNER,
        };
        keyctl(SETPERM, Argument::Key(keyring), PERMISSIONS | search)
            .doing(|| "cannot let the session keyring be found".to_owned())?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Argument<'a> {
    Name(&'a CString),
    Key(i64),
}

fn keyctl(operation: libc::c_int, argument: Argument<'_>, permissions: u32) -> Result<i64, Errno> {
    let result = match argument {
        // SAFETY: the name is a C string, which the kernel copies.
        Argument::Name(name) => unsafe {
            libc::syscall(libc::SYS_keyctl, operation, name.as_ptr())
        },
        // SAFETY: the operation takes two numbers and touches no memory of this process.
        Argument::Key(key) => unsafe {
            libc::syscall(libc::SYS_keyctl, operation, key, permissions)
        },
    };
    checked(result)
}
