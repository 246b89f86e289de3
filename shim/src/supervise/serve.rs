//! Being a supervisor: one process, one thread, one sandbox.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener as StdUnixListener;

use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use super::{SERVING, ServeArgs, face, logs_to_caller};
use crate::config::{Config, ConfigError, Options};
use crate::deadlines::IDLE;
use crate::inherited;
use crate::polled;
use crate::rootfs::{RootfsError, Share};
use crate::sandbox::{self, Handle, Life, Origin, ReportedPid};
use crate::service;
use crate::state::{ProcessRef, Record, StateDir, StateError};

/// Why a supervisor did not come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Share(#[from] RootfsError),
    #[error("cannot listen for the Task API")]
    Listen(#[source] io::Error),
    #[error("cannot serve the Task API")]
    Serve(#[from] ttrpc::Error),
    #[error("cannot become a process of its own")]
    Detach(#[source] io::Error),
    #[error("cannot say that all is ready")]
    Report(#[source] io::Error),
}

/// Runs a supervisor in this process until its end. Its standard output hears how the beginning went. Returns the exit status of the
/// container that it ended with.
pub(crate) fn serve(options: &Options, args: &ServeArgs) -> Result<Option<u32>, ServeError> {
    let result = claim(options, args);
    if let Err(error) = &result {
        // Whoever started this process reads it, unless gone.
        let _ = writeln!(io::stdout(), "{}", chain(error));
    }
    result
}

/// The error with its sources, as `main` prints it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// From here on the id is taken, and its directory locked; a failure gives it back.
fn claim(options: &Options, args: &ServeArgs) -> Result<Option<u32>, ServeError> {
    let config = Config::load(options)?;
    let this = ProcessRef::this().map_err(ServeError::Detach)?;
    let state = StateDir::claim(&options.root, &args.id, Some(&Record::new(&args.id, this)))?;
    let result = detach(&state, logs_to_caller(options, args.owner))
        .map_err(ServeError::Detach)
        .and_then(|()| Ok(Share::enter(&state)?))
        .and_then(|share| {
            let origin = Origin {
                id: args.id.clone(),
                config,
                state: state.clone(),
                share: share.clone(),
                this,
                reported_pid: ReportedPid::Vmm,
            };
            run_as_told(origin, args).inspect_err(|_| share.leave())
        });
    if result.is_err()
        && let Err(e) = state.remove()
    {
        tracing::warn!("{}", chain(&e));
    }
    result
}

/// Leaves the starter's session and directory; standard error goes to the state directory, unless it is where to log.
fn detach(state: &StateDir, logs_to_caller: bool) -> io::Result<()> {
    // Refused to a leader of a process group only, which has been set apart already.
    let _ = rustix::process::setsid();
    rustix::process::chdir("/")?;
    if !logs_to_caller {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(state.log())?;
        rustix::stdio::dup2_stderr(&log)?;
    }
    // Every stream costs a descriptor or two, and the VMM, which inherits this, one per open file of the guest.
    inherited::raise_descriptor_limit()
}

/// One thread, and a second one where this process stands for a container.
fn run_as_told(mut origin: Origin, args: &ServeArgs) -> Result<Option<u32>, ServeError> {
    if !args.report_own_pid {
        return run(origin, args);
    }
    let args = args.clone();
    face::while_shown(move |face| {
        origin.reported_pid = ReportedPid::Supervisor(face);
        run(origin, &args)
    })
    .map_err(ServeError::Detach)?
}

fn run(origin: Origin, args: &ServeArgs) -> Result<Option<u32>, ServeError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServeError::Detach)?
        .block_on(attend(origin, args))
}

async fn attend(origin: Origin, args: &ServeArgs) -> Result<Option<u32>, ServeError> {
    let mut end = EndSignals::catch().map_err(ServeError::Detach)?;
    let listener = listen(&origin.state).map_err(ServeError::Listen)?;
    let sandbox = sandbox::start(origin);
    let mut server = Server::new()
        .add_listener(Listener::from(listener))
        .register_service(service::services(&sandbox));
    server.start().await?;
    tracing::debug!("serving");
    report_ready().map_err(ServeError::Report)?;
    let reason = tokio::select! {
        () = sandbox.reaches(|life| *life == Life::Gone) => None,
        () = over(&sandbox), if args.end_with_container => Some("its container has ended"),
        signal = end.next() => Some(signal),
        () = owner_gone(args.owner) => Some("its owner is gone"),
        () = idle(&sandbox) => Some("there is no container"),
    };
    if let Some(reason) = reason {
        tracing::info!("the sandbox ends: {reason}");
    }
    let exit = if args.end_with_container {
        sandbox.finish().await
    } else {
        sandbox.shutdown(true).await.map(|()| None)
    };
    if let Err(e) = &exit {
        tracing::error!("{}", chain(e));
    }
    // Delivers the answers that are on their way.
    server.shutdown().await?;
    let exit = exit.ok().flatten();
    Ok(exit.map(|exit| exit.status))
}

/// Waits until the sandbox's own container has exited.
async fn over(sandbox: &Handle) {
    sandbox.reaches(|life| *life == Life::Over).await;
}

fn listen(state: &StateDir) -> io::Result<UnixListener> {
    let path = state.socket();
    let listener = StdUnixListener::bind(&path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Says so and lets go of the pipe, whose reader waits for its end.
fn report_ready() -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{SERVING}")?;
    stdout.flush()?;
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}

/// Orders to end.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
    /// A console that goes away ends its container's terminal, not the supervisor.
    _hangup: Signal,
}

impl EndSignals {
    fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Waits for the end of the process `owner`; for ever when there is none.
async fn owner_gone(owner: Option<ProcessRef>) {
    let Some(owner) = owner else {
        return std::future::pending().await;
    };
    let Some(pidfd) = owner.open() else {
        return;
    };
    match polled::watch(pidfd) {
        // Readable is dead.
        Ok(pidfd) => drop(pidfd.readable().await),
        Err(e) => {
            tracing::error!("cannot watch the owner {owner}: {e}");
            std::future::pending().await
        }
    }
}

/// Waits until there has been no container for [`IDLE`].
async fn idle(sandbox: &Handle) {
    loop {
        sandbox.reaches(|life| *life == Life::Idle).await;
        let busy = sandbox.reaches(|life| *life != Life::Idle);
        if tokio::time::timeout(IDLE, busy).await.is_err() {
            return;
        }
    }
}
