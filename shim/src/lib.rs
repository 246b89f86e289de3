//! husk runs OCI containers, each in a KVM microVM of its own.
//!
//! This is the host side: the command line people and engines use, and the supervisor that a command starts for
//! each sandbox (`husk serve`, hidden). A command says what went wrong in one line, `husk: error: doing this: doing that: reason`,
//! and exits with 1; `husk run` otherwise exits with the container's status. It is a library for its executable, and for those who
//! feed [`guest`] with hostile bytes.

/// The files a sandbox is made of, and whether they are what they should be.
mod assets;
/// The verbs, one file each.
mod cli;
/// What the user told husk: common options and the configuration file.
mod config;
/// Descriptors that came with this process.
#[expect(unsafe_code, reason = "close_range is not in the safe libraries")]
mod inherited;
/// Whether this host's KVM is fit.
mod kvm;
/// The log file.
mod log;
/// The user's terminal: its size, and raw mode with its end.
mod terminal;

/// The supervisor's process: start one, connect to one, be one.
mod supervise;

/// The agent's client.
mod agent;
/// The sandbox's cgroup on the host.
mod cgroup;
/// The host's record of one container.
mod container;
/// How long each thing may take.
mod deadlines;
/// What happens in a sandbox by itself.
mod events;
/// What reads a stranger's bytes, for fuzzing.
#[cfg(fuzzing)]
pub mod fuzzing;
/// Everything that a guest says, bounded and cleaned.
pub mod guest;
/// Programs of the host around a container's life.
#[expect(
    unsafe_code,
    reason = "a limit of a program about to be executed is set between fork and exec"
)]
mod hooks;
/// Mounts whose files have other owners when seen through them.
mod id_map;
/// What containerd's Task API has no method for.
mod inspect;
/// Attributes of mounts that are attached nowhere yet.
#[expect(unsafe_code, reason = "mount_setattr is not in the safe libraries")]
mod mount_attributes;
/// The sandbox's network namespace.
mod network;
/// Descriptors the runtime waits for.
#[expect(
    unsafe_code,
    reason = "tokio leaves it to the caller that a descriptor stays open"
)]
mod polled;
/// The host's record of one process.
mod process;
/// A container's files, as mounts in the shared directory.
mod rootfs;
/// The one owner of a sandbox: its VM, its agent, its containers.
mod sandbox;
/// containerd's Task API, translated.
mod service;
/// A bundle's configuration: the guest's part and the host's.
mod shm;

mod spec;
/// The state directory.
mod state;
/// What a guest says of its cgroups, in containerd's terms.
mod stats;
/// A process's streams, between the outside and the guest.
mod stdio;
/// Work that a file system can hold up, off the runtime's thread.
mod storage;
/// The VMM process and its control socket.
mod vm;

use std::process::ExitCode;

/// What the executable does.
#[must_use]
pub fn main() -> ExitCode {
    let command = match cli::parse() {
        Ok(command) => command,
        Err(code) => return code,
    };
    let options = command.options.clone();
    match cli::run(command) {
        Ok(code) => code,
        Err(failure) => {
            let message = format!("{:#}", failure.error);
            log::last_words(&options, &message);
            // Scripts that call runtimes look for the word.
            eprintln!("husk: error: {message}");
            failure.code
        }
    }
}
