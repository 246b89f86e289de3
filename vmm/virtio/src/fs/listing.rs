//! What was read of a directory and not yet told to the guest.
//!
//! A guest asks for a directory in pages, and more comes from the host than fits into one. To read
//! the rest again from where the guest has come to would be right only on file systems whose
//! positions outlive a removal: a tmpfs before Linux 6.6 counts entries, so that after `rm` of what
//! was told the next position skips as many as were removed. So the rest is kept with the handle
//! and told first, and the host's directory is never positioned while it is read in order:
//!
//! ```text
//!   READDIR at ─┬─ 0: rewound ────────────────► positioned at 0, a new batch
//!               ├─ where the last one ended ──► the rest of it, then the next, unpositioned
//!               ├─ within the batch ──────────► told again from there
//!               └─ elsewhere (seekdir) ───────► positioned there, a new batch
//! ```
//!
//! A batch may tell of a name that is gone since; READDIRPLUS tells of it without attributes
//! (`super::share`).
//!
//! Ways to fail: those of reading the directory. Of [`LISTINGS_MAX`] handles read most recently the
//! rest is kept; one beyond goes on as if after a seekdir.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{FileType, RawDir};
use virtiofsd::filesystem::{DirEntry, DirectoryIterator};

/// Bytes read of a directory at once. With short names, what is kept of them is a third more.
pub(super) const BATCH_BYTES: u32 = 16 * 1024;
/// Handles with a rest: as deep as a tree may be that is walked with every directory on the way
/// left open, as `rm -r` of busybox does. Together they keep less than 32 MiB.
pub(super) const LISTINGS_MAX: usize = 1024;

/// An entry; its name is a range of bytes in its batch.
#[derive(Debug)]
struct Held {
    number: u64,
    /// Where the next one begins.
    end: u64,
    kind: u32,
    name: (usize, usize),
}

/// What one read of a directory returned.
#[derive(Debug, Default)]
pub(super) struct Batch {
    entries: Vec<Held>,
    names: Vec<u8>,
    /// So many were told.
    told: AtomicUsize,
}

impl Batch {
    /// What comes next where `directory` is.
    pub(super) fn read(directory: &File) -> io::Result<Self> {
        let mut buffer = vec![MaybeUninit::uninit(); BATCH_BYTES as usize];
        let mut directory = RawDir::new(directory, &mut buffer);
        let mut batch = Self::default();
        while let Some(entry) = directory.next() {
            let entry = entry?;
            let kind = match entry.file_type() {
                FileType::Unknown => u32::from(libc::DT_UNKNOWN),
                known => known.as_raw_mode() >> 12,
            };
            batch.push(
                entry.ino(),
                entry.next_entry_cookie(),
                kind,
                entry.file_name(),
            );
            if directory.is_buffer_empty() {
                break;
            }
        }
        Ok(batch)
    }

    /// What the library has read.
    pub(super) fn copied(mut entries: impl DirectoryIterator) -> Self {
        let mut batch = Self::default();
        while let Some(entry) = entries.next() {
            batch.push(entry.ino, entry.offset, entry.type_, entry.name);
        }
        batch
    }

    fn push(&mut self, number: u64, end: u64, kind: u32, name: &CStr) {
        let begin = self.names.len();
        self.names.extend_from_slice(name.to_bytes_with_nul());
        self.entries.push(Held {
            number,
            end,
            kind,
            name: (begin, self.names.len()),
        });
    }
}

/// A batch as the library tells the guest of it. It takes one more than fits into the guest's page.
#[derive(Debug, Default)]
pub(super) struct Entries {
    batch: Arc<Batch>,
    next: usize,
}

impl DirectoryIterator for Entries {
    fn next(&mut self) -> Option<DirEntry<'_>> {
        // All that were taken before have found room.
        self.batch.told.store(self.next, Ordering::Relaxed);
        let held = self.batch.entries.get(self.next)?;
        let name = self.batch.names.get(held.name.0..held.name.1)?;
        self.next += 1;
        Some(DirEntry {
            ino: held.number,
            offset: held.end,
            type_: held.kind,
            name: CStr::from_bytes_with_nul(name).ok()?,
        })
    }
}

/// How a directory is read on.
#[derive(Debug)]
pub(super) enum Next {
    /// From what is kept.
    Kept(Entries),
    /// From where the host's directory is.
    InOrder,
    /// From the position the guest has given.
    Positioned,
}

#[derive(Debug)]
struct Listing {
    inode: u64,
    batch: Arc<Batch>,
    /// Where the batch began.
    begin: u64,
    /// When it was read last.
    used: u64,
}

/// The rests of all directories that are open.
#[derive(Debug, Default)]
pub(super) struct Listings {
    kept: HashMap<u64, Listing>,
    clock: u64,
}

impl Listings {
    /// How `handle` is read at `offset`.
    ///
    /// # Errors
    /// `EBADF` where it is none of `inode`.
    pub(super) fn next(&mut self, inode: u64, handle: u64, offset: u64) -> io::Result<Next> {
        self.clock += 1;
        let Some(listing) = self.kept.get_mut(&handle) else {
            return Ok(Next::Positioned);
        };
        if listing.inode != inode {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        listing.used = self.clock;
        if offset == 0 {
            return Ok(Next::Positioned);
        }
        let entries = &listing.batch.entries;
        let told = listing.batch.told.load(Ordering::Relaxed);
        let reached = match told.checked_sub(1) {
            Some(last) => entries.get(last).map(|entry| entry.end),
            None => Some(listing.begin),
        };
        // Two entries may end at the same position, so where the guest has come to is asked first.
        let from = if reached == Some(offset) {
            told
        } else if listing.begin == offset {
            0
        } else {
            match entries.iter().position(|entry| entry.end == offset) {
                Some(before) => before + 1,
                None => return Ok(Next::Positioned),
            }
        };
        if from >= entries.len() {
            return Ok(Next::InOrder);
        }
        Ok(Next::Kept(Entries {
            batch: Arc::clone(&listing.batch),
            next: from,
        }))
    }

    /// Keeps `batch`, which begins at `begin`, in place of what was kept of `handle`.
    pub(super) fn keep(&mut self, inode: u64, handle: u64, begin: u64, batch: Batch) -> Entries {
        if self.kept.len() >= LISTINGS_MAX && !self.kept.contains_key(&handle) {
            let longest = self.kept.iter().min_by_key(|(_, listing)| listing.used);
            if let Some((&oldest, _)) = longest {
                self.kept.remove(&oldest);
            }
        }
        let batch = Arc::new(batch);
        let listing = Listing {
            inode,
            batch: Arc::clone(&batch),
            begin,
            used: self.clock,
        };
        self.kept.insert(handle, listing);
        Entries { batch, next: 0 }
    }

    /// `handle` is closed.
    pub(super) fn closed(&mut self, handle: u64) {
        self.kept.remove(&handle);
    }

    /// All are.
    pub(super) fn clear(&mut self) {
        self.kept = HashMap::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three entries that end at 10, 20 and 20.
    fn batch() -> Batch {
        let mut batch = Batch::default();
        batch.push(1, 10, 8, c"a");
        batch.push(2, 20, 8, c"b");
        batch.push(3, 20, 8, c"c");
        batch
    }

    fn told(entries: &mut Entries, count: usize) -> Vec<u64> {
        (0..count)
            .map_while(|_| entries.next().map(|entry| entry.ino))
            .collect()
    }

    fn kept(listings: &mut Listings, offset: u64) -> Vec<u64> {
        match listings.next(7, 1, offset).unwrap() {
            Next::Kept(mut entries) => told(&mut entries, 9),
            _ => Vec::new(),
        }
    }

    #[test]
    fn what_did_not_fit_is_told_next() {
        let mut listings = Listings::default();
        let mut entries = listings.keep(7, 1, 0, batch());
        assert_eq!(told(&mut entries, 2), [1, 2]);
        assert_eq!(kept(&mut listings, 10), [2, 3]);
        assert!(matches!(listings.next(7, 1, 20), Ok(Next::InOrder)));
    }

    #[test]
    fn of_two_that_end_at_one_position_none_is_told_twice_or_not_at_all() {
        let mut listings = Listings::default();
        let mut entries = listings.keep(7, 1, 0, batch());
        assert_eq!(told(&mut entries, 3), [1, 2, 3]);
        assert_eq!(kept(&mut listings, 20), [3]);
    }

    #[test]
    fn positions_given_before_are_found_and_others_are_the_hosts() {
        let mut listings = Listings::default();
        assert!(matches!(listings.next(7, 1, 0), Ok(Next::Positioned)));
        let mut entries = listings.keep(7, 1, 0, batch());
        told(&mut entries, 9);
        assert_eq!(kept(&mut listings, 10), [2, 3]);
        for offset in [0, 15] {
            assert!(matches!(listings.next(7, 1, offset), Ok(Next::Positioned)));
        }
        assert!(listings.next(8, 1, 10).is_err());
        let mut entries = listings.keep(7, 1, 5, batch());
        told(&mut entries, 9);
        assert_eq!(kept(&mut listings, 5), [1, 2, 3]);
        listings.closed(1);
        assert!(matches!(listings.next(7, 1, 10), Ok(Next::Positioned)));
    }

    #[test]
    fn so_many_rests_are_kept_and_no_more() {
        let mut listings = Listings::default();
        for handle in 0..=u64::try_from(LISTINGS_MAX).unwrap() {
            listings.next(7, handle, 0).unwrap();
            let mut entries = listings.keep(7, handle, 0, batch());
            told(&mut entries, 2);
        }
        assert_eq!(listings.kept.len(), LISTINGS_MAX);
        assert!(matches!(listings.next(7, 0, 10), Ok(Next::Positioned)));
        assert!(matches!(listings.next(7, 1, 10), Ok(Next::Kept(_))));
    }
}
