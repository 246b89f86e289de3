//! The targets, each a file of its own that says what it promises.

/// What the agent makes of configurations and of `/proc`.
mod agent;
/// Which stream is whose.
mod agent_streams;
/// The control socket's messages.
mod control;
/// Every device behind rings without sense.
mod devices;
/// The file server.
mod fs;
/// The kernel's file.
mod kernel;
/// The memory device's requests.
mod mem;
/// The register machine.
mod mmio;
/// A queue and its chains.
mod queue;
/// What the supervisor makes of bundles, and of all that a guest says.
mod supervisor;
/// The VMM's configuration.
mod vm_config;
/// Connections of the socket device.
mod vsock;

/// Acts on one input.
pub(crate) type Target = fn(&[u8]);

/// By name.
pub(crate) const ALL: &[(&str, Target)] = &[
    ("agent-config", agent::config),
    ("agent-proc", agent::proc_files),
    ("agent-streams", agent_streams::run),
    ("control", control::run),
    ("devices", devices::run),
    ("fs", fs::run),
    ("kernel", kernel::run),
    ("mem", mem::run),
    ("mmio", mmio::run),
    ("queue", queue::run),
    ("supervisor-config", supervisor::config),
    ("supervisor-connection", supervisor::connection),
    ("supervisor-events", supervisor::events),
    ("supervisor-proc", supervisor::proc_files),
    ("supervisor-replies", supervisor::replies),
    ("supervisor-stats", supervisor::stats),
    ("vm-config", vm_config::run),
    ("vsock", vsock::run),
];
