//! Pause and resume, new limits, statistics, and the list of processes.

use std::collections::HashMap;

use agent_api::agent::{Empty, UpdateRequest};
use serde_json::{Value, json};
use ttrpc::Code;

use crate::agent::{Agent, Ends, container, deadline, process, refused, sh};

async fn pause(agent: &Agent, id: &str) -> ttrpc::Result<Empty> {
    agent.client.pause(deadline(), &container(id)).await
}

async fn resume(agent: &Agent, id: &str) -> ttrpc::Result<Empty> {
    agent.client.resume(deadline(), &container(id)).await
}

async fn update(agent: &Agent, id: &str, resources: &Value) -> ttrpc::Result<Empty> {
    let request = UpdateRequest {
        container_id: id.to_owned(),
        resources: resources.to_string().into_bytes(),
        ..UpdateRequest::default()
    };
    agent.client.update(deadline(), &request).await
}

async fn stats(agent: &Agent, id: &str) -> ttrpc::Result<HashMap<String, String>> {
    let reply = agent.client.stats(deadline(), &container(id)).await?;
    Ok(reply.files)
}

fn file(agent: &Agent, name: &str) -> String {
    let text = std::fs::read_to_string(agent.cgroup.join("c").join(name)).unwrap();
    text.trim().to_owned()
}

#[tokio::test]
async fn a_paused_container_stands_still_until_it_is_resumed() {
    let mut agent = Agent::start().await;
    agent.running(&agent.spec(&sh("while :; do :; done"))).await;
    pause(&agent, "c").await.unwrap();
    assert!(file(&agent, "cgroup.events").contains("frozen 1"));
    let used = file(&agent, "cpu.stat");
    assert_eq!(file(&agent, "cpu.stat"), used, "no time is used any more");
    resume(&agent, "c").await.unwrap();
    assert_eq!(file(&agent, "cgroup.freeze"), "0");
    agent.signal("c", 9, false).await.unwrap();
    assert_eq!(agent.exit("c", "").await.status, 137);
}

#[tokio::test]
async fn a_paused_container_starts_nothing() {
    let mut agent = Agent::start().await;
    agent.running(&agent.spec(&["sleep", "100"])).await;
    pause(&agent, "c").await.unwrap();
    let (code, message) = refused(
        agent
            .exec("c", "e", &process(&["true"]), &Ends::default())
            .await,
    );
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert_eq!(message, "container \"c\" is paused");
    resume(&agent, "c").await.unwrap();
    assert_eq!(agent.run_exec("c", &process(&["true"])).await.status, 0);
}

#[tokio::test]
async fn a_created_container_can_be_paused_and_starts_after_its_resume() {
    let mut agent = Agent::start().await;
    let spec = agent.spec(&["true"]);
    agent.create("c", &spec, &Ends::default()).await.unwrap();
    pause(&agent, "c").await.unwrap();
    for refusal in [
        refused(agent.start_container("c").await).0,
        refused(agent.delete("c").await).0,
    ] {
        assert_eq!(refusal, Code::FAILED_PRECONDITION);
    }
    resume(&agent, "c").await.unwrap();
    agent.start_container("c").await.unwrap();
    assert_eq!(agent.exit("c", "").await.status, 0);
}

#[tokio::test]
async fn a_kill_reaches_a_paused_container_and_it_can_be_deleted() {
    let mut agent = Agent::start().await;
    for all in [false, true] {
        agent.running(&agent.spec(&["sleep", "100"])).await;
        pause(&agent, "c").await.unwrap();
        agent.signal("c", 9, all).await.unwrap();
        assert_eq!(agent.exit("c", "").await.status, 137);
        assert_eq!(
            refused(resume(&agent, "c").await).0,
            Code::FAILED_PRECONDITION
        );
        agent.delete("c").await.unwrap();
    }
}

#[tokio::test]
async fn pause_and_resume_in_the_wrong_state_change_nothing() {
    let mut agent = Agent::start().await;
    assert_eq!(refused(pause(&agent, "c").await).0, Code::NOT_FOUND);
    agent.running(&agent.spec(&["sleep", "100"])).await;
    let (code, message) = refused(resume(&agent, "c").await);
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert_eq!(message, "container \"c\" is not paused");
    pause(&agent, "c").await.unwrap();
    let (code, message) = refused(pause(&agent, "c").await);
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert_eq!(message, "container \"c\" is paused");
    assert_eq!(file(&agent, "cgroup.freeze"), "1");
    agent.signal("c", 9, false).await.unwrap();
    agent.exit("c", "").await;
    let (code, message) = refused(pause(&agent, "c").await);
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert_eq!(message, "container \"c\" is stopped");
}

#[tokio::test]
async fn an_update_sets_what_it_gives_and_nothing_else() {
    let agent = Agent::start().await;
    let mut spec = agent.spec(&["sleep", "100"]);
    spec["linux"]["resources"] = json!({
        "memory": {"limit": 67_108_864},
        "pids": {"limit": 20},
        "cpu": {"quota": 50000, "period": 100_000},
        "devices": [{"allow": false, "access": "rwm"}],
    });
    agent.create("c", &spec, &Ends::default()).await.unwrap();
    update(&agent, "c", &json!({"cpu": {"quota": 20000}}))
        .await
        .unwrap();
    assert_eq!(file(&agent, "cpu.max"), "20000 100000");
    update(&agent, "c", &json!({"cpu": {"period": 50000}}))
        .await
        .unwrap();
    assert_eq!(file(&agent, "cpu.max"), "20000 50000");
    agent.start_container("c").await.unwrap();
    pause(&agent, "c").await.unwrap();
    let more = json!({"memory": {"limit": 134_217_728}, "unified": {"memory.high": "100000000"}});
    update(&agent, "c", &more).await.unwrap();
    assert_eq!(file(&agent, "memory.max"), "134217728");
    assert_eq!(file(&agent, "memory.high"), "99999744", "whole pages");
    assert_eq!(file(&agent, "pids.max"), "20");
}

#[tokio::test]
async fn an_update_that_cannot_be_done_names_its_key() {
    let mut agent = Agent::start().await;
    let bad = json!({"pids": {"limit": 7}});
    assert_eq!(refused(update(&agent, "c", &bad).await).0, Code::NOT_FOUND);
    agent.running(&agent.spec(&["sleep", "100"])).await;
    for (given, code, what) in [
        (
            json!({"memory": {"limit": 1, "checkBeforeUpdate": true}}),
            Code::INVALID_ARGUMENT,
            "linux.resources.memory.limit: below what is used now, and checkBeforeUpdate is given",
        ),
        (
            json!({"unified": {"no.such": "1"}}),
            Code::INVALID_ARGUMENT,
            "cannot set linux.resources.unified: the guest's kernel has no no.such",
        ),
        (
            json!({"cpu": {"cpus": "9999"}}),
            Code::INTERNAL,
            "cannot set linux.resources.cpu.cpus (cpuset.cpus to \"9999\"): ",
        ),
        (
            json!({"pids": 7}),
            Code::INVALID_ARGUMENT,
            "the specification is not valid JSON: ",
        ),
    ] {
        let (refused, message) = refused(update(&agent, "c", &given).await);
        assert_eq!(refused, code, "{message}");
        assert!(message.starts_with(what), "{message}");
    }
    agent.signal("c", 9, false).await.unwrap();
    agent.exit("c", "").await;
    let (code, _) = refused(update(&agent, "c", &bad).await);
    assert_eq!(code, Code::FAILED_PRECONDITION);
}

#[tokio::test]
async fn statistics_are_the_cgroups_files() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&["sleep", "100"]);
    spec["linux"]["resources"] = json!({"pids": {"limit": 20}});
    agent.running(&spec).await;
    let files = stats(&agent, "c").await.unwrap();
    assert_eq!(files["pids.current"], "1\n");
    assert_eq!(files["pids.max"], "20\n");
    assert!(files["cpu.stat"].starts_with("usage_usec "));
    for name in ["memory.current", "memory.max", "memory.stat", "io.stat"] {
        assert!(files.contains_key(name), "{name} in {files:?}");
    }
    assert!(!files.contains_key("cgroup.procs"));
    agent.signal("c", 9, false).await.unwrap();
    agent.exit("c", "").await;
    assert_eq!(
        refused(stats(&agent, "c").await).0,
        Code::FAILED_PRECONDITION
    );
}

#[tokio::test]
async fn processes_are_listed_as_ps_would() {
    let mut agent = Agent::start().await;
    let before = std::time::SystemTime::now();
    let ends = agent.terminal().await;
    let mut spec = agent.spec(&sh("sleep 100 & wait"));
    spec["process"]["terminal"] = json!(true);
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let init = agent.create("c", &spec, &ends).await.unwrap();
    agent.start_container("c").await.unwrap();
    // The shell has forked once there are two.
    let listed = loop {
        let request = container("c");
        let reply = agent.client.processes(deadline(), &request).await.unwrap();
        if reply.processes.len() == 2 && reply.processes[1].command.len() == 2 {
            break reply.processes;
        }
    };
    assert_eq!(listed[0].pid, init);
    assert_eq!(listed[0].command, ["sh", "-c", "sleep 100 & wait"]);
    assert_eq!(listed[1].parent, init);
    assert_eq!(listed[1].command, ["sleep", "100"]);
    for process in &listed {
        assert_eq!(process.uid, 1000);
        assert_eq!(process.terminal, "pts/0");
        let before = before.duration_since(std::time::UNIX_EPOCH).unwrap();
        let started = u128::try_from(process.started_ns).unwrap();
        let tick = 10_000_000;
        assert!(started + tick >= before.as_nanos(), "{started}");
    }
}
