//! The VMM: one process, one microVM. See `README.md` for the threat model, threads and the memory map.
//!
//! Modules in the order in which a boot passes them. It is a library so that its parts can be tested; `main.rs` is the program.

/// The C library's allocator.
#[expect(unsafe_code, reason = "mallopt")]
pub mod allocator;
/// The command line.
pub mod args;
/// What a kernel finds in memory.
pub mod boot;
/// Address to device.
pub mod bus;
/// Errors with what caused them.
pub mod causes;
/// Configuration to plan: every check.
pub mod config;
/// The thread that owns the machine.
pub mod control;
/// The virtio devices.
pub mod devices;
/// How the machine ended.
pub mod ending;
/// Files of the host, opened before the jail.
pub mod host;
/// Descriptors passed by number.
#[expect(unsafe_code, reason = "owns descriptors by number")]
pub mod inherited;
/// Namespaces, capabilities, limits.
#[expect(unsafe_code, reason = "unshares namespaces")]
pub mod jail;
/// KVM calls.
#[expect(unsafe_code, reason = "gives KVM memory and descriptors")]
pub mod kvm;
/// The guest's address map and interrupts.
pub mod layout;
/// The guest's log.
pub mod log;
/// Plan to machine.
pub mod machine;
/// Guest memory.
#[expect(unsafe_code, reason = "maps guest memory")]
pub mod memory;
/// Power off, reset, milestones.
pub mod power;
/// Whether KVM is fit on this host.
pub mod probe;
/// Everything, in order.
pub mod run;
/// System call filters.
pub mod seccomp;
/// Early console.
pub mod serial;
/// The thread that starts devices.
pub mod starter;
/// VM exit counters.
pub mod statistics;
/// Milestones.
pub mod timeline;
/// vCPU threads.
pub mod vcpu;
/// What a filter stops.
#[expect(
    unsafe_code,
    reason = "a signal handler that changes where it returns to"
)]
pub mod violation;
