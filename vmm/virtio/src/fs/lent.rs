//! The open file behind a handle of virtiofsd's, for what the library has no operation for.
//!
//! The library keeps its descriptors to itself, but hands a file to whoever copies out of it.
//! [`file`] is such a copier that copies nothing.

use std::fs::File;
use std::io;

use virtiofsd::filesystem::{Context, FileSystem, ZeroCopyWriter};
use virtiofsd::oslib::ReadvFlags;
use virtiofsd::passthrough::PassthroughFs;

/// What is done with the file, once, and what came of it.
struct Borrower<A, T> {
    action: Option<A>,
    done: Option<T>,
}

impl<A: FnOnce(&File) -> T, T> ZeroCopyWriter for &mut Borrower<A, T> {
    fn read_from_file_at(
        &mut self,
        file: &File,
        _count: usize,
        _offset: u64,
        _flags: Option<ReadvFlags>,
    ) -> io::Result<usize> {
        if let Some(action) = self.action.take() {
            self.done = Some(action(file));
        }
        Ok(0)
    }
}

/// Calls `action` with the file that `handle` stands for.
///
/// # Errors
/// `EBADF` where `handle` is none of `inode`, and what `action` returns.
pub(super) fn file<T>(
    files: &PassthroughFs,
    ctx: Context,
    inode: u64,
    handle: u64,
    action: impl FnOnce(&File) -> io::Result<T>,
) -> io::Result<T> {
    let mut borrower = Borrower {
        action: Some(action),
        done: None,
    };
    files.read(ctx, inode, handle, &mut borrower, 0, 0, None, 0)?;
    borrower
        .done
        .unwrap_or_else(|| Err(io::Error::from_raw_os_error(libc::EBADF)))
}
