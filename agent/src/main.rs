//! The agent: PID 1 of a guest, which makes containers for the host.
//!
//! One executable, three ways in: PID 1; a child that becomes a container's process; and, for tests on a host, a server on Unix sockets.

mod cgroup;
mod child;
mod cmdline;
mod container;
mod cpus;
#[expect(unsafe_code, reason = "bpf has no safe wrapper")]
mod device_rules;
#[expect(unsafe_code, reason = "ioctls of the random device")]
mod entropy;
mod init;
mod log;
mod machine;
mod network;
mod oom;
mod plan;
#[expect(unsafe_code, reason = "an I/O port")]
mod power;
mod process;
mod processes;
mod reaper;
mod report;
mod reserve;
mod sandbox;
mod serve;
mod server;
#[expect(unsafe_code, reason = "signals that have no name")]
mod signal;
mod spawn;
mod status;
mod stdio;
mod storage;
mod streams;
mod syscall;
mod transport;
#[expect(unsafe_code, reason = "the runtime trusts its caller with descriptors")]
mod watch;
mod worker;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let role = args.next();
    match role.as_deref() {
        Some(spawn::CHILD_ROLE) => match child::Inherited::take(args) {
            Some(inherited) => child::run(inherited),
            None => ExitCode::FAILURE,
        },
        _ if std::process::id() == 1 => pid_1(),
        Some("serve") => match (args.next(), args.next()) {
            (Some(directory), Some(cgroup)) => {
                report(serve::directory(Path::new(&directory), &cgroup))
            }
            _ => usage(),
        },
        _ => usage(),
    }
}

/// Never returns to the kernel: the machine goes off.
fn pid_1() -> ExitCode {
    let code = match init::set_up() {
        Ok(()) => report(serve::guest()),
        failed => report(failed),
    };
    init::power_off();
    code
}

fn usage() -> ExitCode {
    log::write(
        "",
        format_args!("this is PID 1 of a husk guest; elsewhere: husk-agent serve DIRECTORY CGROUP"),
    );
    ExitCode::FAILURE
}

/// The one place that prints an error, with all that caused it.
fn report<E: Error>(result: Result<(), E>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    log::write("error: ", format_args!("{}", log::line_of(&error)));
    ExitCode::FAILURE
}
