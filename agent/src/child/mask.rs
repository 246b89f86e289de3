//! What masked paths are covered with: a directory by an empty one, anything else by the guest's `/dev/null`.
//!
//! All directories share one empty file system and all files one node, so that many masked paths cost no more than mounts. The node is the guest's
//! own: what an image calls `/dev/null` may be a file that shows something, or keeps what is written to it.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, fstat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mounts::{attach, clone_of, new_file_system, set_attributes};
use super::root::{Root, is_directory};
use super::{Doing, StepError};
use crate::plan::Attributes;

/// See the module. What has been used once is in its place, and copied from there.
#[derive(Debug)]
pub(super) struct Covers {
    file: Cover,
    directory: Option<Cover>,
}

#[derive(Debug)]
struct Cover {
    tree: OwnedFd,
    used: bool,
}

impl Covers {
    /// To be called while the guest's `/dev` can be reached.
    pub(super) fn prepare() -> Result<Self, StepError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, "/dev/null", flags)
            .doing(|| "cannot take /dev/null for masked paths".to_owned())?;
        Ok(Self {
            file: Cover { tree, used: false },
            directory: None,
        })
    }

    /// Covers what is at `path`, unless that is a cover already.
    pub(super) fn mask(&mut self, root: &Root, path: &Path) -> Result<(), Errno> {
        let place = root.resolve(path)?;
        let cover = if is_directory(&place)? {
            match &mut self.directory {
                Some(cover) => cover,
                none => none.insert(Cover::empty_directory()?),
            }
        } else {
            &mut self.file
        };
        cover.put(&place)
    }
}

impl Cover {
    fn empty_directory() -> Result<Self, Errno> {
        let one_block = ("nr_blocks".to_owned(), Some("1".to_owned()));
        let tree = new_file_system("tmpfs", "tmpfs", &[one_block])?;
        set_attributes(&tree, Attributes::READ_ONLY, None)?;
        Ok(Self { tree, used: false })
    }

    fn put(&mut self, place: &OwnedFd) -> Result<(), Errno> {
        if !self.used {
            attach(&self.tree, place)?;
            self.used = true;
            return Ok(());
        }
        let (there, here) = (fstat(place)?, fstat(&self.tree)?);
        if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino) {
            return Ok(());
        }
        attach(clone_of(&self.tree, false)?, place)
    }
}
