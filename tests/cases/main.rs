//! The promises of the whole, each against the built executables and a real VM. Run by `hack/test`.

#![expect(clippy::unwrap_used, reason = "a case whose set-up fails has failed")]

mod bad_input;
mod bind_mounts;
mod check;
mod confinement;
mod conformance;
mod cpus;
mod environment;
mod exit_status;
mod kernel;
mod leaks;
mod limits;
mod metadata;
mod namespaces;
mod signals;
mod streams;
mod terminal;
mod tmpfs;
mod vm_failure;
