//! Containers on this host's kernel: the agent in its server mode, without a machine around it.
//!
//! Needs root, cgroup v2 at `/sys/fs/cgroup`, and busybox-static.

#![allow(clippy::unwrap_used, reason = "tests")]

mod agent;
mod control;
mod hostile;
mod lifecycle;
mod options;
mod places;
mod setup;
mod streams;
