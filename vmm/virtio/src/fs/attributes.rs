//! Which extended attributes are whose.
//!
//! The VMM has no right to `trusted.*` on the host, nor may a guest set what the host's kernel
//! believes in. A guest's `trusted.*`, which its kernel gives to privileged programs alone and
//! keeps an overlay's upper layer by, are kept by the server under a name of its own:
//!
//! ```text
//!   guest                      host
//!   trusted.overlay.opaque ◄─► user.husk.trusted.overlay.opaque
//!   user.husk.anything     ──► refused, and never listed
//!   all others             ◄─► the same
//! ```
//!
//! The host keeps `user.*` for files and directories only.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::io;

const TRUSTED: &[u8] = b"trusted.";
/// What the names of the server begin with.
const OWN: &[u8] = b"user.husk.";

/// The host's name of what a guest calls `name`.
///
/// # Errors
/// `EPERM` for a name of the server's, `ERANGE` for one that is too long.
pub(super) fn to_host(name: &CStr) -> io::Result<Cow<'_, CStr>> {
    let bytes = name.to_bytes();
    if bytes.starts_with(OWN) {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    if !bytes.starts_with(TRUSTED) {
        return Ok(Cow::Borrowed(name));
    }
    let mapped = CString::new([OWN, bytes].concat());
    mapped
        .map(Cow::Owned)
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The names a guest sees of the host's `names`, each ended by NUL.
pub(super) fn to_guest(names: &[u8]) -> Vec<u8> {
    let mut seen = Vec::with_capacity(names.len());
    for name in names.split_inclusive(|byte| *byte == 0) {
        match name.strip_prefix(OWN) {
            Some(own) if own.starts_with(TRUSTED) => seen.extend_from_slice(own),
            Some(_) => {}
            // Of the host's kernel, or of another that serves the same files.
            None if name.starts_with(TRUSTED) => {}
            None => seen.extend_from_slice(name),
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_ones_are_kept_under_a_name_of_the_servers() {
        let host = to_host(c"trusted.overlay.opaque").unwrap();
        assert_eq!(host.as_ref(), c"user.husk.trusted.overlay.opaque");
        assert_eq!(
            to_guest(host.to_bytes_with_nul()),
            b"trusted.overlay.opaque\0"
        );
    }

    #[test]
    fn others_are_as_they_are_and_the_servers_are_nobodys() {
        for name in [
            c"user.colour",
            c"security.capability",
            c"user.\xff",
            c"user.husky",
        ] {
            assert_eq!(to_host(name).unwrap().as_ref(), name);
            assert_eq!(to_guest(name.to_bytes_with_nul()), name.to_bytes_with_nul());
        }
        for name in [c"user.husk.", c"user.husk.trusted.overlay.opaque"] {
            let refused = to_host(name).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        }
        assert_eq!(
            to_guest(b"user.a\0user.husk.x\0trusted.b\0user.c\0"),
            b"user.a\0user.c\0"
        );
    }
}
