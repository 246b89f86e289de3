//! The one table from errors to the codes of the RPCs.
//!
//! A status is a code and a text, which has the error's sources, too: the wire carries no more.

use std::error::Error;

use ttrpc::{Code, get_status};

use crate::cgroup::LimitError;
use crate::cpus::CpusError;
use crate::log;
use crate::machine::MachineError;
use crate::report::FailureKind;
use crate::sandbox::SandboxError;

impl From<SandboxError> for ttrpc::Error {
    fn from(error: SandboxError) -> Self {
        let code = match &error {
            SandboxError::NoContainer(_) | SandboxError::NoProcess { .. } => Code::NOT_FOUND,
            SandboxError::Exists(_) => Code::ALREADY_EXISTS,
            SandboxError::State { .. } | SandboxError::NoNamespace(_) => Code::FAILED_PRECONDITION,
            SandboxError::Id(_) | SandboxError::SubCgroup(_) | SandboxError::Plan(_) => {
                Code::INVALID_ARGUMENT
            }
            SandboxError::Limit(LimitError::Missing { .. }) => Code::INVALID_ARGUMENT,
            SandboxError::Limit(LimitError::Write { .. }) => Code::INTERNAL,
            SandboxError::Gone | SandboxError::Busy(_) | SandboxError::Worker(_) => {
                Code::UNAVAILABLE
            }
            SandboxError::Io { .. } | SandboxError::Spawn(_) => {
                match error.failure().map(|failure| failure.kind) {
                    Some(FailureKind::NotFound) => Code::NOT_FOUND,
                    Some(FailureKind::NotExecutable) => Code::PERMISSION_DENIED,
                    Some(FailureKind::SetUp) | None => Code::INTERNAL,
                }
            }
        };
        status_of(code, &error)
    }
}

impl From<MachineError> for ttrpc::Error {
    fn from(error: MachineError) -> Self {
        status_of(Code::INTERNAL, &error)
    }
}

impl From<CpusError> for ttrpc::Error {
    fn from(error: CpusError) -> Self {
        let code = match &error {
            CpusError::Count { .. } => Code::INVALID_ARGUMENT,
            CpusError::Read { .. } | CpusError::List { .. } | CpusError::Switch { .. } => {
                Code::INTERNAL
            }
        };
        status_of(code, &error)
    }
}

fn status_of(code: Code, error: &dyn Error) -> ttrpc::Error {
    status(code, log::line_of(error))
}

/// The status of what is refused with a text alone.
pub(crate) fn status(code: Code, message: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, message))
}
