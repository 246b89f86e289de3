//! The promises of the whole, each against the built executables and a real VM. Run by `hack/test`.

#![expect(clippy::unwrap_used, reason = "a case whose set-up fails has failed")]

mod bad_input;
mod bind_mounts;
mod check;
mod clock;
mod confinement;
mod conformance;
mod console;
mod containerd;
mod cpus;
mod crash;
mod data;
mod detach;
mod docker;
mod engines;
mod environment;
mod events;
mod exit_status;
mod features;
mod gc;
mod hooks;
mod hostile_container;
mod hostile_guest;
mod id_maps;
mod jail;
mod kernel;
mod leaks;
mod limits;
mod liveness;
mod metadata;
mod namespaces;
mod pause;
mod podman;
mod ps;
mod sandboxes;
mod share;
mod share_host;
mod signals;
mod size;
mod states;
mod streams;
mod terminal;
mod tmpfs;
mod update;
mod vm_failure;
