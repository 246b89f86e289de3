//! A container in the sandbox of another: this process stands for it on the host, as a supervisor does for a sandbox.
//!
//! ```text
//!   husk create, run --detach ── start ──► the same verb with --report-to N, in the background; husk run: in the foreground
//!
//!   claims the id ─► enters the cgroup and the network ─► the sandbox's supervisor creates ─► shows the files ─► [start]
//!       ─► waits for the exit, passing signals on ─► in the background: the record says "stopped", for `husk delete`
//!                                                    in the foreground: deleted          ─► ends with the container's status
//! ```
//!
//! It lends its streams and the container's files to the sandbox's supervisor, which ends the container when this process is gone. The container ends with its sandbox,
//! too. Ways to fail: the sandbox is not there, or those of its supervisor; then nothing is left.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use super::bundle::{Bundle, ContainerArgs};
use super::foreground::{
    LOST_STATUS, accompany, attend, block_on, exit_code, no_program, unless_ended, write_pid,
};
use super::session::{self, Background};
use super::signals::Signals;
use super::tasks::{Streams, Task};
use super::{Failure, console, notify, remains};
use crate::cgroup::{self, Cgroup, Home};
use crate::config::Options;
use crate::inherited;
use crate::rootfs::Trees;
use crate::sandbox::StandIn;
use crate::service::CreateOptions;
use crate::state::{ContainerRecord, ProcessRef, Record, StateDir, Status, now_ns};
use crate::supervise::{self, Face};
use crate::terminal::Terminal;

const NO_ROOTFS: &str = "there is no root file system";

/// What this process is to do for its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Run it and remove it.
    Foreground,
    /// Run it, and leave its record.
    Kept,
    /// Create it, and start it if `start`; say so to descriptor `report_to`; leave its record.
    Background { report_to: i32, start: bool },
}

/// The container, as this process was told.
struct Member {
    options: Options,
    id: String,
    pid_file: Option<PathBuf>,
    bundle: Bundle,
    sandbox: String,
    role: Role,
    terminal: Option<Terminal>,
}

/// What it has on this host.
struct Place {
    state: StateDir,
    record: Record,
    cgroup: Option<Cgroup>,
    /// Where this process was before it was in the cgroup.
    home: Option<Home>,
}

/// Starts the process that stands for a container in the background. Returns when that is created, or started.
pub(super) fn in_background(
    options: &Options,
    args: &ContainerArgs,
    bundle: &Bundle,
    start: bool,
) -> anyhow::Result<ExitCode> {
    let has_terminal = bundle.host.terminal;
    let terminal = console::of_background(has_terminal, args.console_socket.as_deref())?;
    let mut words: Vec<OsString> = vec!["--bundle".into(), bundle.path.clone().into()];
    if start {
        words.push("--detach".into());
    }
    let background = Background {
        verb: if start { "run" } else { "create" },
        options: words,
        pid_file: args.pid_file.as_deref(),
        id: &args.id,
        kept: Vec::new(),
        terminal,
    };
    session::start(options, background)
}

/// Stands for a container until its end.
pub(super) fn stand(
    options: &Options,
    args: &ContainerArgs,
    bundle: Bundle,
    sandbox: &str,
    role: Role,
) -> Result<ExitCode, Failure> {
    let has_terminal = bundle.host.terminal;
    let mut options = options.clone();
    options.root = std::path::absolute(&options.root).context("cannot find the root")?;
    let pid_file = args.pid_file.as_deref().map(std::path::absolute);
    let in_background = matches!(role, Role::Background { .. });
    if in_background {
        session::enter(has_terminal)?;
        // What it was given before is for nobody else.
        inherited::close_on_exec().context("cannot close descriptors")?;
        rustix::process::chdir("/").context("cannot leave the working directory")?;
    }
    let terminal = match (has_terminal, in_background) {
        (false, _) => None,
        (true, false) => Some(Terminal::find()?),
        (true, true) => Some(Terminal::given()?),
    };
    let member = Member {
        options,
        id: args.id.clone(),
        pid_file: pid_file.transpose().context("cannot find the pid file")?,
        bundle,
        sandbox: sandbox.to_owned(),
        role,
        terminal,
    };
    supervise::while_shown(move |face| block_on(member.live(&face)))
        .context("cannot stand for the container")?
}

impl Member {
    async fn live(&self, face: &Face) -> Result<ExitCode, Failure> {
        let mut signals = Signals::catch().context("cannot catch signals")?;
        let supervisor = supervise::connect(&self.options.root, &self.sandbox)
            .await
            .with_context(|| format!("there is no sandbox {} to be in", self.sandbox))?;
        let task = Task::init(supervisor, &self.id);
        let mut place = self.claim()?;
        let lived = match self.create(face, &task, &place, &mut signals).await {
            Ok(()) => {
                place.now(Status::Created, None);
                self.run(face, &task, &place, &mut signals).await
            }
            Err(failure) => Err(failure),
        };
        if let Ok(status) = &lived {
            place.now(Status::Stopped, Some(*status));
        }
        // Delivers its last output, and ends what has not ended.
        let was_there = remains::leave_sandbox(&self.options, &place.record).await;
        place.leave_cgroup();
        match (lived, self.role) {
            (Ok(status), Role::Kept | Role::Background { .. }) => {
                place.now(Status::Stopped, Some(status));
                Ok(exit_code(status))
            }
            (lived, _) => {
                if let Err(error) = place.state.remove() {
                    tracing::error!("{:#}", anyhow::Error::from(error));
                }
                if remains::owes_hooks(&place.record, was_there) {
                    remains::poststop(&place.record).await;
                }
                lived.map(exit_code)
            }
        }
    }

    /// Takes the id, and what engines look for: a record, and a cgroup with this process in it.
    fn claim(&self) -> anyhow::Result<Place> {
        let (root, host) = (&self.options.root, &self.bundle.host);
        let of = StateDir::open(root, &self.sandbox)?.read()?;
        // A member's own id names its sandbox as well.
        let sandbox = of.and_then(|record| record.sandbox);
        let this = ProcessRef::this().context("cannot read /proc")?;
        let container = ContainerRecord {
            id: self.id.clone(),
            bundle: self.bundle.path.clone(),
            rootfs: self.bundle.path.join(&host.rootfs),
            status: Status::Creating,
            created_ns: now_ns(),
            exit_status: None,
            annotations: host.annotations.clone(),
            poststop: host.hooks.poststop.clone(),
            stand_in: None,
        };
        let record = Record {
            bundle: self.bundle.path.clone(),
            created_ns: container.created_ns,
            sandbox: Some(sandbox.unwrap_or_else(|| self.sandbox.clone())),
            pid: Some(this.pid),
            containers: vec![container],
            ..Record::new(&self.id, this)
        };
        let mut place = Place {
            state: StateDir::claim(root, &self.id, Some(&record))?,
            record,
            cgroup: None,
            home: None,
        };
        if let Err(error) = place.enter_cgroup(host.cgroups_path.as_deref()) {
            place.leave_cgroup();
            place.state.remove()?;
            return Err(error);
        }
        Ok(place)
    }

    async fn create(
        &self,
        face: &Face,
        task: &Task,
        place: &Place,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        let (path, host) = (&self.bundle.path, &self.bundle.host);
        let trees = Trees::copy(path, host, true, None)?;
        face.show_network(host.network.clone())
            .await
            .context("cannot enter the network namespace")?;
        let streams = Streams::own(host.terminal)?;
        let stand_in = StandIn {
            process: place.record.supervisor,
            files: trees.lent().context(NO_ROOTFS)?,
        };
        let with = CreateOptions {
            stand_in: Some(stand_in),
            ..notify::options()
        };
        let created = task.create(path, streams, &with);
        unless_ended(signals, created).await?.map_err(no_program)?;
        Ok(())
    }

    /// From its creation to its exit status.
    async fn run(
        &self,
        face: &Face,
        task: &Task,
        place: &Place,
        signals: &mut Signals,
    ) -> Result<u32, Failure> {
        let host = &self.bundle.host;
        // Another copy: the first is attached by now.
        let view =
            Trees::copy(&self.bundle.path, host, true, None)?.into_view(host, place.state.shared());
        face.show(view.context(NO_ROOTFS)?)
            .await
            .context("cannot show the container on the host")?;
        write_pid(self.pid_file.as_deref(), std::process::id())?;
        let terminal = self.terminal.as_ref();
        let Role::Background { report_to, start } = self.role else {
            let started = || {
                notify::beside(&self.options, &self.id);
                Ok(())
            };
            return attend(task, terminal, signals, started).await;
        };
        if start {
            unless_ended(signals, task.start())
                .await?
                .map_err(no_program)?;
        }
        session::let_go(&place.state.log()).context("cannot let go of the streams")?;
        session::report(report_to).context("cannot say that the container is there")?;
        match accompany(task, terminal, signals).await {
            Ok(status) => Ok(status),
            Err(Failure { error, .. }) => {
                tracing::error!("{error:#}");
                Ok(LOST_STATUS)
            }
        }
    }
}

impl Place {
    fn enter_cgroup(&mut self, path: Option<&std::path::Path>) -> anyhow::Result<()> {
        self.cgroup = cgroup::make(path, &self.state)?;
        if let Some(cgroup) = &self.cgroup {
            self.home = cgroup.adopt(self.record.supervisor.pid);
            self.record.cgroup = Some(cgroup.named().clone());
        }
        Ok(self.state.write(&self.record)?)
    }

    fn leave_cgroup(&mut self) {
        if let Some(cgroup) = self.cgroup.take()
            && cgroup.release(self.record.supervisor.pid, self.home.as_ref())
        {
            self.record.cgroup = None;
        }
    }

    /// Writes down where the container is in its life. What cannot be written makes a later clean-up poorer, no more.
    fn now(&mut self, status: Status, exit_status: Option<u32>) {
        for container in &mut self.record.containers {
            (container.status, container.exit_status) = (status, exit_status);
        }
        if let Err(error) = self.state.write(&self.record) {
            tracing::error!("{:#}", anyhow::Error::from(error));
        }
    }
}
