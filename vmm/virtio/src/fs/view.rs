//! Guest memory in the type virtiofsd wants.
//!
//! Its streams are over `GuestMemoryMmap<BitmapMmapRegion>`, a type with a log of dirty pages, while every other device here uses memory
//! without one. A [`View`] is a second description of the same mappings: no byte is mapped or copied, and the log stays empty.

use std::fmt;
use std::sync::Arc;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtiofsd::descriptor_utils::{Reader, Writer};
use vm_memory::{
    GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use crate::{Chain, GuestMemory, QueueError};

/// Guest memory, described a second time.
pub(super) struct View {
    /// Before what it borrows from, so that it goes first.
    regions: GuestMemoryMmap<BitmapMmapRegion>,
    _memory: Arc<GuestMemory>,
}

/// The memory cannot be described a second time.
#[derive(Debug, thiserror::Error)]
#[error("describe guest memory to the file server")]
pub(super) struct ViewError;

impl View {
    /// A view of `memory`, which it keeps.
    pub(super) fn new(memory: Arc<GuestMemory>) -> Result<Self, ViewError> {
        let mut regions = Vec::with_capacity(memory.num_regions());
        for region in memory.iter() {
            // SAFETY: address, size, protection and flags are those of a live mapping, which `memory`, kept beside the view and dropped after it,
            // holds in place. A region built so does not unmap when dropped. Both are accessed as volatile memory only, never by reference.
            let again = unsafe {
                MmapRegion::<BitmapMmapRegion>::build_raw(
                    region.as_ptr(),
                    region.size(),
                    region.prot(),
                    region.flags(),
                )
            };
            let again = GuestRegionMmap::new(again.map_err(|_| ViewError)?, region.start_addr());
            regions.push(again.ok_or(ViewError)?);
        }
        let regions = GuestMemoryMmap::from_regions(regions).map_err(|_| ViewError)?;
        Ok(Self {
            regions,
            _memory: memory,
        })
    }

    /// A chain as the streams virtiofsd reads a request from and writes its answer to.
    pub(super) fn streams(
        &self,
        chain: &Chain<'_>,
    ) -> Result<(Reader<'_>, Writer<'_>), QueueError> {
        let bad = || QueueError::BadChain { head: chain.head() };
        let reader = Reader::new(&self.regions, chain.descriptors()).map_err(|_| bad())?;
        let writer = Writer::new(&self.regions, chain.descriptors()).map_err(|_| bad())?;
        Ok((reader, writer))
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}
