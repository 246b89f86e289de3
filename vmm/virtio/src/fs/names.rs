//! Which names a guest may use: one component of a path, and neither of the two that mean a directory itself.
//!
//! The FUSE server hands a name to `unlinkat`, `mkdirat`, `renameat2` as it is, so `../victim` would leave the share. A guest kernel never
//! sends such a name; one that was taken over may. Every operation that takes a name asks here first.

use std::ffi::CStr;
use std::io;

/// The longest name Linux's file systems know (`NAME_MAX`), bytes.
const NAME_MAX_BYTES: usize = 255;

/// Passes a name that is one component. A NUL inside it ended it before it came here.
///
/// # Errors
/// `EINVAL` for an empty name, `.`, `..` and one with a slash, `ENAMETOOLONG` for a long one.
pub(super) fn check(name: &CStr) -> io::Result<&CStr> {
    let bytes = name.to_bytes();
    if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    if bytes.len() > NAME_MAX_BYTES {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    fn errno(name: &[u8]) -> Option<i32> {
        check(&CString::new(name).unwrap())
            .err()
            .and_then(|error| error.raw_os_error())
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for name in [
            &b""[..],
            b".",
            b"..",
            b"/",
            b"../victim",
            b"a/b",
            b"a/",
            b"/etc",
        ] {
            assert_eq!(errno(name), Some(libc::EINVAL), "{name:?}");
        }
    }

    #[test]
    fn names_may_have_255_bytes_of_any_kind() {
        for name in [&b"..."[..], b".hidden", b"a b", b"\xff\xfe\n", &[b'x'; 255]] {
            assert_eq!(errno(name), None, "{name:?}");
        }
        assert_eq!(errno(&[b'x'; 256]), Some(libc::ENAMETOOLONG));
    }
}
