//! Create: a bundle becomes a container that waits for its start. The first one boots the VM.

use std::path::PathBuf;
use std::sync::Arc;

use containerd_shim_protos::api;
use tokio::signal::unix::{SignalKind, signal};

use super::{Handle, Machine, ReportedPid, Sandbox, TaskError};
use crate::container::Container;
use crate::events::Event;
use crate::hooks::{self, HookState};
use crate::network;
use crate::process::{Phase, ProcessKey};
use crate::rootfs::{ContainerFiles, RootfsError, Share};
use crate::spec::{self, HostPart, SpecError, Split};
use crate::state::{Status, check_id};
use crate::stdio::{Console, Ids, Outside, ProcessStreams, Stdio};
use crate::supervise::Face;

/// What is asked for.
#[derive(Debug)]
pub(crate) struct CreateRequest {
    pub(crate) id: String,
    /// Absolute.
    pub(crate) bundle: PathBuf,
    /// Mounts that make the root file system; none: it is `root.path`.
    pub(crate) rootfs: Vec<api::Mount>,
    pub(crate) stdio: Stdio,
}

/// What the owner gave the operation to work with.
pub(super) struct Begun {
    machine: Machine,
    share: Share,
    ids: Ids,
    hook_state: HookState,
    /// Where the container is to be seen, if anywhere.
    face: Option<Face>,
}

impl Handle {
    /// Makes a container. Returns the pid to report for it. On an error nothing of it is left.
    pub(crate) async fn create(&self, request: CreateRequest) -> Result<i32, TaskError> {
        self.run(create(self.clone(), request)).await
    }
}

async fn create(handle: Handle, mut request: CreateRequest) -> Result<i32, TaskError> {
    let split = read_bundle(&request)?;
    request.stdio.terminal = split.host.terminal;
    let key = ProcessKey::init(&request.id);
    let begun = {
        let (key, host) = (key.clone(), split.host.clone());
        let (bundle, stdio) = (request.bundle.clone(), request.stdio.clone());
        handle
            .ask(move |sandbox| sandbox.begin_create(&key, bundle, stdio, &host))
            .await??
    };
    let pid = begun.machine.pid;
    let made = make(begun, request, split).await;
    handle
        .ask(move |sandbox| sandbox.end_create(&key, made))
        .await??;
    Ok(pid)
}

fn read_bundle(request: &CreateRequest) -> Result<Split, TaskError> {
    let path = request.bundle.join("config.json");
    let config = std::fs::read(&path).map_err(|source| SpecError::Read { path, source })?;
    Ok(spec::split(&config, &request.id, &request.bundle)?)
}

/// The slow part: files while the VM boots, then the streams and the guest's half of the work.
async fn make(
    begun: Begun,
    request: CreateRequest,
    split: Split,
) -> Result<(ContainerFiles, ProcessStreams), TaskError> {
    let files = begun
        .share
        .add(&request.id, &request.bundle, &split.host, &request.rootfs)?;
    let view = begun.share.view(&files, &split.host);
    let poststop = split.host.hooks.poststop.clone();
    let mut stopped = begun.hook_state.clone();
    stopped.status = Status::Stopped;
    let made = async {
        if let Some(face) = &begun.face {
            let network = split.host.network.clone();
            face.show_network(network)
                .await
                .map_err(RootfsError::View)?;
        }
        let streams = make_in_guest(&begun, &request, split).await?;
        if let Some(face) = &begun.face {
            face.show(view).await.map_err(RootfsError::View)?;
        }
        Ok(streams)
    };
    match made.await {
        Ok(streams) => Ok((files, streams)),
        Err(e) => {
            files.remove();
            // What other hooks have made is cleaned up by these.
            hooks::run_anyway(&poststop, &stopped).await;
            Err(e)
        }
    }
}

async fn make_in_guest(
    begun: &Begun,
    request: &CreateRequest,
    split: Split,
) -> Result<ProcessStreams, TaskError> {
    let outside = Outside::open(&request.stdio).map_err(crate::stdio::StdioError::from)?;
    let agent = begun.machine.agent().await?;
    hooks::run(&split.host.hooks.create, &begun.hook_state).await?;
    if begun.face.is_some() {
        network::check(begun.machine.pid)?;
    }
    let control = &begun.machine.vm.control;
    let streams = ProcessStreams::open(control, begun.ids, outside).await?;
    match agent
        .create_container(&request.id, split.guest, begun.ids.into())
        .await
    {
        Ok(()) => Ok(streams),
        Err(e) => Err(begun.machine.explain(e).await),
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
        key: &ProcessKey,
        bundle: PathBuf,
        stdio: Stdio,
        host: &HostPart,
    ) -> Result<Begun, TaskError> {
        if self.closing {
            return Err(TaskError::Closing);
        }
        // An id is a directory's name in the share.
        if check_id(&key.container).is_err() {
            return Err(TaskError::NotFound(key.clone()));
        }
        if self.containers.contains_key(&key.container) {
            return Err(TaskError::Exists(key.clone()));
        }
        if let (None, Some(path)) = (&self.machine, &host.network) {
            network::enter(path)?;
        }
        let machine = self
            .machine_or_boot(host)
            .map_err(|e| TaskError::Boot(Arc::new(e)))?;
        if let Some(end) = machine.vm.end() {
            return Err(TaskError::VmEnded(end));
        }
        if self.bundle.as_os_str().is_empty() {
            self.bundle.clone_from(&bundle);
        }
        let ids = self.stream_ids.take(&stdio);
        let container = Container::new(bundle, stdio, host);
        let (_, hook_state) = container.hooks(&key.container, Status::Creating, machine.pid);
        self.containers.insert(key.container.clone(), container);
        self.save();
        Ok(Begun {
            machine,
            share: self.share.clone(),
            ids,
            hook_state,
            face: match &self.reported_pid {
                ReportedPid::Supervisor(face) => Some(face.clone()),
                ReportedPid::Vmm => None,
            },
        })
    }

    pub(super) fn end_create(
        &mut self,
        key: &ProcessKey,
        made: Result<(ContainerFiles, ProcessStreams), TaskError>,
    ) -> Result<(), TaskError> {
        let pid = self.pid();
        let Some(container) = self.containers.get_mut(&key.container) else {
            return Err(TaskError::Closing);
        };
        let (files, mut streams) = match made {
            Ok(made) => made,
            Err(e) => {
                self.containers.remove(&key.container);
                self.save();
                return Err(e);
            }
        };
        tracing::debug!(process = %key, "created");
        self.events.publish(Event::Created {
            container: key.container.clone(),
            pid,
            bundle: container.bundle.clone(),
            stdio: container.init.stdio.clone(),
        });
        container.files = Some(files);
        // It may have been killed, or the VM ended, in the meantime.
        if container.init.phase == Phase::Creating {
            container.init.phase = Phase::Created;
        } else {
            streams.end_input();
        }
        if let Some(console) = streams.take_console() {
            tokio::spawn(follow(self.handle.clone(), key.clone(), console));
        }
        container.init.streams = Some(streams);
        self.save();
        Ok(())
    }
}
