//! What a container, or a burst of what the host does, must not do to the agent.

use std::io::ErrorKind;

use std::path::PathBuf;

use agent_api::agent::UpdateRequest;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::Code;

use crate::agent::{
    Agent, Ends, PATIENCE, container, deadline, exec_of, process, read, refused, sh,
};

/// As many connections as may be about to say their id.
const HANDSHAKES_MAX: usize = 64;

fn pid(agent: &Agent) -> Pid {
    Pid::from_raw(agent.process.id().try_into().unwrap()).unwrap()
}

/// The agent is one thread: when it has answered twice it has looked at everything that was there before.
async fn turns(agent: &Agent) {
    for _ in 0..2 {
        assert_eq!(refused(agent.delete("none").await).0, Code::NOT_FOUND);
    }
}

#[tokio::test]
async fn streams_are_taken_again_after_a_want_of_descriptors() {
    let mut agent = Agent::start().await;
    let open = std::fs::read_dir(format!("/proc/{}/fd", agent.process.id()))
        .unwrap()
        .count();
    let limit = Rlimit {
        current: Some(open.try_into().unwrap()),
        maximum: Some(65_536),
    };
    let before = prlimit(Some(pid(&agent)), Resource::Nofile, limit).unwrap();
    let waiting = UnixStream::connect(agent.path("stream")).await.unwrap();
    turns(&agent).await;
    prlimit(Some(pid(&agent)), Resource::Nofile, before).unwrap();
    let spec = agent.spec(&["echo", "hello"]);
    assert_eq!(agent.run(&spec).await.stdout, "hello\n");
    drop(waiting);
}

#[tokio::test]
async fn the_agent_has_descriptors_and_a_container_the_usual_limit() {
    let mut agent = Agent::start().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", agent.process.id())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let soft: u64 = line.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(soft >= 65_536, "{line}");
    let spec = agent.spec(&sh("ulimit -Sn; ulimit -Hn"));
    assert_eq!(agent.run(&spec).await.stdout, "1024\n524288\n");
}

#[tokio::test]
async fn a_connection_that_says_nothing_makes_way_for_a_newer_one() {
    let mut agent = Agent::start().await;
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES_MAX {
        silent.push(UnixStream::connect(agent.path("stream")).await.unwrap());
    }
    turns(&agent).await;
    let one_more = agent.open().await;
    let mut byte = [0];
    let read = timeout(PATIENCE, silent[0].read(&mut byte)).await;
    assert_eq!(read.expect("it is closed").unwrap(), 0);
    let second = silent[1].try_read(&mut byte).map_err(|error| error.kind());
    assert_eq!(second, Err(ErrorKind::WouldBlock), "the others stay");
    drop(one_more);
}

/// A cgroup of the test's own, removed with it.
struct Group(PathBuf);

impl Group {
    fn beside(agent: &Agent) -> Self {
        let path = agent.cgroup.with_extension("beside");
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test]
async fn the_agent_needs_no_new_thread_for_what_waits() {
    let agent = Agent::start().await;
    agent.running(&agent.spec(&["sleep", "1000"])).await;
    let group = Group::beside(&agent);
    let id = agent.process.id().to_string();
    std::fs::write(group.0.join("cgroup.procs"), id).unwrap();
    // As many as it has.
    std::fs::write(group.0.join("pids.max"), "1").unwrap();
    let request = UpdateRequest {
        container_id: "c".to_owned(),
        resources: json!({"pids": {"limit": 77}}).to_string().into_bytes(),
        ..UpdateRequest::default()
    };
    agent.client.update(deadline(), &request).await.unwrap();
    let limit = std::fs::read_to_string(agent.cgroup.join("c/pids.max")).unwrap();
    assert_eq!(limit, "77\n");
    let listed = agent.client.processes(deadline(), &container("c")).await;
    assert_eq!(listed.unwrap().processes[0].command, ["sleep", "1000"]);
    drop(agent);
}

/// Lets the container make cgroups.
fn may_divide_its_cgroup(spec: &mut Value) {
    let mounts = spec["mounts"].as_array_mut().unwrap();
    let cgroup = mounts.iter_mut().find(|mount| mount["type"] == "cgroup");
    cgroup.unwrap()["options"] = json!(["nosuid", "noexec", "nodev"]);
}

#[tokio::test]
async fn an_exec_is_beside_the_init_of_a_container_that_has_divided_its_cgroup() {
    let mut agent = Agent::start().await;
    let ends = agent.pipes().await;
    let script = "cd /sys/fs/cgroup; mkdir init; echo 1 >init/cgroup.procs; \
        echo +memory >cgroup.subtree_control; echo divided; exec >/dev/null 2>&1; sleep 1000";
    let mut spec = agent.spec(&sh(script));
    may_divide_its_cgroup(&mut spec);
    agent.create("c", &spec, &ends).await.unwrap();
    agent.start_container("c").await.unwrap();
    assert_eq!(read(ends.stdout).await, "divided\n");
    let output = agent
        .run_exec("c", &process(&["cat", "/proc/self/cgroup"]))
        .await;
    assert_eq!(output.stdout, "0::/init\n", "{}", output.stderr);
    agent.signal("c", 9, false).await.unwrap();
    agent.exit("c", "").await;
    agent.delete("c").await.unwrap();
    assert!(!agent.cgroup.join("c").exists());
}

#[tokio::test]
async fn cgroups_of_a_container_are_bounded_and_go_with_it() {
    let mut agent = Agent::start().await;
    let script = "cd /sys/fs/cgroup; d=0; while mkdir a 2>/dev/null && cd a; do d=$((d + 1)); \
        test $d -lt 64 || break; done; echo $d deep; cat /sys/fs/cgroup/cgroup.max.descendants";
    let mut spec = agent.spec(&sh(script));
    may_divide_its_cgroup(&mut spec);
    let output = agent.run(&spec).await;
    assert_eq!(output.stdout, "16 deep\n4096\n", "{}", output.stderr);
    assert!(!agent.cgroup.join("run").exists());
}

#[tokio::test]
async fn a_table_of_users_that_is_a_fifo_names_nobody() {
    let mut agent = Agent::start().await;
    let script = "busybox rm /etc/passwd; mknod /etc/passwd p; sleep 1000";
    agent.running(&agent.spec(&sh(script))).await;
    let fifo = agent.path("rootfs/etc/passwd");
    while !std::fs::metadata(&fifo).is_ok_and(|found| is_fifo(&found)) {
        tokio::task::yield_now().await;
    }
    let output = agent.run_exec("c", &process(&sh("echo $HOME"))).await;
    assert_eq!(output.stdout, "/\n");
}

fn is_fifo(found: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_fifo(&found.file_type())
}

/// Stops what is in the agent's cgroups, and what comes into them: a set-up hangs there, as on a file system that does not answer.
fn hold(agent: &Agent, held: bool) {
    let value = if held { "1" } else { "0" };
    std::fs::write(agent.cgroup.join("cgroup.freeze"), value).unwrap();
}

/// Waits until the cgroup of `c` has `count` processes.
async fn until_processes(agent: &Agent, count: usize) {
    let procs = agent.cgroup.join("c/cgroup.procs");
    while std::fs::read_to_string(&procs).map_or(0, |text| text.lines().count()) != count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_exec_that_hangs_while_it_is_made_can_be_killed() {
    let mut agent = Agent::start().await;
    agent.running(&agent.spec(&["sleep", "1000"])).await;
    hold(&agent, true);
    let (client, none) = (agent.client.clone(), Ends::default());
    let command = process(&["true"]);
    let exec = agent.exec("c", "e", &command, &none);
    let kill = async {
        until_processes(&agent, 2).await;
        let request = agent_api::agent::SignalRequest {
            container_id: "c".to_owned(),
            exec_id: "e".to_owned(),
            signal: 15,
            ..Default::default()
        };
        let refusal = refused(client.signal(deadline(), &request).await);
        assert_eq!(refusal.0, Code::FAILED_PRECONDITION, "{}", refusal.1);
        let signal = 9;
        let kill = agent_api::agent::SignalRequest { signal, ..request };
        client.signal(deadline(), &kill).await.unwrap();
    };
    let (made, ()) = tokio::join!(exec, kill);
    let (code, message) = refused(made);
    assert_eq!(code, Code::INTERNAL);
    assert_eq!(message, "the process was killed while it was set up");
    assert_eq!(agent.exit("c", "e").await.status, 137);
    let name = exec_of("c", "e");
    let deleted = agent.client.delete_process(deadline(), &name);
    deleted.await.unwrap();
    hold(&agent, false);
    assert_eq!(agent.run_exec("c", &process(&["true"])).await.status, 0);
}

#[tokio::test]
async fn an_exec_that_hangs_while_it_is_made_can_be_deleted() {
    let mut agent = Agent::start().await;
    agent.running(&agent.spec(&["sleep", "1000"])).await;
    hold(&agent, true);
    let (client, none) = (agent.client.clone(), Ends::default());
    let command = process(&["true"]);
    let exec = agent.exec("c", "e", &command, &none);
    let delete = async {
        until_processes(&agent, 2).await;
        let name = exec_of("c", "e");
        let deleted = client.delete_process(deadline(), &name);
        deleted.await.unwrap();
        until_processes(&agent, 1).await;
    };
    let (made, ()) = tokio::join!(exec, delete);
    assert_eq!(refused(made).0, Code::INTERNAL);
    assert_eq!(agent.exit("c", "e").await.status, 137);
    hold(&agent, false);
    assert_eq!(agent.run_exec("c", &process(&["true"])).await.status, 0);
}

#[tokio::test]
async fn a_container_that_hangs_while_it_is_made_can_be_deleted() {
    let agent = Agent::start().await;
    hold(&agent, true);
    let (spec, none) = (agent.spec(&["true"]), Ends::default());
    let create = agent.create("c", &spec, &none);
    let delete = async {
        until_processes(&agent, 1).await;
        agent.delete("c").await.unwrap();
    };
    let (made, ()) = tokio::join!(create, delete);
    let (code, message) = refused(made);
    assert_eq!(code, Code::INTERNAL);
    assert_eq!(message, "the process was killed while it was set up");
    assert!(!agent.cgroup.join("c").exists());
    hold(&agent, false);
    agent.create("c", &spec, &none).await.unwrap();
    agent.delete("c").await.unwrap();
}

#[tokio::test]
async fn a_container_with_an_exec_that_hangs_while_it_is_made_can_be_deleted() {
    let mut agent = Agent::start().await;
    agent.running(&agent.spec(&["sleep", "1000"])).await;
    hold(&agent, true);
    let (none, command) = (Ends::default(), process(&["true"]));
    let exec = agent.exec("c", "e", &command, &none);
    let end = async {
        until_processes(&agent, 2).await;
        agent.signal("c", 9, false).await.unwrap();
        until_processes(&agent, 0).await;
    };
    let (made, ()) = tokio::join!(exec, end);
    assert_eq!(refused(made).0, Code::INTERNAL);
    assert_eq!(agent.exit("c", "").await.status, 137);
    agent.delete("c").await.unwrap();
    assert!(!agent.cgroup.join("c").exists());
    hold(&agent, false);
}

#[tokio::test]
async fn devices_are_denied_whatever_is_said_of_resources() {
    let mut agent = Agent::start().await;
    let script = "mknod /tmp/fuse c 10 229; (: </tmp/fuse) 2>&1; : </dev/null && echo null";
    let mut spec = agent.spec(&sh(script));
    for resources in [json!(null), json!({}), json!({"pids": {"limit": 9}})] {
        spec["linux"]["resources"] = resources;
        let output = agent.run(&spec).await;
        assert_eq!(
            output.stdout, "sh: can't open /tmp/fuse: Operation not permitted\nnull\n",
            "{}",
            output.stderr
        );
        std::fs::remove_file(agent.path("rootfs/tmp/fuse")).unwrap();
    }
}
