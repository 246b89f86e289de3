//! How a machine came to its end, told by whichever vCPU knows first.

use std::io;
use std::sync::{Mutex, PoisonError};

use vmm_api::StopReason;
use vmm_virtio::Event;

use crate::vcpu::VcpuError;

/// Set once; the first to tell is believed.
#[derive(Debug)]
pub struct Ending {
    how: Mutex<Option<Result<StopReason, VcpuError>>>,
    event: Event,
}

impl Ending {
    /// A machine that has not ended.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            how: Mutex::default(),
            event: Event::new()?,
        })
    }

    /// The guest ended the machine.
    pub fn reach(&self, reason: StopReason) {
        self.set(Ok(reason));
    }

    /// A vCPU failed.
    pub fn fail(&self, error: VcpuError) {
        self.set(Err(error));
    }

    /// How it ended, if it has. Taken once.
    pub fn take(&self) -> Option<Result<StopReason, VcpuError>> {
        self.how
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Becomes readable when the machine has ended.
    #[must_use]
    pub fn event(&self) -> &Event {
        &self.event
    }

    fn set(&self, how: Result<StopReason, VcpuError>) {
        self.how
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(how);
        // An eventfd of ours that cannot be written would be a bug of the host's; the control socket still ends the machine.
        let _signalled = self.event.signal();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_ending_is_believed() {
        let ending = Ending::new().unwrap();
        assert!(ending.take().is_none());
        ending.reach(StopReason::Reset);
        ending.reach(StopReason::PoweredOff);
        assert!(ending.event().clear().unwrap());
        assert_eq!(ending.take().unwrap().unwrap(), StopReason::Reset);
    }
}
