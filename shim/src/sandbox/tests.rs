//! The owner's state machine, against an agent in this process and a VM that is only a name.

use std::sync::Mutex;
use std::time::Duration;

use agent_api::agent as wire;
use agent_api::agent_ttrpc::{Agent as AgentService, create_agent};
use async_trait::async_trait;
use oci_spec::runtime::LinuxNamespaceType;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde_json::json;
use tokio::net::UnixListener;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, get_status};
use vmm_api::Command;

use super::*;
use crate::rootfs::ContainerFiles;
use crate::spec::{ConfiguredSize, Demand, HostSize};
use crate::stdio::{ProcessStreams, Stdio};
use crate::vm::open_control;

mod hostile;
mod life;
mod pause;
mod unanswered;
mod update;

/// Says yes to everything, or the error it was given, and remembers what it was asked.
struct FakeAgent {
    asked: Mutex<Vec<String>>,
    refusal: Mutex<Option<Code>>,
    /// `StartContainer` answers when it has had this.
    start_gate: tokio::sync::Mutex<()>,
    /// Calls that are never answered, by their notes.
    unanswered: Mutex<Vec<String>>,
    events: Mutex<Option<mpsc::UnboundedReceiver<wire::Event>>>,
    /// How many each container is said to have.
    processes: Mutex<usize>,
}

impl FakeAgent {
    fn new() -> Self {
        Self {
            asked: Mutex::default(),
            refusal: Mutex::default(),
            start_gate: tokio::sync::Mutex::default(),
            unanswered: Mutex::default(),
            events: Mutex::default(),
            processes: Mutex::new(1),
        }
    }

    fn leave_unanswered(&self, calls: &[&str]) {
        *self.unanswered.lock().unwrap() = calls.iter().map(ToString::to_string).collect();
    }

    async fn note(&self, what: &str) -> ttrpc::Result<()> {
        self.asked.lock().unwrap().push(what.to_owned());
        if self
            .unanswered
            .lock()
            .unwrap()
            .iter()
            .any(|call| call == what)
        {
            return std::future::pending().await;
        }
        match *self.refusal.lock().unwrap() {
            Some(code) => Err(ttrpc::Error::RpcStatus(get_status(code, "no"))),
            None => Ok(()),
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn refuse(&self, code: Option<Code>) {
        *self.refusal.lock().unwrap() = code;
    }
}

#[async_trait]
impl AgentService for FakeAgent {
    async fn start_container(
        &self,
        _: &TtrpcContext,
        _: wire::ContainerRequest,
    ) -> ttrpc::Result<wire::StartResponse> {
        self.note("start").await?;
        let _passed = self.start_gate.lock().await;
        Ok(wire::StartResponse::default())
    }

    async fn start_process(
        &self,
        _: &TtrpcContext,
        request: wire::ProcessRequest,
    ) -> ttrpc::Result<wire::StartResponse> {
        self.note(&format!("start {}", request.exec_id)).await?;
        Ok(wire::StartResponse::default())
    }

    async fn create_process(
        &self,
        _: &TtrpcContext,
        request: wire::CreateProcessRequest,
    ) -> ttrpc::Result<wire::Empty> {
        self.note(&format!("create {}", request.exec_id)).await?;
        Ok(wire::Empty::default())
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        _: wire::ContainerRequest,
    ) -> ttrpc::Result<wire::Empty> {
        self.note("delete").await?;
        Ok(wire::Empty::default())
    }

    async fn delete_process(
        &self,
        _: &TtrpcContext,
        request: wire::ProcessRequest,
    ) -> ttrpc::Result<wire::Empty> {
        self.note(&format!("delete {}", request.exec_id)).await?;
        Ok(wire::Empty::default())
    }

    async fn signal(
        &self,
        _: &TtrpcContext,
        request: wire::SignalRequest,
    ) -> ttrpc::Result<wire::Empty> {
        self.note(&format!("signal {}", request.signal)).await?;
        Ok(wire::Empty::default())
    }

    async fn pause(
        &self,
        _: &TtrpcContext,
        _: wire::ContainerRequest,
    ) -> ttrpc::Result<wire::Empty> {
        self.note("pause").await?;
        Ok(wire::Empty::default())
    }

    async fn resume(
        &self,
        _: &TtrpcContext,
        _: wire::ContainerRequest,
    ) -> ttrpc::Result<wire::Empty> {
        self.note("resume").await?;
        Ok(wire::Empty::default())
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: wire::UpdateRequest,
    ) -> ttrpc::Result<wire::Empty> {
        self.note(std::str::from_utf8(&request.resources).unwrap())
            .await?;
        Ok(wire::Empty::default())
    }

    async fn processes(
        &self,
        _: &TtrpcContext,
        _: wire::ContainerRequest,
    ) -> ttrpc::Result<wire::ProcessesResponse> {
        self.note("processes").await?;
        Ok(wire::ProcessesResponse {
            processes: vec![wire::ProcessInfo::default(); *self.processes.lock().unwrap()],
            ..Default::default()
        })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: wire::CreateContainerRequest,
    ) -> ttrpc::Result<wire::CreateContainerResponse> {
        self.note(&format!("create container {}", request.container_id))
            .await?;
        Ok(wire::CreateContainerResponse::default())
    }

    async fn events(
        &self,
        _: &TtrpcContext,
        _: wire::Empty,
        sender: ttrpc::asynchronous::ServerStreamSender<wire::Event>,
    ) -> ttrpc::Result<()> {
        let events = self.events.lock().unwrap().take();
        let mut events = events.expect("one subscriber, and a test that sends");
        while let Some(event) = events.recv().await {
            sender.send(&event).await?;
        }
        Ok(())
    }

    async fn online_cpus(
        &self,
        _: &TtrpcContext,
        request: wire::OnlineCpusRequest,
    ) -> ttrpc::Result<wire::Empty> {
        self.note(&format!("{} CPUs", request.count)).await?;
        Ok(wire::Empty::default())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: wire::Empty) -> ttrpc::Result<wire::Empty> {
        self.note("shutdown").await?;
        Ok(wire::Empty::default())
    }
}

/// Of the VM.
const CONFIGURED: ConfiguredSize = ConfiguredSize {
    memory_mib: 64 + 128,
    memory_max_mib: Some(64 + 128 + 256),
    vcpus: 1,
    vcpus_max: Some(2),
};

fn size() -> VmSize {
    let host = HostSize {
        memory_mib: 4096,
        cpus: 1,
    };
    Demand::default().vm_size(CONFIGURED, host).unwrap()
}

/// A sandbox whose VM is up, with the container `web` created in it.
struct Fixture {
    handle: Handle,
    agent: Arc<FakeAgent>,
    end: watch::Sender<Option<Arc<VmEnd>>>,
    root: tempfile::TempDir,
    _server: Server,
    /// What the VMM was ordered to do.
    orders: watch::Receiver<Vec<Command>>,
}

/// Obeys every order, and has a guest that does.
fn fake_vmm(socket: std::os::fd::OwnedFd) -> watch::Receiver<Vec<Command>> {
    let (orders, seen) = watch::channel(Vec::new());
    std::thread::spawn(move || {
        let mut packet = vec![0; vmm_api::PACKET_MAX_BYTES];
        while let Ok(length @ 1..) = rustix::io::read(&socket, &mut packet[..]) {
            let request: vmm_api::Request = serde_json::from_slice(&packet[..length]).unwrap();
            let reply = vmm_api::Message::Reply {
                id: request.id,
                result: Ok(vmm_api::Reply::Done),
            };
            orders.send_modify(|orders| orders.push(request.command.clone()));
            rustix::io::write(&socket, &serde_json::to_vec(&reply).unwrap()).unwrap();
            if let Command::Resize { memory_mib } = request.command {
                let event = vmm_api::Message::Event(vmm_api::Event::Resized { memory_mib });
                rustix::io::write(&socket, &serde_json::to_vec(&event).unwrap()).unwrap();
            }
        }
    });
    seen
}

fn web() -> ProcessKey {
    ProcessKey::init("web")
}

fn exec_key() -> ProcessKey {
    ProcessKey {
        container: "web".into(),
        exec: "sh".into(),
    }
}

fn exit(status: u32) -> Exit {
    Exit { status, at_ns: 1 }
}

fn request(id: &str) -> CreateRequest {
    CreateRequest {
        id: id.into(),
        bundle: "/b".into(),
        rootfs: Vec::new(),
        stdio: Stdio::default(),
        stand_in: None,
        notify: false,
    }
}

fn config() -> Config {
    Config {
        vmm: "/none".into(),
        kernel: "/none".into(),
        initrd: "/none".into(),
        size: CONFIGURED,
        agent_timeout: Duration::from_secs(1),
    }
}

impl Fixture {
    async fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::create(root.path(), "web").unwrap();
        let share = Share::fake(&state);
        let this = ProcessRef::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let handle = start(Origin {
            id: "web".into(),
            config: config(),
            state,
            share: share.clone(),
            this,
            reported_pid: ReportedPid::Vmm,
        });
        let fake = Arc::new(FakeAgent::new());
        let path = root.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        let mut server = Server::new()
            .add_listener(listener.into())
            .register_service(create_agent(fake.clone()));
        server.start().await.unwrap();
        let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let agent = Agent::over(stream.into()).unwrap();
        let (near, vmm) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let (vm, end) = Vm::fake(open_control(near).unwrap().0);
        let machine = Machine {
            standstill: Standstill::new(vm.control.clone(), handle.clone()),
            vm,
            size: size(),
            extent: Arc::new(tokio::sync::Mutex::new(size().at_boot())),
            pid: this.pid,
            cgroup: None,
            agent: watch::channel(Some(Ok(agent))).1,
        };
        handle
            .ask(move |sandbox| {
                sandbox.machine = Some(machine);
                let files = ContainerFiles::fake(&share, "web");
                sandbox
                    .begin_create(&request("web"), &HostPart::default())
                    .unwrap();
                let made = create::Made {
                    files,
                    streams: ProcessStreams::default(),
                    guest_pid: 7,
                    stand_in: None,
                };
                sandbox.end_create(&web(), Ok(made)).0.unwrap();
            })
            .await
            .unwrap();
        Self {
            handle,
            agent: fake,
            end,
            root,
            _server: server,
            orders: fake_vmm(vmm),
        }
    }

    async fn phase(&self) -> Phase {
        self.handle.state(web()).await.unwrap().phase
    }

    fn call_start(&self) -> tokio::task::JoinHandle<Result<i32, TaskError>> {
        let handle = self.handle.clone();
        tokio::spawn(async move { handle.start(web()).await })
    }

    async fn agent_is_asked(&self, what: &str) {
        while self.agent.asked().last().map(String::as_str) != Some(what) {
            tokio::task::yield_now().await;
        }
    }

    async fn vmm_is_ordered(&mut self, orders: &[Command]) {
        let seen = self
            .orders
            .wait_for(|seen| seen.len() >= orders.len())
            .await;
        assert_eq!(*seen.unwrap(), orders);
    }

    async fn agent_reports(&self, key: ProcessKey, status: u32) {
        self.handle
            .ask(move |sandbox| sandbox.on_exit(&key, exit(status), Carried::default()))
            .await
            .unwrap();
    }

    fn vm_ends(&self, reason: EndReason) {
        let end = Arc::new(VmEnd {
            reason,
            console: String::new(),
        });
        self.end.send_replace(Some(end.clone()));
        self.handle.tell(move |sandbox| sandbox.on_vm_end(&end));
    }

    fn record(&self) -> Record {
        let state = StateDir::open(self.root.path(), "web").unwrap();
        state.read().unwrap().unwrap()
    }

    async fn exec(&self) -> Result<(), TaskError> {
        let process = r#"{"user":{"uid":0,"gid":0},"args":["sh"],"cwd":"/"}"#;
        self.handle
            .exec(ExecRequest {
                key: exec_key(),
                process: process.into(),
                cgroup: None,
                stdio: Stdio::default(),
            })
            .await
    }
}

fn code(error: TaskError) -> Code {
    match ttrpc::Error::from(error) {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("{other:?}"),
    }
}
