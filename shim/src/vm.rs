//! The VMM process: start it, talk to it, learn how it ended.
//!
//! ```text
//!   spawn ─► waits for its configuration ─► boots, runs ─► exits ─► VmEnd
//!            (its cgroup is entered here)
//! ```
//!
//! A VMM is told its machine on standard input and inherits two descriptors, the control socket and the console's pipe,
//! whose numbers are its arguments. It is the first process of a PID namespace of its own. It ends by itself when the control
//! socket closes, so a dead supervisor leaves none; one whose control is lost while it runs on is killed. How it ended is known
//! once, as a [`VmEnd`], to everybody who waits for it.

use std::fmt;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};

use nix::sched::CloneFlags;
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use vmm_api::{ExitCode, VmConfig};

use crate::cgroup::Cgroup;
use crate::deadlines::END_FOLLOWS;
use crate::network::Namespace;
use crate::polled;
use crate::state::ProcessRef;

mod console;
mod control;

pub(crate) use console::Console;
#[cfg(test)]
pub(crate) use control::open as open_control;
pub(crate) use control::{Arrived, Control, ControlError};

/// Console lines shown with the news that a VM died.
const LAST_LINES: usize = 16;

/// What the kernel prints when it gives up.
const PANIC_MARK: &str = "Kernel panic";

/// A running VMM; clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    pub(crate) process: ProcessRef,
    pub(crate) control: Control,
    pub(crate) console: Console,
    pidfd: Arc<OwnedFd>,
    /// Why the supervisor has killed it, if it has.
    killed_for: Arc<OnceLock<String>>,
    ended: watch::Receiver<Option<Arc<VmEnd>>>,
}

/// Why no VMM runs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("cannot start {}", program.display())]
    Start {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make the pipes and sockets of a VMM")]
    Wires(#[source] io::Error),
    #[error("cannot put the VMM into its cgroup")]
    Cgroup(#[source] io::Error),
    #[error("cannot hand the VMM its configuration")]
    Configure(#[source] io::Error),
}

/// How a VMM ended. Its text is one or more lines that say why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct VmEnd {
    pub(crate) reason: EndReason,
    /// The guest's last words, where they help.
    pub(crate) console: String,
}

/// Why a VMM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndReason {
    /// The agent powered the machine off.
    PoweredOff,
    /// The supervisor ordered it.
    Stopped,
    /// The guest's kernel gave up.
    Panicked,
    /// The guest reset itself.
    Reset,
    /// The machine could not be built, or the host failed it: the VMM's own line.
    Failed(String),
    /// The kernel killed the VMM because its cgroup had no memory left.
    OutOfMemory,
    /// The supervisor gave it up, for this reason.
    GivenUp(String),
    /// A signal ended the VMM.
    Killed(i32),
    /// A status that a VMM does not have.
    Unknown(i32),
}

impl fmt::Display for EndReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => out.write_str("the guest powered off"),
            Self::Stopped => out.write_str("the VM was stopped"),
            Self::Panicked => out.write_str("the guest kernel panicked"),
            Self::Reset => out.write_str("the guest reset itself"),
            Self::Failed(line) => write!(out, "the VMM failed: {line}"),
            Self::OutOfMemory => {
                out.write_str("the VMM was killed: its cgroup on the host ran out of memory")
            }
            Self::GivenUp(reason) => write!(out, "the VM was ended: {reason}"),
            Self::Killed(signal) => write!(out, "the VMM was killed by signal {signal}"),
            Self::Unknown(status) => write!(out, "the VMM exited with status {status}"),
        }
    }
}

impl fmt::Display for VmEnd {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(out)?;
        if !self.console.is_empty() {
            write!(out, "; from its console:\n{}", self.console)?;
        }
        Ok(())
    }
}

impl Vm {
    /// Starts `program` as the machine of `config`, inside `network` and `cgroup` before it does anything. Its events come with it.
    pub(crate) fn spawn(
        program: &Path,
        config: &VmConfig,
        cgroup: Option<&Cgroup>,
        network: Option<&Namespace>,
    ) -> Result<(Self, mpsc::Receiver<Arrived>), SpawnError> {
        let wires = Wires::new().map_err(SpawnError::Wires)?;
        let mut child = spawn_in_namespaces(wires.command(program), network).map_err(|source| {
            SpawnError::Start {
                program: program.to_owned(),
                source,
            }
        })?;
        let vm = Self::take(&mut child, wires).map_err(SpawnError::Wires);
        let told = vm.and_then(|vm| {
            if let Some(cgroup) = cgroup {
                cgroup.enter(vm.0.process.pid).map_err(SpawnError::Cgroup)?;
            }
            tell(&mut child, config).map_err(SpawnError::Configure)?;
            Ok(vm)
        });
        let (vm, events, ended, outputs) = match told {
            Ok(told) => told,
            Err(e) => {
                // It has not been told a machine yet: nothing is lost with it.
                let _ = child.kill();
                let _ = child.wait();
                return Err(e);
            }
        };
        tokio::spawn(watch_control(vm.clone()));
        tokio::spawn(watch_end(
            child,
            vm.clone(),
            cgroup.cloned(),
            outputs,
            ended,
        ));
        Ok((vm, events))
    }

    /// Sets up the supervisor's side of a new VMM.
    fn take(child: &mut Child, wires: Wires) -> io::Result<Taken> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        let process = ProcessRef::of(pid).ok_or_else(gone)?;
        let pidfd = Pid::from_raw(pid)
            .ok_or_else(gone)
            .and_then(|pid| Ok(rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?))?;
        let console = Console::default();
        let stderr = child.stderr.take().ok_or_else(gone)?;
        let outputs = Outputs {
            console: console.fill_from(wires.console.0)?,
            stderr: console::last_line_of(stderr.into())?,
        };
        let (control, events) = control::open(wires.control.0)?;
        let (ended, end) = watch::channel(None);
        let vm = Self {
            process,
            control,
            console,
            pidfd: Arc::new(pidfd),
            killed_for: Arc::default(),
            ended: end,
        };
        Ok((vm, events, ended, outputs))
    }

    /// A VM that is only its control socket, in this process; how it ends is the test's to say.
    #[cfg(test)]
    pub(crate) fn fake(control: Control) -> (Self, watch::Sender<Option<Arc<VmEnd>>>) {
        let process = ProcessRef::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let (ended, end) = watch::channel(None);
        let vm = Self {
            process,
            control,
            console: Console::default(),
            pidfd: Arc::new(process.open().unwrap()),
            killed_for: Arc::default(),
            ended: end,
        };
        (vm, ended)
    }

    /// Waits for the end.
    pub(crate) async fn ended(&self) -> Arc<VmEnd> {
        let mut ended = self.ended.clone();
        let end = ended.wait_for(Option::is_some).await.map(|end| end.clone());
        match end {
            Ok(Some(end)) => end,
            // The watcher task cannot go away before it has spoken, other than with the whole runtime.
            _ => std::future::pending().await,
        }
    }

    /// The end, when it has come.
    pub(crate) fn end(&self) -> Option<Arc<VmEnd>> {
        self.ended.borrow().clone()
    }

    /// Kills the VMM, whose end then has this reason.
    pub(crate) fn give_up(&self, reason: impl Into<String>) {
        // The first reason is the cause of later ones.
        let _ = self.killed_for.set(reason.into());
        self.kill();
    }

    /// Kills the VMM; for one that does not end when told to.
    pub(crate) fn kill(&self) {
        if let Err(e) = rustix::process::pidfd_send_signal(&*self.pidfd, Signal::KILL) {
            tracing::debug!("the VMM to be killed is gone: {e}");
        }
    }
}

type Taken = (
    Vm,
    mpsc::Receiver<Arrived>,
    watch::Sender<Option<Arc<VmEnd>>>,
    Outputs,
);

/// The tasks that read what a VMM says.
struct Outputs {
    console: JoinHandle<()>,
    stderr: JoinHandle<String>,
}

/// Descriptor pairs: the supervisor's end and the VMM's.
struct Wires {
    control: (OwnedFd, OwnedFd),
    console: (OwnedFd, OwnedFd),
}

impl Wires {
    fn new() -> io::Result<Self> {
        let control = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let (reader, writer) = io::pipe()?;
        let wires = Self {
            control,
            console: (reader.into(), writer.into()),
        };
        // Nothing else is executed before the VMM's ends are closed here.
        rustix::io::fcntl_setfd(&wires.control.1, FdFlags::empty())?;
        rustix::io::fcntl_setfd(&wires.console.1, FdFlags::empty())?;
        Ok(wires)
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .arg("--control-fd")
            .arg(self.control.1.as_raw_fd().to_string())
            .arg("--console-fd")
            .arg(self.console.1.as_raw_fd().to_string())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }
}

/// Starts the program as the first process of a PID namespace of its own, which is where a VMM's jail begins, and in the network
/// namespace that the bundle names. Which namespaces children are made in belongs to the thread that makes them, and with a PID
/// namespace of its own a thread makes no threads: so a short-lived one does it. The child's pid is that of this process's
/// namespace, and the child is this process's.
fn spawn_in_namespaces(mut command: Command, network: Option<&Namespace>) -> io::Result<Child> {
    const STACK_BYTES: usize = 64 * 1024;
    let spawn = move || {
        if let Some(network) = network {
            network.enter()?;
        }
        // Unit tests need no privileges; their programs are no VMMs.
        if !cfg!(test) || nix::unistd::geteuid().is_root() {
            nix::sched::unshare(CloneFlags::CLONE_NEWPID)?;
        }
        command.spawn()
    };
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, spawn)?
            .join()
            .map_err(|_| io::Error::other("the thread that starts it panicked"))?
    })
}

/// Writes the configuration and closes standard input. A pipe holds all of it, so this does not block. A VMM that has ended
/// before is no error here: its end says why.
fn tell(child: &mut Child, config: &VmConfig) -> io::Result<()> {
    let text = serde_json::to_vec(config)?;
    match child.stdin.take() {
        Some(mut stdin) => match stdin.write_all(&text) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e),
            _ => Ok(()),
        },
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

/// A VMM without control does not run on.
async fn watch_control(vm: Vm) {
    let loss = vm.control.lost().await;
    if tokio::time::timeout(END_FOLLOWS, vm.ended()).await.is_err() {
        vm.give_up(loss.to_string());
    }
}

/// Waits for the VMM, then says how it ended.
async fn watch_end(
    mut child: Child,
    vm: Vm,
    cgroup: Option<Cgroup>,
    outputs: Outputs,
    ended: watch::Sender<Option<Arc<VmEnd>>>,
) {
    let status = match wait(&mut child, &vm.pidfd).await {
        Ok(status) => status,
        Err(e) => {
            tracing::error!("cannot wait for the VMM: {e}");
            return;
        }
    };
    // Both end with the VMM, which has no children.
    let line = outputs.stderr.await.unwrap_or_default();
    if let Err(e) = outputs.console.await {
        tracing::warn!("the console's reader failed: {e}");
    }
    if status.signal().is_some() && !line.is_empty() {
        tracing::error!("the VMM, before it was killed: {line}");
    }
    let out_of_memory = cgroup.is_some_and(|cgroup| cgroup.had_oom_kill());
    let panic = vm.console.lines_around(PANIC_MARK, LAST_LINES);
    let reason = match vm.killed_for.get() {
        Some(reason) if status.signal() == Some(Signal::KILL.as_raw()) && !out_of_memory => {
            EndReason::GivenUp(reason.clone())
        }
        _ => reason_of(status, line, out_of_memory, panic.is_some()),
    };
    let console = match (&reason, panic) {
        (EndReason::PoweredOff | EndReason::Stopped, _) => String::new(),
        (EndReason::Panicked, Some(lines)) => lines,
        _ => vm.console.last_lines(LAST_LINES),
    };
    ended.send_replace(Some(Arc::new(VmEnd { reason, console })));
}

async fn wait(child: &mut Child, pidfd: &OwnedFd) -> io::Result<ExitStatus> {
    let exited = polled::watch(pidfd.try_clone()?)?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        exited.readable().await?.clear_ready();
    }
}

fn reason_of(status: ExitStatus, line: String, out_of_memory: bool, panicked: bool) -> EndReason {
    if let Some(signal) = status.signal() {
        return if out_of_memory && signal == Signal::KILL.as_raw() {
            EndReason::OutOfMemory
        } else {
            EndReason::Killed(signal)
        };
    }
    let code = status.code().unwrap_or_default();
    match ExitCode::from_status(code) {
        Some(ExitCode::PoweredOff) => EndReason::PoweredOff,
        Some(ExitCode::Stopped) => EndReason::Stopped,
        Some(ExitCode::Reset) if panicked => EndReason::Panicked,
        Some(ExitCode::Reset) => EndReason::Reset,
        Some(ExitCode::Failed | ExitCode::Usage) => EndReason::Failed(line),
        None => EndReason::Unknown(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: u8) -> ExitStatus {
        ExitStatus::from_raw(i32::from(code) << 8)
    }

    fn reason(status: ExitStatus, out_of_memory: bool, panicked: bool) -> EndReason {
        reason_of(status, "no such kernel".into(), out_of_memory, panicked)
    }

    #[test]
    fn every_end_has_its_reason() {
        let killed = ExitStatus::from_raw(9);
        let aborted = ExitStatus::from_raw(6);
        assert_eq!(reason(exited(0), false, false), EndReason::PoweredOff);
        assert_eq!(
            reason(exited(1), false, false),
            EndReason::Failed("no such kernel".into())
        );
        assert_eq!(reason(exited(3), false, true), EndReason::Panicked);
        assert_eq!(reason(exited(3), false, false), EndReason::Reset);
        assert_eq!(reason(exited(4), false, false), EndReason::Stopped);
        assert_eq!(reason(exited(9), false, false), EndReason::Unknown(9));
        assert_eq!(reason(killed, false, false), EndReason::Killed(9));
        assert_eq!(reason(killed, true, false), EndReason::OutOfMemory);
        assert_eq!(reason(aborted, true, false), EndReason::Killed(6));
    }

    #[tokio::test]
    async fn a_vmm_that_fails_is_reported_with_its_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("vmm");
        let script =
            "#!/bin/sh\ncat >/dev/null; echo starting >&2; echo 'no /dev/kvm' >&2; exit 1\n";
        write_program(&program, script);
        let (vm, mut events) = Vm::spawn(&program, &config(), None, None).unwrap();
        assert!(events.recv().await.is_none());
        let end = vm.ended().await;
        assert_eq!(end.reason, EndReason::Failed("no /dev/kvm".into()));
    }

    #[tokio::test]
    async fn a_panic_is_reported_with_the_consoles_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("vmm");
        let script = "#!/bin/sh\ncat >/dev/null\n\
            echo 'Kernel panic - not syncing: no init' >/proc/self/fd/$4\nexit 3\n";
        write_program(&program, script);
        let (vm, _events) = Vm::spawn(&program, &config(), None, None).unwrap();
        let end = vm.ended().await;
        assert_eq!(end.reason, EndReason::Panicked);
        assert_eq!(end.console, "Kernel panic - not syncing: no init");
    }

    #[tokio::test]
    async fn a_killed_vmm_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("vmm");
        write_program(&program, "#!/bin/sh\ncat >/dev/null; exec sleep 60\n");
        let (vm, _events) = Vm::spawn(&program, &config(), None, None).unwrap();
        vm.kill();
        assert_eq!(vm.ended().await.reason, EndReason::Killed(9));
    }

    #[test]
    fn a_missing_vmm_is_named() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let error = runtime
            .block_on(async { Vm::spawn(Path::new("/none/husk-vmm"), &config(), None, None) })
            .unwrap_err();
        assert_eq!(error.to_string(), "cannot start /none/husk-vmm");
    }

    fn write_program(path: &Path, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn config() -> VmConfig {
        VmConfig {
            id: "test".into(),
            cpus: vmm_api::Cpus { boot: 1, max: 1 },
            memory_mib: 64,
            memory_max_mib: 64,
            kernel: "/none".into(),
            initrd: "/none".into(),
            cmdline: Vec::new(),
            vsock: vmm_api::Vsock {
                cid: 3,
                host_ports: vec![1024],
            },
            share: None,
            jail: vmm_api::Jail::default(),
        }
    }
}
