//! Create: a bundle becomes a container that waits for its start. The first one boots the VM.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::api;
use nix::libc::SIGKILL;
use oci_spec::runtime::LinuxNamespaceType;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{BootError, Handle, Machine, ReportedPid, Sandbox, TaskError};
use crate::container::Container;
use crate::events::Event;
use crate::hooks::{self, HookState};
use crate::network;
use crate::process::{Phase, ProcessKey};
use crate::rootfs::{ContainerFiles, LentTrees, RootfsError, Share, Trees};
use crate::shm;
use crate::spec::{self, HostPart, Shared, SpecError, Split};
use crate::state::{ProcessRef, Status, check_id};
use crate::stdio::{Console, Ids, Lender, Outside, ProcessStreams, Stdio};
use crate::supervise::Face;

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct CreateRequest {
    pub(crate) id: String,
    /// Absolute.
    pub(crate) bundle: PathBuf,
    /// Mounts that make the root file system; none: it is `root.path`.
    pub(crate) rootfs: Vec<api::Mount>,
    pub(crate) stdio: Stdio,
    /// The process that stands for it on this host, and lends it its streams: the container is a member of a sandbox that is another's,
    /// and ends with that process.
    pub(crate) stand_in: Option<StandIn>,
    /// Whether it is to have a socket by which its program says that it is ready.
    pub(crate) notify: bool,
}

/// See [`CreateRequest::stand_in`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct StandIn {
    pub(crate) process: ProcessRef,
    /// The container's files, lent by that process.
    pub(crate) files: LentTrees,
}

/// What the owner gave the operation to work with.
pub(super) struct Begun {
    handle: Handle,
    machine: Machine,
    share: Share,
    ids: Ids,
    hook_state: HookState,
    /// The pid to report.
    pid: i32,
    /// Whether engines find the container's network by that pid.
    has_network: bool,
    /// Where the container is to be shown, if that is to be done here.
    face: Option<Face>,
    /// Whether the VM has been made for another one.
    is_further: bool,
    /// Namespaces that it shares with others, by their paths in the guest.
    pub(super) joined: Vec<(LinuxNamespaceType, PathBuf)>,
}

/// What a container is made of when it has been made.
pub(super) struct Made {
    pub(super) files: ContainerFiles,
    pub(super) streams: ProcessStreams,
    /// Its init process in the guest.
    pub(super) guest_pid: u32,
    /// What stands for it, if it is a member.
    pub(super) stand_in: Option<Lender>,
}

/// Why it has not been made.
pub(super) struct Unmade {
    error: TaskError,
    /// The guest's half of it may be there, or come to be.
    is_in_guest: bool,
    /// To be taken away from the guest.
    files: Option<ContainerFiles>,
}

impl<E: Into<TaskError>> From<E> for Unmade {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            is_in_guest: false,
            files: None,
        }
    }
}

/// What the operation has to remove when it has ended.
pub(super) enum Left {
    Nothing,
    Files(ContainerFiles),
    /// The container itself, which may be there or come to be.
    Perhaps(Option<ContainerFiles>),
}

impl Left {
    fn of(files: Option<ContainerFiles>) -> Self {
        files.map_or(Self::Nothing, Self::Files)
    }
}

impl Handle {
    /// Makes a container. Returns the pid to report for it. On an error nothing of it is left.
    pub(crate) async fn create(&self, request: CreateRequest) -> Result<i32, TaskError> {
        self.run(create(self.clone(), request)).await
    }
}

async fn create(handle: Handle, mut request: CreateRequest) -> Result<i32, TaskError> {
    let split = {
        let request = request.clone();
        let bundle = request.bundle.display().to_string();
        let read = move || read_bundle(&request);
        handle.storage.run(&bundle, read).await??
    };
    request.stdio.terminal = split.host.terminal;
    let key = ProcessKey::init(&request.id);
    let begun = {
        let (request, host) = (request.clone(), split.host.clone());
        handle
            .ask(move |sandbox| sandbox.begin_create(&request, &host))
            .await??
    };
    let pid = begun.pid;
    let poststop = split.host.hooks.poststop.clone();
    let mut stopped = begun.hook_state.clone();
    stopped.status = Status::Stopped;
    let machine = begun.machine.clone();
    let made = make(begun, request, split).await;
    let ended = {
        let key = key.clone();
        handle.ask(move |sandbox| sandbox.end_create(&key, made))
    };
    let (ended, left) = ended.await?;
    match left {
        Left::Nothing => {}
        Left::Files(files) => handle.remove_files(files).await,
        Left::Perhaps(files) => handle.undo_making(machine, key, files),
    }
    if ended.is_err() {
        // What other hooks have made is cleaned up by these.
        hooks::run_anyway(&poststop, &stopped).await;
    }
    ended.map(|()| pid)
}

fn read_bundle(request: &CreateRequest) -> Result<Split, TaskError> {
    let path = request.bundle.join("config.json");
    // The file that the process sees which stands for the container.
    let root = match &request.stand_in {
        Some(StandIn { process, .. }) => PathBuf::from(format!("/proc/{}/root", process.pid)),
        None => PathBuf::from("/"),
    };
    let seen = root.join(path.strip_prefix("/").unwrap_or(&path));
    let config = std::fs::read(seen).map_err(|source| SpecError::Read { path, source })?;
    let look = |source: &Path| shm::look(&root, source);
    let mut split = spec::split(&config, &request.id, &request.bundle, &look)?;
    if request.notify {
        split.add_notify_socket();
    }
    Ok(split)
}

/// The slow part: files while the VM boots, then the streams and the guest's half of the work.
async fn make(begun: Begun, request: CreateRequest, split: Split) -> Result<Made, Unmade> {
    let (files, below, stand_in) = offer_files(&begun, &request, &split.host).await?;
    let mut split = split;
    split.add_mounts_below(&request.id, &below);
    let host = split.host.clone();
    let (streams, guest_pid) = match make_in_guest(&begun, &request, split).await {
        Ok(made) => made,
        Err(error) => {
            return Err(Unmade {
                is_in_guest: error.is_open(),
                error,
                files: Some(files),
            });
        }
    };
    let files = match &begun.face {
        Some(face) => show(&begun, face, files, host).await?,
        None => files,
    };
    Ok(Made {
        files,
        streams,
        guest_pid,
        stand_in,
    })
}

/// A container's files, where in each of its binds something else is mounted, and who has lent them.
type Offered = (ContainerFiles, Vec<Vec<PathBuf>>, Option<Lender>);

/// The container's files, in the share.
async fn offer_files(
    begun: &Begun,
    request: &CreateRequest,
    host: &HostPart,
) -> Result<Offered, TaskError> {
    let (share, request, host) = (begun.share.clone(), request.clone(), host.clone());
    let what = format!("what {} is made of", request.id);
    let offered = move || {
        let (trees, stand_in) = trees(&request, &host, &share)?;
        let files = share.add(&request.id, trees, &host, &request.rootfs)?;
        match files.mounts_below(&host) {
            Ok(below) => Ok((files, below, stand_in)),
            Err(error) => {
                files.remove();
                Err(error.into())
            }
        }
    };
    let too_late = |offered: Result<Offered, TaskError>| {
        if let Ok((files, ..)) = offered {
            files.remove();
        }
    };
    let storage = &begun.handle.storage;
    storage.run_or_undo(&what, offered, too_late).await?
}

/// Copies of the mounts that it is made of; for a member lent by the process that stands for it.
fn trees(
    request: &CreateRequest,
    host: &HostPart,
    share: &Share,
) -> Result<(Trees, Option<Lender>), RootfsError> {
    let Some(StandIn { process, files }) = &request.stand_in else {
        let with_rootfs = request.rootfs.is_empty();
        let trees = Trees::copy(&request.bundle, host, with_rootfs, Some(share))?;
        return Ok((trees, None));
    };
    let gone = || RootfsError::Lent(std::io::ErrorKind::NotFound.into());
    let lender = Lender::of(*process).ok_or_else(gone)?;
    Ok((Trees::take(&lender, files, host)?, Some(lender)))
}

/// Shows the container where engines look for it.
async fn show(
    begun: &Begun,
    face: &Face,
    files: ContainerFiles,
    host: HostPart,
) -> Result<ContainerFiles, Unmade> {
    let made = |error: TaskError, files| Unmade {
        is_in_guest: true,
        error,
        files,
    };
    let share = begun.share.clone();
    let viewed = move || {
        let view = share.view(&files, &host);
        (files, view)
    };
    let storage = &begun.handle.storage;
    let viewed = storage.run_or_undo("the container's files", viewed, |(files, _)| files.remove());
    let (files, view) = viewed.await.map_err(|e| made(e.into(), None))?;
    let shown = match view {
        Ok(view) => face.show(view).await,
        Err(error) => Err(error),
    };
    match shown {
        Ok(()) => Ok(files),
        Err(error) => Err(made(RootfsError::View(error).into(), Some(files))),
    }
}

async fn make_in_guest(
    begun: &Begun,
    request: &CreateRequest,
    split: Split,
) -> Result<(ProcessStreams, u32), TaskError> {
    if let Some(face) = &begun.face {
        let network = split.host.network.clone();
        face.show_network(network)
            .await
            .map_err(RootfsError::View)?;
    }
    let storage = &begun.handle.storage;
    let outside = Outside::open(storage, &request.stdio)
        .await
        .map_err(crate::stdio::StdioError::from)?;
    let agent = begun.machine.agent().await?;
    hooks::run(storage, &split.host.hooks.create, &begun.hook_state).await?;
    if begun.has_network {
        network::check(begun.pid)?;
    }
    if begun.is_further {
        begun.machine.make_room(&agent, &begun.handle).await?;
    }
    let spec = split.guest_json(&begun.joined)?;
    let control = &begun.machine.vm.control;
    let streams = ProcessStreams::open(control, begun.ids, outside).await?;
    match agent
        .create_container(&request.id, spec, begun.ids.into())
        .await
    {
        Ok(guest_pid) => Ok((streams, guest_pid)),
        Err(e) => Err(begun.machine.explain(e).await),
    }
}

/// Ends the container that was born at `born_ns`, should it live, when `stand_in` has gone, and removes it.
async fn remove_with(handle: Handle, key: ProcessKey, born_ns: u64, stand_in: Lender) {
    if let Err(e) = stand_in.gone().await {
        return tracing::error!(process = %key, "what stands for it cannot be watched: {e}");
    }
    let same = {
        let key = key.clone();
        handle.ask(move |sandbox| {
            let container = sandbox.containers.get(&key.container);
            container.is_some_and(|container| container.created_ns == born_ns)
        })
    };
    if !matches!(same.await, Ok(true)) {
        return;
    }
    tracing::info!(process = %key, "it is ended: what stood for it is gone");
    let removed = async {
        let killed = handle
            .kill(key.clone(), SIGKILL.unsigned_abs(), false)
            .await;
        // Refused if it has exited, which is then known.
        tracing::debug!(process = %key, ?killed, "ended");
        handle.wait(key.clone()).await?;
        handle.delete(key.clone()).await
    };
    if let Err(e) = removed.await {
        tracing::debug!(process = %key, "somebody else removes it: {e}");
    }
}

/// Gives the container's terminal the size that the console has, for as long as it can be told.
async fn follow(handle: Handle, key: ProcessKey, console: Console) {
    let mut changes = match signal(SignalKind::window_change()) {
        Ok(changes) => changes,
        Err(e) => return tracing::warn!("cannot follow the console's size: {e}"),
    };
    loop {
        let told = match console.size() {
            Ok((columns, rows)) => {
                handle
                    .resize(key.clone(), columns.into(), rows.into())
                    .await
            }
            Err(e) => return tracing::debug!("the console is gone: {e}"),
        };
        if let Err(e) = told {
            return tracing::debug!("the console's size is of no interest any more: {e}");
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

impl Sandbox {
    pub(super) fn begin_create(
        &mut self,
        request: &CreateRequest,
        host: &HostPart,
    ) -> Result<Begun, TaskError> {
        if self.closing {
            return Err(TaskError::Closing);
        }
        let key = ProcessKey::init(&request.id);
        // An id is a directory's name in the share.
        if check_id(&key.container).is_err() {
            return Err(TaskError::NotFound(key));
        }
        if self.containers.contains_key(&key.container) {
            return Err(TaskError::Exists(key));
        }
        if request.stand_in.is_none() && host.sandbox.is_none() {
            host.check_alone()?;
        }
        let is_further = self.machine.is_some();
        let machine = self.machine_for_create(request, host)?;
        let joined = match (&request.stand_in, &host.sandbox) {
            (None, None) => Vec::new(),
            _ => self.joined(host)?,
        };
        let ids = Ids::random(&request.stdio)?;
        let mut container = Container::new(request.bundle.clone(), request.stdio.clone(), host);
        container.ready = request.notify.then(|| watch::Sender::new(false));
        container.stand_in = request.stand_in.as_ref().map(|it| it.process.pid);
        let pid = container.stand_in.unwrap_or(machine.pid);
        let (_, hook_state) = container.hooks(&key.container, Status::Creating, pid);
        self.containers.insert(key.container, container);
        self.save();
        let face = match &self.reported_pid {
            ReportedPid::Supervisor(face) => Some(face.clone()),
            ReportedPid::Vmm => None,
        };
        Ok(Begun {
            handle: self.handle.clone(),
            machine,
            share: self.share.clone(),
            ids,
            hook_state,
            pid,
            has_network: face.is_some(),
            face: face.filter(|_| request.stand_in.is_none()),
            is_further,
            joined,
        })
    }

    /// The VM for a new container. The first one boots it.
    fn machine_for_create(
        &mut self,
        request: &CreateRequest,
        host: &HostPart,
    ) -> Result<Machine, TaskError> {
        if self.machine.is_none() {
            if request.stand_in.is_some() {
                return Err(TaskError::NotFound(ProcessKey::init(&self.id)));
            }
            self.bundle.clone_from(&request.bundle);
        }
        let machine = self.machine_or_boot(host).map_err(|e| match e {
            BootError::Network(e) => e.into(),
            e => TaskError::Boot(Arc::new(e)),
        })?;
        match machine.vm.end() {
            Some(end) => Err(TaskError::VmEnded(end)),
            None => Ok(machine),
        }
    }

    /// The guest's paths of the namespaces that a new container shares.
    fn joined(&self, host: &HostPart) -> Result<Vec<(LinuxNamespaceType, PathBuf)>, TaskError> {
        let shared = host.shared.iter();
        shared
            .map(|shared| match self.guest_pid_in(shared) {
                Some(pid) => Ok((shared.kind, shared.in_guest(pid))),
                None => Err(shared.unknown().into()),
            })
            .collect()
    }

    /// A running process of the guest that is in a namespace. Where several have the same pid on the host, it is the sandbox's own.
    fn guest_pid_in(&self, shared: &Shared) -> Option<u32> {
        let own = self.containers.get_key_value(&self.id);
        own.into_iter()
            .chain(&self.containers)
            .filter(|(_, container)| container.init.exit().is_none())
            .find(|(id, _)| network::is_of_container(shared, self.pid(id)))
            .and_then(|(_, container)| container.guest_pid)
    }

    pub(super) fn end_create(
        &mut self,
        key: &ProcessKey,
        made: Result<Made, Unmade>,
    ) -> (Result<(), TaskError>, Left) {
        let pid = self.pid(&key.container);
        let Some(container) = self.containers.get_mut(&key.container) else {
            // The sandbox has ended meanwhile.
            let left = match made {
                Ok(made) => Left::Files(made.files),
                Err(unmade) => Left::of(unmade.files),
            };
            return (Err(TaskError::Closing), left);
        };
        let mut made = match made {
            Ok(made) => made,
            Err(Unmade {
                error,
                is_in_guest: true,
                files,
            }) => {
                container.init.phase = Phase::Undoing;
                self.save();
                return (Err(error), Left::Perhaps(files));
            }
            Err(Unmade { error, files, .. }) => {
                self.containers.remove(&key.container);
                self.save();
                return (Err(error), Left::of(files));
            }
        };
        tracing::debug!(process = %key, "created");
        self.events.publish(Event::Created {
            container: key.container.clone(),
            pid,
            bundle: container.bundle.clone(),
            stdio: container.init.stdio.clone(),
        });
        container.files = Some(made.files);
        container.is_made = true;
        container.guest_pid = Some(made.guest_pid);
        // It may have been killed, or the VM ended, in the meantime.
        if container.init.phase == Phase::Creating {
            container.init.phase = Phase::Created;
        } else {
            made.streams.end_input();
        }
        if let Some(stand_in) = made.stand_in {
            let (handle, born_ns) = (self.handle.clone(), container.created_ns);
            tokio::spawn(remove_with(handle, key.clone(), born_ns, stand_in));
        }
        if let Some(console) = made.streams.take_console() {
            tokio::spawn(follow(self.handle.clone(), key.clone(), console));
        }
        container.init.streams = Some(made.streams);
        self.save();
        (Ok(()), Left::Nothing)
    }
}
