//! What the cases stand on: a bundle to run, the runtime that runs it, and the proof that nothing is left of it.
//!
//! ```text
//!   Bundle::busybox() ─ config edited ─► Runtime::run ─► Output { status, stdout, stderr }
//!                                            └─ on the way out: no process, mount, cgroup, socket or file is left
//! ```
//!
//! The runtime is `$HUSK_TREE/bin/husk`, or runc where `HUSK_RUNTIME=runc`: a case that fails there is a wrong case.

#![expect(clippy::unwrap_used, reason = "a case whose set-up fails has failed")]

mod archive;
mod background;
mod bundle;
mod command_line;
mod containerd;
mod docker;
mod engine;
mod output;
mod podman;
mod remains;
mod runtime;
mod shared;
mod skip;
mod terminal;
pub mod wait;

pub use archive::initrd_with;
pub use background::Background;
pub use bundle::Bundle;
pub use command_line::CommandLine;
pub use containerd::Containerd;
pub use docker::Docker;
pub use engine::{Adopted, Console, Engine};
pub use output::Output;
pub use podman::Podman;
pub use remains::Remains;
pub use runtime::{Running, Runtime};
pub use skip::{only_husk, skip};
pub use terminal::Terminal;
