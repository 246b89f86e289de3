//! The guest's clock follows the host's when that is set, or has gone on while the host was suspended.
//!
//! A guest keeps the time by counting from what it was told at its start. The kernel tells of every jump of the clock by cancelling a timer
//! (`TFD_TIMER_CANCEL_ON_SET`); the agent then gets the new time. A VM that stands still because all in it is paused runs for as long as that takes.
//!
//! Ways to fail: without the timer, or when the agent does not answer, the guest keeps its time, and a line says so.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;

use super::Machine;
use crate::polled::{self, Polled};

/// The timer's own end is the year 2242, and means nothing.
const FAR: Timespec = Timespec {
    tv_sec: 1 << 33,
    tv_nsec: 0,
};

/// Tells of jumps of the host's clock since it was made.
#[derive(Debug)]
pub(super) struct ClockJumps(Polled);

impl ClockJumps {
    pub(super) fn watch() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        arm(&timer)?;
        let polled = polled::watch_for(timer, Interest::READABLE).map_err(|(_, error)| error)?;
        Ok(Self(polled))
    }

    /// Waits for the next one.
    async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut expirations = [0; 8];
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut expirations)?));
            match read {
                Ok(Err(error)) if Errno::from_io_error(&error) == Some(Errno::CANCELED) => {
                    return arm(self.0.get_ref());
                }
                Ok(Err(error)) => return Err(error),
                // Not yet, or the end of the timer.
                Ok(Ok(_)) | Err(_) => {}
            }
        }
    }
}

fn arm(timer: &OwnedFd) -> io::Result<()> {
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    let at = Itimerspec {
        it_interval: Timespec::default(),
        it_value: FAR,
    };
    timerfd_settime(timer.as_fd(), flags, &at)?;
    Ok(())
}

/// Sets the guest's clock after each jump, until the VM ends.
pub(super) async fn follow(machine: Machine, mut jumps: ClockJumps) {
    loop {
        tokio::select! {
            _ = machine.vm.ended() => return,
            jumped = jumps.next() => if let Err(error) = jumped {
                return tracing::warn!("the host's clock cannot be watched: {error}");
            },
        }
        let Ok(agent) = machine.agent().await else {
            return;
        };
        match agent.set_clock().await {
            Ok(()) => tracing::debug!("the guest's clock is set, as the host's was"),
            Err(error) => tracing::warn!("the guest's clock could not be set: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn a_clock_that_goes_on_does_not_jump() {
        let mut jumps = ClockJumps::watch().unwrap();
        let mut next = std::pin::pin!(jumps.next());
        let polled = std::future::poll_fn(|context| Poll::Ready(next.as_mut().poll(context)));
        assert!(polled.await.is_pending());
    }
}
