//! What this process inherited: descriptors that it knows nothing of, since a supervisor lives on when its starter has ended, and must not hold
//! open what an engine waits to be closed; and the limit of descriptors, which is raised for itself and not for programs that it runs for others.

use std::io;
use std::sync::OnceLock;

use nix::libc;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit of descriptors, once it has been raised. As the limit itself, it is the whole process's.
static DESCRIPTOR_LIMIT: OnceLock<Rlimit> = OnceLock::new();

/// The first descriptor that is not a standard stream.
const FIRST: libc::c_uint = 3;

/// Marks all descriptors but the standard ones to be closed when a program is executed.
pub(crate) fn close_on_exec() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: sets a flag of descriptors, which nothing in this process relies on; none is closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, flags) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Raises the limit of descriptors as far as it goes.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        ..before
    };
    setrlimit(Resource::Nofile, raised)?;
    DESCRIPTOR_LIMIT.get_or_init(|| before);
    Ok(())
}

/// The limit that this process was started with, if it has another one now.
pub(crate) fn descriptor_limit() -> Option<Rlimit> {
    DESCRIPTOR_LIMIT.get().copied()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::process::Command;

    use rustix::io::FdFlags;

    use super::*;

    #[test]
    fn inherited_descriptors_are_not_passed_on() {
        let file = std::fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&file, FdFlags::empty()).unwrap();
        close_on_exec().unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut test = Command::new("/usr/bin/test");
        assert!(!test.args(["-e", &path]).status().unwrap().success());
    }
}
