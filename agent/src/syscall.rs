//! What a system call says that is made without a wrapper.

use rustix::io::Errno;

/// The result of the call made just before. A negative one means that it has failed; `errno` says why.
pub(crate) fn checked(result: impl Into<i64>) -> Result<i64, Errno> {
    let result = result.into();
    if result < 0 {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    } else {
        Ok(result)
    }
}
