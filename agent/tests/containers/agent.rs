//! An agent on this host, its containers, and the host's side of their streams.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use agent_api::agent::{
    ContainerRequest, CreateContainerRequest, CreateProcessRequest, Empty, Event, Exit,
    ProcessRequest, SignalRequest, Streams, WindowSize, event,
};
use agent_api::agent_ttrpc::AgentClient;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::with_duration;

/// Long enough for a slow machine; a promise that is broken shows as this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Agent {
    pub(crate) client: AgentClient,
    pub(crate) process: Child,
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    seen: VecDeque<Event>,
    pub(crate) cgroup: PathBuf,
    directory: TempDir,
    next_stream: u64,
}

/// The host's ends of a process's streams, and their ids for the agent.
#[derive(Default)]
pub(crate) struct Ends {
    pub(crate) stdin: Option<UnixStream>,
    pub(crate) stdout: Option<UnixStream>,
    pub(crate) stderr: Option<UnixStream>,
    pub(crate) terminal: Option<UnixStream>,
    ids: Streams,
}

pub(crate) struct Output {
    pub(crate) status: u32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Agent {
    pub(crate) async fn start() -> Self {
        let mut agent = Self::start_unsubscribed().await;
        agent.subscribe().await;
        agent
    }

    pub(crate) async fn start_unsubscribed() -> Self {
        let directory = tempfile::tempdir().unwrap();
        make_rootfs(&directory.path().join("rootfs"));
        let cgroup = format!(
            "husk-test-{}",
            directory.path().file_name().unwrap().to_str().unwrap()
        );
        let listener = UnixListener::bind(directory.path().join("control")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_husk-agent"))
            .arg("serve")
            .arg(directory.path())
            .arg(&cgroup)
            .spawn()
            .unwrap();
        let (control, _) = timeout(PATIENCE, listener.accept())
            .await
            .expect("the agent dials")
            .unwrap();
        let client = AgentClient::new(Client::new(Socket::new(control)));
        let (_, events) = mpsc::unbounded_channel();
        let cgroup = Path::new("/sys/fs/cgroup").join(cgroup);
        Self {
            client,
            process,
            events,
            seen: VecDeque::new(),
            cgroup,
            directory,
            next_stream: 1,
        }
    }

    pub(crate) async fn subscribe(&mut self) {
        let mut stream = self
            .client
            .events(ttrpc::context::Context::default(), &Empty::new())
            .await
            .unwrap();
        let (sender, events) = mpsc::unbounded_channel();
        self.events = events;
        tokio::spawn(async move {
            while let Ok(Some(event)) = stream.recv().await {
                sender.send(event).unwrap();
            }
        });
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A specification for `args`, as container managers write it.
    pub(crate) fn spec(&self, args: &[&str]) -> Value {
        let tmpfs = |at: &str, options: &[&str]| json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": options});
        json!({
            "ociVersion": "1.2.0",
            "process": process(args),
            "root": {"path": self.path("rootfs"), "readonly": false},
            "hostname": "box",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                tmpfs("/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
                tmpfs("/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            ],
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}, {"type": "cgroup"}],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware", "/no/such/path"],
                "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger", "/no/such/path"],
            },
        })
    }

    pub(crate) async fn open(&mut self) -> UnixStream {
        let mut stream = UnixStream::connect(self.path("stream")).await.unwrap();
        stream
            .write_all(&self.next_stream.to_le_bytes())
            .await
            .unwrap();
        self.next_stream += 1;
        stream
    }

    pub(crate) async fn pipes(&mut self) -> Ends {
        let first = self.next_stream;
        let (stdin, stdout, stderr) = (self.open().await, self.open().await, self.open().await);
        let ids = Streams {
            stdin: first,
            stdout: first + 1,
            stderr: first + 2,
            ..Streams::default()
        };
        Ends {
            stdin: Some(stdin),
            stdout: Some(stdout),
            stderr: Some(stderr),
            terminal: None,
            ids,
        }
    }

    pub(crate) async fn terminal(&mut self) -> Ends {
        let ids = Streams {
            terminal: self.next_stream,
            ..Streams::default()
        };
        Ends {
            terminal: Some(self.open().await),
            ids,
            ..Ends::default()
        }
    }

    pub(crate) async fn create(&self, id: &str, spec: &Value, ends: &Ends) -> ttrpc::Result<u32> {
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            spec: serde_json::to_vec(spec).unwrap(),
            streams: Some(ends.ids.clone()).into(),
            size: Some(WindowSize {
                width: 90,
                height: 30,
                ..WindowSize::default()
            })
            .into(),
            ..CreateContainerRequest::default()
        };
        Ok(self
            .client
            .create_container(deadline(), &request)
            .await?
            .pid)
    }

    pub(crate) async fn start_container(&self, id: &str) -> ttrpc::Result<u32> {
        Ok(self
            .client
            .start_container(deadline(), &container(id))
            .await?
            .pid)
    }

    /// Makes a container `c` run, with nothing on its streams; its pid.
    pub(crate) async fn running(&self, spec: &Value) -> u32 {
        self.create("c", spec, &Ends::default()).await.unwrap();
        self.start_container("c").await.unwrap()
    }

    pub(crate) async fn delete(&self, id: &str) -> ttrpc::Result<Empty> {
        self.client
            .delete_container(deadline(), &container(id))
            .await
    }

    pub(crate) async fn exec(
        &self,
        id: &str,
        exec: &str,
        process: &Value,
        ends: &Ends,
    ) -> ttrpc::Result<u32> {
        let request = CreateProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            process: serde_json::to_vec(process).unwrap(),
            streams: Some(ends.ids.clone()).into(),
            ..CreateProcessRequest::default()
        };
        self.client.create_process(deadline(), &request).await?;
        Ok(self
            .client
            .start_process(deadline(), &exec_of(id, exec))
            .await?
            .pid)
    }

    pub(crate) async fn signal(&self, id: &str, signal: u32, all: bool) -> ttrpc::Result<Empty> {
        let request = SignalRequest {
            container_id: id.to_owned(),
            signal,
            all,
            ..SignalRequest::default()
        };
        self.client.signal(deadline(), &request).await
    }

    /// The next event, of whatever kind.
    pub(crate) async fn event(&mut self) -> event::Kind {
        if let Some(event) = self.seen.pop_front() {
            return event.kind.unwrap();
        }
        timeout(PATIENCE, self.events.recv())
            .await
            .expect("an event")
            .expect("events go on")
            .kind
            .unwrap()
    }

    /// The exit of a process; other events stay for [`Self::event`].
    pub(crate) async fn exit(&mut self, id: &str, exec: &str) -> Exit {
        let is = |event: &Event| matches!(&event.kind, Some(event::Kind::Exit(exit)) if exit.container_id == id && exit.exec_id == exec);
        let at = self.seen.iter().position(is);
        let mut found = at.and_then(|at| self.seen.remove(at));
        while found.is_none() {
            let event = timeout(PATIENCE, self.events.recv())
                .await
                .expect("an exit")
                .expect("events go on");
            if is(&event) {
                found = Some(event);
            } else {
                self.seen.push_back(event);
            }
        }
        match found.unwrap().kind.unwrap() {
            event::Kind::Exit(exit) => exit,
            _ => unreachable!(),
        }
    }

    /// Runs a container to its end, with nothing on stdin.
    pub(crate) async fn run(&mut self, spec: &Value) -> Output {
        let mut ends = self.pipes().await;
        ends.stdin = None;
        self.create("run", spec, &ends).await.unwrap();
        self.start_container("run").await.unwrap();
        let output = self.finish("run", "", ends).await;
        self.delete("run").await.unwrap();
        output
    }

    /// Runs a further process to its end.
    pub(crate) async fn run_exec(&mut self, id: &str, process: &Value) -> Output {
        let mut ends = self.pipes().await;
        ends.stdin = None;
        let exec = format!("exec{}", self.next_stream);
        self.exec(id, &exec, process, &ends).await.unwrap();
        let output = self.finish(id, &exec, ends).await;
        self.client
            .delete_process(deadline(), &exec_of(id, &exec))
            .await
            .unwrap();
        output
    }

    pub(crate) async fn finish(&mut self, id: &str, exec: &str, ends: Ends) -> Output {
        let (stdout, stderr) = tokio::join!(read(ends.stdout), read(ends.stderr));
        let status = self.exit(id, exec).await.status;
        Output {
            status,
            stdout,
            stderr,
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // SIGKILL would leave containers behind; the end of the connection does not.
        let _ = std::fs::write(self.cgroup.join("cgroup.kill"), "1");
        let _ = self.process.kill();
        let _ = self.process.wait();
        for child in std::fs::read_dir(&self.cgroup)
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = std::fs::remove_dir(child.path());
        }
        let _ = std::fs::remove_dir(&self.cgroup);
    }
}

pub(crate) fn deadline() -> ttrpc::context::Context {
    with_duration(PATIENCE)
}

pub(crate) fn container(id: &str) -> ContainerRequest {
    ContainerRequest {
        container_id: id.to_owned(),
        ..ContainerRequest::default()
    }
}

pub(crate) fn exec_of(id: &str, exec: &str) -> ProcessRequest {
    ProcessRequest {
        container_id: id.to_owned(),
        exec_id: exec.to_owned(),
        ..ProcessRequest::default()
    }
}

pub(crate) fn process(args: &[&str]) -> Value {
    let caps = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_KILL",
        "CAP_MKNOD",
    ];
    json!({
        "args": args,
        "cwd": "/",
        "env": ["PATH=/bin", "TERM=xterm"],
        "user": {"uid": 0, "gid": 0},
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        "noNewPrivileges": true,
    })
}

pub(crate) fn sh(script: &str) -> [&str; 3] {
    ["sh", "-c", script]
}

pub(crate) async fn read(stream: Option<UnixStream>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        timeout(PATIENCE, stream.read_to_end(&mut bytes))
            .await
            .expect("the stream ends")
            .unwrap();
    }
    String::from_utf8(bytes).unwrap()
}

/// The code and message of an RPC that failed.
pub(crate) fn refused<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message().to_owned()),
        other => panic!("not refused: {other:?}"),
    }
}

/// A small user land: busybox under all of its names.
fn make_rootfs(rootfs: &Path) {
    let bin = rootfs.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    for directory in ["etc", "tmp", "proc", "sys", "dev", "home/user"] {
        std::fs::create_dir_all(rootfs.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", bin.join("busybox")).expect("package busybox-static");
    for name in [
        "sh", "cat", "echo", "sleep", "id", "ls", "stty", "tty", "hostname", "mkdir", "touch",
        "grep", "head", "yes", "dd", "pwd", "env", "tail", "mknod", "kill", "stat", "test", "ip",
        "chmod", "wc", "true", "readlink",
    ] {
        std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
    }
    std::fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(rootfs.join("bin/plain"), "not a program\n").unwrap();
}
