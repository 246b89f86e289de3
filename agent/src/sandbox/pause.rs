//! Pause and resume: the freezer of the container's cgroup.
//!
//! ```text
//! thawed ── Pause ─► freezing ─(every process stands still)─► frozen ── Resume ─► thawed
//!   ▲                   │                                       │
//!   └─(takes too long)──┴────────────(init exits)───────────────┘
//! ```
//!
//! A frozen process can be killed; every other signal waits. No process is started in a container that is not thawed.

use std::time::Duration;

use super::{Key, News, Reply, Sandbox, SandboxError, answer, io, wrong_state};
use crate::container::{Container, Freezer};
use crate::log::warn;
use crate::process::State;

/// How long processes may take to stand still: one that is inside an uninterruptible call comes out of it first.
const FREEZING_MAX: Duration = Duration::from_secs(10);

impl Sandbox {
    pub(super) fn pause(&mut self, id: &str, reply: Reply<()>) {
        let frozen = match self.begin_pause(id) {
            Ok(frozen) => frozen,
            Err(error) => return answer(reply, Err(error)),
        };
        let (id, tell) = (id.to_owned(), self.tell.clone());
        tokio::spawn(async move {
            let result = tokio::time::timeout(FREEZING_MAX, frozen).await;
            let result = result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            let _ = tell.send(News::Frozen { id, result, reply });
        });
    }

    fn begin_pause(
        &mut self,
        id: &str,
    ) -> Result<impl Future<Output = io::Result<()>> + Send + use<>, SandboxError> {
        let container = self.alive(id)?;
        check_thawed(id, container)?;
        let doing = io("cannot freeze the container");
        let frozen = container.cgroup.frozen().map_err(&doing)?;
        container.cgroup.freeze(true).map_err(&doing)?;
        container.freezer = Freezer::Freezing;
        Ok(frozen)
    }

    /// The end of the step that [`Self::pause`] began.
    pub(super) fn paused(&mut self, id: &str, result: io::Result<()>) -> Result<(), SandboxError> {
        let container = self.open(id)?;
        if container.freezer != Freezer::Freezing {
            return Err(wrong_state(&Key::init(id), State::Stopped));
        }
        match result {
            Ok(()) => {
                container.freezer = Freezer::Frozen;
                Ok(())
            }
            Err(error) => {
                thaw(id, container);
                Err(io("cannot freeze the container")(error))
            }
        }
    }

    pub(super) fn resume(&mut self, id: &str) -> Result<(), SandboxError> {
        let container = self.alive(id)?;
        if container.freezer != Freezer::Frozen {
            return Err(SandboxError::State {
                what: format!("container {id:?}"),
                state: "not paused",
            });
        }
        container
            .cgroup
            .freeze(false)
            .map_err(io("cannot thaw the container"))?;
        container.freezer = Freezer::Thawed;
        Ok(())
    }

    /// A container whose first process is there, created or running.
    pub(super) fn alive(&mut self, id: &str) -> Result<&mut Container, SandboxError> {
        let container = self.open(id)?;
        match container.init_state() {
            State::Created | State::Running => Ok(container),
            state => Err(wrong_state(&Key::init(id), state)),
        }
    }
}

/// Lets a container go on whose pause has come to nothing.
pub(super) fn thaw(id: &str, container: &mut Container) {
    if container.freezer == Freezer::Thawed {
        return;
    }
    container.freezer = Freezer::Thawed;
    if let Err(error) = container.cgroup.freeze(false) {
        warn!("{id}: cannot thaw: {error}");
    }
}

/// What may be done to a container that is not paused only.
pub(super) fn check_thawed(id: &str, container: &Container) -> Result<(), SandboxError> {
    let state = match container.freezer {
        Freezer::Thawed => return Ok(()),
        Freezer::Freezing => "being paused",
        Freezer::Frozen => "paused",
    };
    Err(SandboxError::State {
        what: format!("container {id:?}"),
        state,
    })
}
