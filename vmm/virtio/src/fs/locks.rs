//! Who in the guest has locked which parts of files in volumes (`fcntl`).
//!
//! A record lock belongs to a process of the guest, or to an open file of its (`F_OFD_SETLK`); both
//! are a number here, the owner, that the guest's kernel makes up. All of the guest is one process
//! on the host, whose own record locks would not exclude each other, so each owner has an open file
//! description of its own for each file in which it has locks, and the locks are of that one.
//!
//! ```text
//!   SETLK ─► owner's description ─► locked without waiting ─┬─ EAGAIN: the guest's kernel asks again
//!                                                           └─ entered here
//!   SETLK (unlock), FLUSH of the owner, RELEASE of the handle ─► description closed with its last lock
//! ```
//!
//! A lock of a whole file (`flock`) is the handle's own, and nothing of it is kept here.

use std::collections::HashMap;
use std::io;

/// Ranges.
mod ranges;

use ranges::Ranges;
pub(super) use ranges::{Kind, Range};

/// Pairs of a file and an owner that has locks in it: each is an open file of this process. A
/// database has one for each of its processes.
const OWNERS_MAX: usize = 1024;
/// Ranges that all of them have locked: the host's kernel keeps each, some 200 bytes, and walks
/// through those of a file at each change, and it charges them to nobody.
const RANGES_MAX: usize = 8 * 1024;
/// Of them one owner's: others are to have some too.
const OWNER_RANGES_MAX: usize = RANGES_MAX / 4;

/// An owner's locks in one file.
#[derive(Debug)]
struct Holder {
    owner: u64,
    /// The guest's process that has locked last.
    pid: u32,
    /// The guest's handle by which it did: of an open file's locks the only one.
    opened: u64,
    /// The handle of the owner's description.
    description: u64,
    ranges: Ranges,
}

/// All of a session.
#[derive(Debug, Default)]
pub(super) struct Locks {
    /// By inode.
    holders: HashMap<u64, Vec<Holder>>,
    owners: usize,
    ranges: usize,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) owner: u64,
    pub(super) pid: u32,
    pub(super) handle: u64,
}

fn too_many() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOLCK)
}

impl Locks {
    /// The handle of the description for the locks of `owner` in `inode`.
    pub(super) fn description(&self, inode: u64, owner: u64) -> Option<u64> {
        self.holder(inode, owner).map(|holder| holder.description)
    }

    /// Whether one more owner may come.
    ///
    /// # Errors
    /// `ENOLCK`.
    pub(super) fn check_room(&self) -> io::Result<()> {
        if self.owners >= OWNERS_MAX {
            return Err(too_many());
        }
        Ok(())
    }

    /// Enters an owner without locks.
    pub(super) fn enter(&mut self, inode: u64, asker: Asker, description: u64) {
        self.owners += 1;
        self.holders.entry(inode).or_default().push(Holder {
            owner: asker.owner,
            pid: asker.pid,
            opened: asker.handle,
            description,
            ranges: Ranges::default(),
        });
    }

    /// Changes what an owner has locked by `act`, which does it on the host. With no kind it is
    /// unlocked, which can be one range more too.
    ///
    /// # Errors
    /// `ENOLCK`, and those of `act`; nothing has changed.
    pub(super) fn change(
        &mut self,
        inode: u64,
        asker: Asker,
        (range, kind): (Range, Option<Kind>),
        act: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let others = self.ranges;
        let holder = self.holders.get_mut(&inode).and_then(|holders| {
            holders
                .iter_mut()
                .find(|holder| holder.owner == asker.owner)
        });
        let Some(holder) = holder else {
            return Ok(());
        };
        let before = holder.ranges.count();
        let after = holder.ranges.after(range, kind);
        let all = others.saturating_sub(before) + after.count();
        let too_much = all > RANGES_MAX || after.count() > OWNER_RANGES_MAX;
        if after.count() > before && too_much {
            return Err(too_many());
        }
        act()?;
        if kind.is_some() {
            holder.pid = asker.pid;
            // Its release ends them: the owner may be the number of one that a handle released late had.
            holder.opened = asker.handle;
        }
        holder.ranges = after;
        self.ranges = all;
        Ok(())
    }

    /// The process of another owner's that has exactly this lock in `inode`.
    pub(super) fn whose(&self, inode: u64, owner: u64, range: Range, kind: Kind) -> Option<u32> {
        let mut others = self.holders.get(&inode)?.iter();
        let found =
            others.find(|holder| holder.owner != owner && holder.ranges.has(range, kind))?;
        Some(found.pid)
    }

    /// Forgets an owner that has no lock in `inode`; its description is to be closed.
    pub(super) fn without_locks(&mut self, inode: u64, owner: u64) -> Option<u64> {
        let idle = |holder: &Holder| holder.owner == owner && holder.ranges.count() == 0;
        self.remove(inode, idle).pop()
    }

    /// Forgets the locks of `owner` in `inode`, of which it has closed a descriptor; the
    /// descriptions to be closed.
    pub(super) fn closed_by(&mut self, inode: u64, owner: u64) -> Vec<u64> {
        self.remove(inode, |holder| holder.owner == owner)
    }

    /// Forgets the locks that were asked for by `handle`, which nobody has any more. The kernel of
    /// the guest unlocks none of an open file's own.
    pub(super) fn released(&mut self, inode: u64, handle: u64) -> Vec<u64> {
        self.remove(inode, |holder| holder.opened == handle)
    }

    /// Forgets everything; inodes and descriptions to be closed.
    pub(super) fn clear(&mut self) -> Vec<(u64, u64)> {
        let all = std::mem::take(self).holders.into_iter();
        all.flat_map(|(inode, holders)| {
            let each = holders.into_iter();
            each.map(move |holder| (inode, holder.description))
        })
        .collect()
    }

    fn remove(&mut self, inode: u64, gone: impl Fn(&Holder) -> bool) -> Vec<u64> {
        let Some(holders) = self.holders.get_mut(&inode) else {
            return Vec::new();
        };
        let mut closed = Vec::new();
        for holder in holders.extract_if(.., |holder| gone(holder)) {
            self.owners -= 1;
            self.ranges -= holder.ranges.count();
            closed.push(holder.description);
        }
        if holders.is_empty() {
            self.holders.remove(&inode);
        }
        closed
    }

    fn holder(&self, inode: u64, owner: u64) -> Option<&Holder> {
        let mut holders = self.holders.get(&inode)?.iter();
        holders.find(|holder| holder.owner == owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(owner: u64) -> Asker {
        Asker {
            owner,
            pid: 7,
            handle: 100 + owner,
        }
    }

    fn lock(locks: &mut Locks, owner: u64, start: u64) -> io::Result<()> {
        let range = Range { start, end: start };
        let change = (range, Some(Kind::Exclusive));
        locks.change(1, asker(owner), change, || Ok(()))
    }

    #[test]
    fn ranges_and_owners_of_all_files_have_a_bound() {
        let mut locks = Locks::default();
        for owner in 1..=5 {
            locks.enter(1, asker(owner), 10 + owner);
        }
        for number in 0..RANGES_MAX as u64 - 1 {
            lock(&mut locks, 1 + number / OWNER_RANGES_MAX as u64, 2 * number).unwrap();
        }
        lock(&mut locks, 5, 50).unwrap();
        for owner in [1, 5] {
            let refused = lock(&mut locks, owner, 1 << 40).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::ENOLCK));
        }
        // In the place of another, there is room.
        lock(&mut locks, 1, 0).unwrap();
        assert_eq!(locks.closed_by(1, 1), [11]);
        lock(&mut locks, 5, 1 << 40).unwrap();
        let refused = lock(&mut locks, 2, 1 << 40).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOLCK));
        for owner in 5..=OWNERS_MAX as u64 {
            locks.check_room().unwrap();
            locks.enter(owner, asker(owner), owner);
        }
        assert!(locks.check_room().is_err());
        assert_eq!(locks.clear().len(), OWNERS_MAX);
        assert_eq!((locks.owners, locks.ranges), (0, 0));
    }

    #[test]
    fn a_change_that_failed_on_the_host_is_none() {
        let mut locks = Locks::default();
        locks.enter(1, asker(1), 11);
        let range = Range { start: 0, end: 9 };
        let refused = locks.change(1, asker(1), (range, Some(Kind::Shared)), || {
            Err(io::ErrorKind::WouldBlock.into())
        });
        assert!(refused.is_err());
        assert_eq!(locks.whose(1, 2, range, Kind::Shared), None);
        assert_eq!(locks.without_locks(1, 1), Some(11));
        assert_eq!(locks.without_locks(1, 1), None);
    }

    #[test]
    fn a_handle_that_is_released_late_takes_no_lock_of_its_successor() {
        let mut locks = Locks::default();
        locks.enter(1, asker(1), 11);
        lock(&mut locks, 1, 5).unwrap();
        let successor = Asker {
            handle: 900,
            ..asker(1)
        };
        let range = Range { start: 7, end: 7 };
        let change = (range, Some(Kind::Exclusive));
        locks.change(1, successor, change, || Ok(())).unwrap();
        assert!(locks.released(1, 101).is_empty());
        assert_eq!(locks.released(1, 900), [11]);
    }

    #[test]
    fn owners_and_handles_end_with_their_own_locks() {
        let mut locks = Locks::default();
        for owner in [1, 2, 3] {
            locks.enter(1, asker(owner), 10 + owner);
            lock(&mut locks, owner, owner).unwrap();
        }
        let range = Range { start: 2, end: 2 };
        assert_eq!(locks.whose(1, 1, range, Kind::Exclusive), Some(7));
        assert_eq!(locks.whose(1, 2, range, Kind::Exclusive), None);
        assert_eq!(locks.closed_by(1, 2), [12]);
        assert_eq!(locks.released(1, 103), [13]);
        assert_eq!(locks.description(1, 1), Some(11));
        assert_eq!(locks.description(1, 3), None);
        assert_eq!((locks.owners, locks.ranges), (1, 1));
    }
}
