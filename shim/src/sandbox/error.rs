//! Why an operation on a sandbox failed, and how that is said in ttrpc.

use std::sync::Arc;

use ttrpc::Code;

use super::BootError;
use crate::agent::AgentError;
use crate::hooks::HookError;
use crate::process::{Phase, ProcessKey};
use crate::rootfs::RootfsError;
use crate::spec::SpecError;
use crate::stdio::StdioError;
use crate::storage::StorageError;
use crate::vm::VmEnd;

/// See the module. The sandbox is as before, unless a variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    #[error("there is no {0}")]
    NotFound(ProcessKey),
    #[error("{0} exists already")]
    Exists(ProcessKey),
    /// The operation asks for another phase.
    #[error("{key} is {phase}")]
    Phase { key: ProcessKey, phase: Phase },
    /// Nobody asked for one at its creation.
    #[error("{0} has no notify socket")]
    NoNotifySocket(ProcessKey),
    /// A bound of ours.
    #[error("{what} has {max} {things}, and there can be no more")]
    Limit {
        what: ProcessKey,
        max: usize,
        things: &'static str,
    },
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Stdio(#[from] StdioError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("cannot boot a VM")]
    Boot(#[source] Arc<BootError>),
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Every process is gone with it.
    #[error("the VM ended: {0}")]
    VmEnded(Arc<VmEnd>),
    #[error("the sandbox is being removed")]
    Closing,
}

impl TaskError {
    /// Whether the guest may have done, or may be doing, what was asked of it.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Agent(error) if error.is_open())
    }

    /// The code that containerd and the command line tell errors apart by.
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) | Self::NoNotifySocket(_) => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            // As runc says it of a process that is to get a signal.
            Self::Phase {
                phase: Phase::Stopped,
                ..
            } => Code::NOT_FOUND,
            Self::Phase { .. } => Code::FAILED_PRECONDITION,
            Self::Limit { .. } => Code::RESOURCE_EXHAUSTED,
            Self::Spec(_) => Code::INVALID_ARGUMENT,
            Self::Agent(AgentError::Refused { code, .. }) => *code,
            Self::Agent(AgentError::TimedOut) | Self::Storage(StorageError::TimedOut { .. }) => {
                Code::DEADLINE_EXCEEDED
            }
            Self::Storage(StorageError::Busy) => Code::RESOURCE_EXHAUSTED,
            Self::VmEnded(_) | Self::Closing => Code::UNAVAILABLE,
            Self::Hook(_)
            | Self::Rootfs(_)
            | Self::Stdio(_)
            | Self::Storage(_)
            | Self::Boot(_)
            | Self::Agent(_) => Code::UNKNOWN,
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        let code = error.code();
        let chain = format!("{:#}", anyhow::Error::from(error));
        Self::RpcStatus(ttrpc::get_status(code, chain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_cross_the_wire_with_code_and_whole_chain() {
        let error = TaskError::Spec(SpecError::Read {
            path: "/b/config.json".into(),
            source: std::io::Error::from(std::io::ErrorKind::NotFound),
        });
        let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(error) else {
            panic!("not a status");
        };
        assert_eq!(
            status.message,
            "cannot read /b/config.json: entity not found"
        );
        let missing = TaskError::NotFound(ProcessKey::init("web"));
        let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(missing) else {
            panic!("not a status");
        };
        assert_eq!(status.code(), Code::NOT_FOUND);
        assert_eq!(status.message, "there is no container \"web\"");
    }
}
