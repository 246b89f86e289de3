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

#[tokio::test]
async fn a_container_lives_from_created_to_gone() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.phase().await, Phase::Created);
    fixture.handle.start(web()).await.unwrap();
    assert_eq!(fixture.phase().await, Phase::Running);
    fixture.agent_reports(web(), 3).await;
    assert_eq!(fixture.handle.wait(web()).await.unwrap(), exit(3));
    assert_eq!(fixture.record().containers[0].exit_status, Some(3));
    let deleted = fixture.handle.delete(web()).await.unwrap();
    assert_eq!(deleted.exit, exit(3));
    let gone = fixture.handle.state(web()).await.unwrap_err();
    assert_eq!(code(gone), Code::NOT_FOUND);
    fixture.handle.reaches(|life| *life == Life::Idle).await;
    assert_eq!(fixture.agent.asked(), ["start", "delete"]);
}

#[tokio::test]
async fn an_exit_that_outruns_the_starts_answer_counts() {
    let fixture = Fixture::new().await;
    let mut events = fixture.handle.events();
    let gate = fixture.agent.start_gate.lock().await;
    let call = fixture.call_start();
    fixture.agent_is_asked("start").await;
    fixture.agent_reports(web(), 0).await;
    drop(gate);
    call.await.unwrap().unwrap();
    assert_eq!(fixture.phase().await, Phase::Stopped);
    assert!(matches!(
        events.recv().await.unwrap(),
        Event::Started { .. }
    ));
    assert!(matches!(events.recv().await.unwrap(), Event::Exit { .. }));
    assert!(events.next_now().is_none());
}

#[tokio::test]
async fn processes_are_told_of_in_the_order_of_their_lives() {
    let fixture = Fixture::new().await;
    let mut events = fixture.handle.events();
    fixture.handle.start(web()).await.unwrap();
    fixture.exec().await.unwrap();
    fixture.handle.start(exec_key()).await.unwrap();
    fixture.agent_reports(exec_key(), 3).await;
    fixture.handle.delete(exec_key()).await.unwrap();
    let pid = fixture.handle.state(web()).await.unwrap().pid;
    let (key, exit) = (exec_key(), exit(3));
    for expected in [
        Event::Started { key: web(), pid },
        Event::ExecAdded { key: key.clone() },
        Event::Started {
            key: key.clone(),
            pid,
        },
        Event::Exit {
            key: key.clone(),
            pid,
            exit,
        },
        Event::Deleted { key, pid, exit },
    ] {
        assert_eq!(events.recv().await.unwrap(), expected);
    }
    fixture.exec().await.unwrap();
    fixture.vm_ends(EndReason::OutOfMemory);
    let mut lost = Vec::new();
    while lost.len() < 2 {
        if let Event::Exit { key, .. } = events.recv().await.unwrap() {
            lost.push(key);
        }
    }
    assert_eq!(lost, [exec_key(), web()]);
}

#[tokio::test]
async fn the_vms_end_is_every_processs_end() {
    let fixture = Fixture::new().await;
    fixture.exec().await.unwrap();
    fixture.handle.start(web()).await.unwrap();
    fixture.vm_ends(EndReason::OutOfMemory);
    assert_eq!(fixture.handle.wait(web()).await.unwrap().status, 137);
    assert_eq!(fixture.handle.wait(exec_key()).await.unwrap().status, 137);
    assert!(fixture.record().ended.unwrap().contains("out of memory"));
    assert!(matches!(
        fixture.exec().await.unwrap_err(),
        TaskError::Phase { .. } | TaskError::VmEnded(_)
    ));
    let deleted = fixture.handle.delete(web()).await.unwrap();
    assert_eq!(deleted.exit.status, 137);
}

#[tokio::test]
async fn signals_reach_living_processes_only() {
    let fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    fixture.handle.kill(web(), 15, false).await.unwrap();
    assert_eq!(fixture.agent.asked(), ["start", "signal 15"]);
    fixture.agent_reports(web(), 143).await;
    let finished = fixture.handle.kill(web(), 15, false).await.unwrap_err();
    assert_eq!(code(finished), Code::NOT_FOUND);
}

#[tokio::test]
async fn steps_out_of_order_change_nothing() {
    let fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    for refused in [
        fixture.handle.delete(web()).await.map(drop),
        fixture.handle.start(web()).await.map(drop),
    ] {
        assert_eq!(code(refused.unwrap_err()), Code::FAILED_PRECONDITION);
    }
    assert_eq!(fixture.phase().await, Phase::Running);
}

#[tokio::test]
async fn a_paused_container_is_asked_nothing_but_to_go_on_or_die() {
    let fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    fixture.exec().await.unwrap();
    let mut events = fixture.handle.events();
    fixture.handle.pause("web".into()).await.unwrap();
    assert_eq!(fixture.phase().await, Phase::Paused);
    assert_eq!(fixture.record().containers[0].status, Status::Paused);
    for refused in [
        fixture.handle.pause("web".into()).await,
        fixture.handle.start(exec_key()).await.map(drop),
        fixture.handle.delete(web()).await.map(drop),
        fixture.handle.delete(exec_key()).await.map(drop),
    ] {
        assert_eq!(code(refused.unwrap_err()), Code::FAILED_PRECONDITION);
    }
    fixture.handle.kill(web(), 15, false).await.unwrap();
    fixture.handle.resume("web".into()).await.unwrap();
    assert_eq!(fixture.phase().await, Phase::Running);
    let running = fixture.handle.resume("web".into()).await.unwrap_err();
    assert_eq!(code(running), Code::FAILED_PRECONDITION);
    assert_eq!(
        fixture.agent.asked(),
        ["start", "create sh", "pause", "signal 15", "resume"]
    );
    let container = "web".to_owned();
    let paused = Event::Paused {
        container: container.clone(),
    };
    assert_eq!(events.recv().await.unwrap(), paused);
    assert_eq!(events.recv().await.unwrap(), Event::Resumed { container });
}

#[tokio::test]
async fn a_created_container_is_created_again_after_a_pause() {
    let fixture = Fixture::new().await;
    fixture.handle.pause("web".into()).await.unwrap();
    let paused = fixture.handle.start(web()).await.unwrap_err();
    assert_eq!(code(paused), Code::FAILED_PRECONDITION);
    fixture.handle.resume("web".into()).await.unwrap();
    assert_eq!(fixture.phase().await, Phase::Created);
    fixture.handle.start(web()).await.unwrap();
}

#[tokio::test]
async fn a_vm_whose_containers_are_all_paused_stands_still_but_for_calls() {
    let mut fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    fixture.handle.pause("web".into()).await.unwrap();
    fixture.vmm_is_ordered(&[Command::Pause]).await;
    let processes = fixture.handle.processes("web".into()).await.unwrap();
    assert_eq!(processes.len(), 1);
    let asked = [Command::Pause, Command::Resume, Command::Pause];
    fixture.vmm_is_ordered(&asked).await;
    fixture.handle.resume("web".into()).await.unwrap();
    let resumed = [&asked[..], &[Command::Resume]].concat();
    fixture.vmm_is_ordered(&resumed).await;
}

#[tokio::test]
async fn a_paused_container_that_is_killed_may_say_so() {
    let mut fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    fixture.handle.pause("web".into()).await.unwrap();
    fixture.vmm_is_ordered(&[Command::Pause]).await;
    fixture.handle.kill(web(), 9, false).await.unwrap();
    // Answered by the owner after it has thought about standing still again.
    assert_eq!(fixture.phase().await, Phase::Paused);
    fixture
        .vmm_is_ordered(&[Command::Pause, Command::Resume])
        .await;
    fixture.agent_reports(web(), 137).await;
    assert_eq!(fixture.phase().await, Phase::Stopped);
    fixture.handle.delete(web()).await.unwrap();
}

#[tokio::test]
async fn a_refused_pause_changes_nothing() {
    let fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    fixture.agent.refuse(Some(Code::FAILED_PRECONDITION));
    assert!(fixture.handle.pause("web".into()).await.is_err());
    assert_eq!(fixture.phase().await, Phase::Running);
}

#[tokio::test]
async fn an_update_sets_what_is_given_and_what_fits() {
    let fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    let update = |resources: &str| {
        let handle = fixture.handle.clone();
        let resources = resources.as_bytes().to_vec();
        async move { handle.update("web".into(), resources).await }
    };
    let devices = r#"{"devices":[{"allow":false}],"pids":{"limit":7}}"#;
    update(devices).await.unwrap();
    let too_much = update(r#"{"memory":{"limit":1073741824}}"#)
        .await
        .unwrap_err();
    assert!(too_much.to_string().contains("1088 MiB"), "{too_much}");
    let realtime = update(r#"{"cpu":{"realtimeRuntime":1}}"#)
        .await
        .unwrap_err();
    assert_eq!(code(realtime), Code::INVALID_ARGUMENT);
    assert_eq!(fixture.agent.asked(), ["start", r#"{"pids":{"limit":7}}"#]);
    fixture.agent_reports(web(), 0).await;
    assert!(update(devices).await.is_err());
}

#[tokio::test]
async fn a_vm_grows_before_limits_are_set_and_shrinks_after_it() {
    let mut fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    let more = r#"{"memory":{"limit":268435456},"cpu":{"quota":200000}}"#;
    let update = |resources: &str| {
        fixture
            .handle
            .update("web".into(), resources.as_bytes().to_vec())
    };
    update(more).await.unwrap();
    assert_eq!(fixture.agent.asked(), ["start", "2 CPUs", more]);
    let less = r#"{"memory":{"limit":1048576},"cpu":{"quota":100000}}"#;
    update(less).await.unwrap();
    let asked = fixture.agent.asked();
    assert_eq!(asked, ["start", "2 CPUs", more, less, "1 CPUs"]);
    let orders = [320, 192].map(|memory_mib| Command::Resize { memory_mib });
    fixture.vmm_is_ordered(&orders).await;
}

#[tokio::test]
async fn what_a_vm_gained_for_limits_that_are_refused_is_taken_back() {
    let mut fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    fixture.agent.refuse(Some(Code::INTERNAL));
    let more = br#"{"memory":{"limit":268435456}}"#.to_vec();
    assert!(fixture.handle.update("web".into(), more).await.is_err());
    let orders = [320, 192].map(|memory_mib| Command::Resize { memory_mib });
    fixture.vmm_is_ordered(&orders).await;
}

#[tokio::test]
async fn a_stopped_container_has_no_processes() {
    let fixture = Fixture::new().await;
    fixture.agent_reports(web(), 0).await;
    let processes = fixture.handle.processes("web".into()).await.unwrap();
    assert!(processes.is_empty());
}

#[tokio::test]
async fn a_refused_delete_can_be_tried_again() {
    let fixture = Fixture::new().await;
    fixture.agent_reports(web(), 0).await;
    fixture.agent.refuse(Some(Code::INTERNAL));
    assert!(fixture.handle.delete(web()).await.is_err());
    assert_eq!(fixture.phase().await, Phase::Stopped);
    fixture.agent.refuse(None);
    fixture.handle.delete(web()).await.unwrap();
}

#[tokio::test]
async fn a_failed_start_is_told_and_leaves_what_can_be_deleted() {
    let fixture = Fixture::new().await;
    fixture.agent.refuse(Some(Code::INVALID_ARGUMENT));
    let error = fixture.handle.start(web()).await.unwrap_err();
    assert_eq!(error.to_string(), "no");
    fixture.agent.refuse(None);
    fixture.agent_reports(web(), 127).await;
    assert_eq!(fixture.handle.wait(web()).await.unwrap().status, 127);
    fixture.handle.delete(web()).await.unwrap();
}

#[tokio::test]
async fn execs_are_named_once_and_end_alone() {
    let fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    fixture.exec().await.unwrap();
    let twice = fixture.exec().await.unwrap_err();
    assert_eq!(code(twice), Code::ALREADY_EXISTS);
    fixture.handle.start(exec_key()).await.unwrap();
    fixture.agent_reports(exec_key(), 1).await;
    fixture.handle.delete(exec_key()).await.unwrap();
    assert_eq!(fixture.phase().await, Phase::Running);
    assert_eq!(
        fixture.agent.asked(),
        ["start", "create sh", "start sh", "delete sh"]
    );
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_nothing_half_done() {
    let fixture = Fixture::new().await;
    let gate = fixture.agent.start_gate.lock().await;
    let call = fixture.call_start();
    fixture.agent_is_asked("start").await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert_eq!(fixture.phase().await, Phase::Starting);
    drop(gate);
    while fixture.phase().await != Phase::Running {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn shutdown_powers_off_and_removes_the_state() {
    let fixture = Fixture::new().await;
    fixture.handle.shutdown(false).await.unwrap();
    assert_eq!(
        fixture.phase().await,
        Phase::Created,
        "a container is there"
    );
    let handle = fixture.handle.clone();
    let shutdown = tokio::spawn(async move { handle.shutdown(true).await });
    fixture.agent_is_asked("shutdown").await;
    fixture.vm_ends(EndReason::PoweredOff);
    shutdown.await.unwrap().unwrap();
    assert!(StateDir::open(fixture.root.path(), "web").is_err());
    fixture.handle.shutdown(true).await.unwrap();
}

#[tokio::test]
async fn a_member_has_its_own_pid_and_shares_the_namespaces_it_names() {
    let fixture = Fixture::new().await;
    let this = i32::try_from(std::process::id()).unwrap();
    let shared = |pid: i32| crate::spec::Shared {
        kind: LinuxNamespaceType::Ipc,
        path: format!("/proc/{pid}/ns/ipc").into(),
    };
    let host = move |pid| HostPart {
        shared: vec![shared(pid)],
        ..HostPart::default()
    };
    let process = json!({"pid": 4711, "start_time": 1});
    let stand_in = json!({"process": process, "files": {"rootfs": 3, "volumes": []}});
    let request = CreateRequest {
        stand_in: Some(serde_json::from_value(stand_in).unwrap()),
        ..request("side")
    };
    let (found, unknown) = fixture
        .handle
        .ask(move |sandbox| {
            let unknown = sandbox.begin_create(&request, &host(1)).err();
            let begun = sandbox.begin_create(&request, &host(this)).unwrap();
            let pids = (sandbox.pid("side"), sandbox.pid("web"));
            assert_eq!(pids, (4711, this));
            (begun, unknown)
        })
        .await
        .unwrap();
    assert_eq!(
        found.joined,
        [(LinuxNamespaceType::Ipc, PathBuf::from("/proc/7/ns/ipc"))]
    );
    assert!(matches!(unknown, Some(TaskError::Spec(_))), "{unknown:?}");
}

#[tokio::test]
async fn a_sandbox_is_over_with_its_own_container() {
    let fixture = Fixture::new().await;
    fixture
        .handle
        .ask(|sandbox| {
            let host = HostPart::default();
            sandbox.begin_create(&request("side"), &host).unwrap();
            sandbox.on_exit(&ProcessKey::init("side"), exit(0), Carried::default());
            assert_eq!(*sandbox.life.borrow(), Life::Busy);
            sandbox.on_exit(&web(), exit(0), Carried::default());
            assert_eq!(*sandbox.life.borrow(), Life::Over);
        })
        .await
        .unwrap();
}

/// What a test with the clock stopped waits for comes at once, or never.
async fn reaches(fixture: &Fixture, key: &ProcessKey, wanted: Code) {
    loop {
        match fixture.handle.state(key.clone()).await {
            Err(error) => return assert_eq!(code(error), wanted),
            Ok(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_exec_that_is_not_made_in_time_is_undone_and_its_id_is_free_then() {
    let fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    fixture.agent.leave_unanswered(&["create sh", "delete sh"]);
    let late = fixture.exec().await.unwrap_err();
    assert_eq!(code(late), Code::DEADLINE_EXCEEDED);
    // The guest may be making it still.
    let taken = fixture.exec().await.unwrap_err();
    assert_eq!(code(taken), Code::ALREADY_EXISTS);
    for refused in [
        fixture.handle.start(exec_key()).await.map(drop),
        fixture.handle.kill(exec_key(), 9, false).await,
        fixture.handle.delete(exec_key()).await.map(drop),
    ] {
        assert_eq!(code(refused.unwrap_err()), Code::FAILED_PRECONDITION);
    }
    fixture.agent.leave_unanswered(&[]);
    reaches(&fixture, &exec_key(), Code::NOT_FOUND).await;
    let asked = fixture.agent.asked();
    assert_eq!(asked[1..4], ["create sh", "signal 9", "delete sh"]);
    fixture.exec().await.unwrap();
    assert_eq!(fixture.phase().await, Phase::Running);
}

#[tokio::test(start_paused = true)]
async fn a_start_without_an_answer_may_have_happened_and_can_be_deleted() {
    let fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    fixture.exec().await.unwrap();
    fixture.agent.leave_unanswered(&["start sh"]);
    let late = fixture.handle.start(exec_key()).await.unwrap_err();
    assert_eq!(code(late), Code::DEADLINE_EXCEEDED);
    let phase = fixture.handle.state(exec_key()).await.unwrap().phase;
    assert_eq!(phase, Phase::Unknown);
    fixture.handle.kill(exec_key(), 15, false).await.unwrap();
    fixture.handle.delete(exec_key()).await.unwrap();
    let asked = fixture.agent.asked();
    assert_eq!(asked[3..], ["signal 15", "signal 9", "delete sh"]);
    let gone = fixture.handle.state(exec_key()).await.unwrap_err();
    assert_eq!(code(gone), Code::NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn an_exit_says_what_became_of_a_start_without_an_answer() {
    let fixture = Fixture::new().await;
    fixture.agent.leave_unanswered(&["start"]);
    let late = fixture.handle.start(web()).await.unwrap_err();
    assert_eq!(code(late), Code::DEADLINE_EXCEEDED);
    fixture.agent_reports(web(), 3).await;
    assert_eq!(fixture.handle.wait(web()).await.unwrap(), exit(3));
    assert_eq!(fixture.handle.delete(web()).await.unwrap().exit, exit(3));
}

#[tokio::test(start_paused = true)]
async fn a_pause_or_resume_without_an_answer_ends_in_a_container_that_goes_on() {
    let fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    fixture.agent.leave_unanswered(&["pause"]);
    assert!(fixture.handle.pause("web".into()).await.is_err());
    assert_eq!(fixture.phase().await, Phase::Pausing);
    while fixture.phase().await != Phase::Running {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    fixture.agent.leave_unanswered(&["resume"]);
    fixture.handle.pause("web".into()).await.unwrap();
    assert!(fixture.handle.resume("web".into()).await.is_err());
    assert_eq!(fixture.phase().await, Phase::Resuming);
    fixture.agent.leave_unanswered(&[]);
    while fixture.phase().await != Phase::Running {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn limits_that_may_be_set_keep_the_vm_as_large_as_they_need() {
    let mut fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    let more = r#"{"memory":{"limit":268435456}}"#;
    fixture.agent.leave_unanswered(&[more]);
    let handle = fixture.handle.clone();
    let update = tokio::spawn(async move { handle.update("web".into(), more.into()).await });
    fixture.agent_is_asked(more).await;
    // The VM has grown; all that is waited for now is the agent's deadline.
    tokio::time::pause();
    let late = update.await.unwrap().unwrap_err();
    assert_eq!(code(late), Code::DEADLINE_EXCEEDED);
    let orders = [Command::Resize { memory_mib: 320 }];
    fixture.vmm_is_ordered(&orders).await;
}

#[tokio::test]
async fn execs_that_go_with_their_container_are_told_of() {
    let fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    fixture.exec().await.unwrap();
    fixture.handle.start(exec_key()).await.unwrap();
    fixture.agent_reports(web(), 0).await;
    let mut events = fixture.handle.events();
    let waiting = tokio::spawn({
        let handle = fixture.handle.clone();
        async move { handle.wait(exec_key()).await }
    });
    fixture.handle.delete(web()).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().status, 137);
    let told = events.recv().await.unwrap();
    assert!(matches!(told, Event::Exit { key, .. } if key == exec_key()));
    let told = events.recv().await.unwrap();
    assert!(matches!(told, Event::Deleted { key, .. } if key == web()));
}

/// Events as fast as they can be sent, of containers and execs that there are and that there are not.
#[tokio::test]
async fn a_flood_of_events_keeps_nobody_waiting_and_loses_no_exit() {
    const FLOOD: usize = 20_000;
    let fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    let (flood, events) = mpsc::unbounded_channel();
    *fixture.agent.events.lock().unwrap() = Some(events);
    let vm = fixture
        .handle
        .ask(|sandbox| sandbox.machine.clone().unwrap())
        .await
        .unwrap();
    let agent = vm.agent().await.unwrap();
    let stream = agent.events().await.unwrap();
    tokio::spawn(boot::forward(stream, fixture.handle.clone(), vm.vm.clone()));
    let mut told = fixture.handle.events();
    let oom = |container: &str| wire::Event {
        kind: Some(wire::event::Kind::Oom(wire::Oom {
            container_id: container.into(),
            ..Default::default()
        })),
        ..Default::default()
    };
    for number in 0..FLOOD {
        flood.send(oom("web")).unwrap();
        flood.send(oom(&format!("none-{number}\x1b[2J"))).unwrap();
    }
    // Answered while the flood goes on.
    assert_eq!(fixture.phase().await, Phase::Running);
    let exit = wire::Exit {
        container_id: "web".into(),
        status: 7,
        at_ns: i64::MAX,
        ..Default::default()
    };
    flood
        .send(wire::Event {
            kind: Some(wire::event::Kind::Exit(exit)),
            ..Default::default()
        })
        .unwrap();
    let exit = fixture.handle.wait(web()).await.unwrap();
    assert_eq!(exit.status, 7);
    assert!(exit.at_ns <= now_ns(), "no exit is in the future");
    let mut ooms = 0;
    while let Ok(Event::Oom { .. }) = told.recv().await {
        ooms += 1;
    }
    assert!((1..=FLOOD).contains(&ooms), "{ooms}");
}

#[tokio::test]
async fn only_the_first_that_dials_is_the_agent() {
    let (dial, arrived) = mpsc::channel(1);
    let dials = |fd: std::os::unix::net::UnixStream| crate::vm::Arrived {
        event: vmm_api::Event::Accepted {
            port: agent_api::PORT_CONTROL,
        },
        fd: Some(fd.into()),
    };
    let pair = || std::os::unix::net::UnixStream::pair().unwrap();
    let ((mut agent, first), accepted) = (pair(), tokio::spawn(boot::accepted(arrived)));
    dial.send(dials(first)).await.unwrap();
    let mut kept = std::os::unix::net::UnixStream::from(accepted.await.unwrap());
    for _ in 0..100 {
        let (mut other, far) = pair();
        dial.send(dials(far)).await.unwrap();
        let heard = move || std::io::Read::read(&mut other, &mut [0; 1]).unwrap();
        assert_eq!(tokio::task::spawn_blocking(heard).await.unwrap(), 0);
    }
    std::io::Write::write_all(&mut agent, b"x").unwrap();
    assert_eq!(std::io::Read::read(&mut kept, &mut [0; 1]).unwrap(), 1);
}

#[tokio::test]
async fn a_reply_that_is_larger_than_it_may_be_is_an_error_and_no_more() {
    let fixture = Fixture::new().await;
    fixture.handle.start(web()).await.unwrap();
    *fixture.agent.processes.lock().unwrap() = crate::guest::limits::PROCESSES_MAX + 1;
    let error = fixture.handle.processes("web".into()).await.unwrap_err();
    assert!(
        matches!(error, TaskError::Agent(AgentError::Malformed(_))),
        "{error}"
    );
    *fixture.agent.processes.lock().unwrap() = 2;
    let processes = fixture.handle.processes("web".into()).await.unwrap();
    assert_eq!(processes.len(), 2);
}
