//! Descriptors that this process inherited and knows nothing of: a supervisor lives on when its starter has ended, and must not hold open
//! what an engine waits to be closed.

use std::io;

use nix::libc;

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
