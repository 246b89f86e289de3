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
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};

use super::bundle::{Bundle, ContainerArgs};
use super::foreground::{
    LOST_STATUS, accompany, attend, block_on, exit_code, no_program, unless_ended, write_pid,
};
use super::session::{self, Background};
use super::signals::Signals;
use super::tasks::{Streams, Task};
use super::{Failure, console, remains};
use crate::cgroup::{self, Cgroup};
use crate::config::Options;
use crate::rootfs::Trees;
use crate::sandbox::StandIn;
use crate::state::{ContainerRecord, ProcessRef, Record, StateDir, Status, now_ns};
use crate::supervise::{self, Face, View, Volume};
use crate::terminal::Terminal;

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
    home: Option<Cgroup>,
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
    if let Some(path) = &args.pid_file {
        words.extend(["--pid-file".into(), path.clone().into()]);
    }
    if start {
        words.push("--detach".into());
    }
    words.push(args.id.clone().into());
    let background = Background {
        verb: if start { "run" } else { "create" },
        words,
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
    if matches!(role, Role::Background { .. }) {
        session::enter(has_terminal)?;
    }
    let terminal = if has_terminal {
        Some(Terminal::open(std::io::stdin().as_fd())?)
    } else {
        None
    };
    let member = Member {
        options: options.clone(),
        id: args.id.clone(),
        pid_file: args.pid_file.clone(),
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
        let place = self.claim()?;
        let created = self.create(face, &task, &mut signals).await;
        let was_created = created.is_ok();
        let lived = match created {
            Ok(()) => self.run(face, &task, &place, &mut signals).await,
            Err(failure) => Err(failure),
        };
        // Delivers its last output.
        if let Err(error) = task.delete().await {
            tracing::debug!(%error, "the container was not deleted by itself");
        }
        match (lived, self.role) {
            (Ok(status), Role::Kept | Role::Background { .. }) => {
                place.end(status)?;
                Ok(exit_code(status))
            }
            (lived, _) => {
                // What could not be created has had its hooks.
                if was_created {
                    remains::poststop(&place.record).await;
                }
                place.remove()?;
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
        let pid = i32::try_from(std::process::id())?;
        let this = ProcessRef::of(pid).context("cannot read /proc")?;
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
        let mut place = Place {
            state: StateDir::create(root, &self.id)?,
            record: Record {
                id: self.id.clone(),
                bundle: self.bundle.path.clone(),
                created_ns: container.created_ns,
                sandbox: Some(sandbox.unwrap_or_else(|| self.sandbox.clone())),
                supervisor: this,
                vmm: None,
                pid: Some(pid),
                cgroup: None,
                containers: vec![container],
                ended: None,
            },
            cgroup: None,
            home: None,
        };
        match place.enter_cgroup(host.cgroups_path.as_deref()) {
            Ok(()) => Ok(place),
            Err(error) => {
                place.remove()?;
                Err(error)
            }
        }
    }

    async fn create(&self, face: &Face, task: &Task, signals: &mut Signals) -> Result<(), Failure> {
        let (path, host) = (&self.bundle.path, &self.bundle.host);
        let trees = Trees::copy(path, host, true)?;
        face.show_network(host.network.clone())
            .await
            .context("cannot enter the network namespace")?;
        let streams = Streams::own(host.terminal);
        let stand_in = StandIn {
            pid: i32::try_from(std::process::id())?,
            files: trees.lent().context("there is no root file system")?,
        };
        let created = task.create_member(path, streams, &stand_in);
        unless_ended(signals, created).await?.map_err(no_program)?;
        Ok(())
    }

    /// The container's files, built on an empty directory.
    fn view(&self, staging: PathBuf) -> View {
        let (bundle, host) = (&self.bundle.path, &self.bundle.host);
        let volumes = host.binds.iter().map(|bind| Volume {
            source: bundle.join(&bind.source),
            destination: bind.destination.clone(),
            read_only: bind.read_only,
        });
        View {
            rootfs: bundle.join(&host.rootfs),
            volumes: volumes.collect(),
            staging,
        }
    }

    /// From its creation to its exit status.
    async fn run(
        &self,
        face: &Face,
        task: &Task,
        place: &Place,
        signals: &mut Signals,
    ) -> Result<u32, Failure> {
        face.show(self.view(place.state.shared()))
            .await
            .context("cannot show the container on the host")?;
        write_pid(self.pid_file.as_deref(), std::process::id())?;
        let terminal = self.terminal.as_ref();
        let Role::Background { report_to, start } = self.role else {
            return attend(task, terminal, signals, || Ok(())).await;
        };
        if start {
            unless_ended(signals, task.start())
                .await?
                .map_err(no_program)?;
        }
        session::let_go().context("cannot let go of the streams")?;
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
        self.cgroup = cgroup::make(path, &self.record.id)?;
        if let Some(cgroup) = &self.cgroup {
            self.home = cgroup.adopt(self.record.supervisor.pid);
            self.record.cgroup = Some(cgroup.dir().to_owned());
        }
        Ok(self.state.write(&self.record)?)
    }

    fn leave_cgroup(&mut self) {
        if let Some(cgroup) = self.cgroup.take() {
            cgroup.release(self.record.supervisor.pid, self.home.as_ref());
        }
    }

    /// Leaves the record of a container that has exited.
    fn end(mut self, status: u32) -> anyhow::Result<()> {
        self.leave_cgroup();
        let container = self.record.containers.first_mut();
        let container = container.ok_or_else(|| anyhow!("the record has no container"))?;
        container.status = Status::Stopped;
        container.exit_status = Some(status);
        Ok(self.state.write(&self.record)?)
    }

    fn remove(mut self) -> anyhow::Result<()> {
        self.leave_cgroup();
        Ok(self.state.remove()?)
    }
}
