//! Create, start, signal, exec, delete; exits and their order.

use agent_api::agent::event;
use serde_json::json;
use ttrpc::Code;

use crate::agent::{Agent, Ends, container, deadline, exec_of, process, refused, sh};

#[tokio::test]
async fn exit_status_is_the_programs() {
    let mut agent = Agent::start().await;
    let spec = agent.spec(&sh("exit 3"));
    assert_eq!(agent.run(&spec).await.status, 3);
}

#[tokio::test]
async fn a_created_container_waits_for_its_start() {
    let mut agent = Agent::start().await;
    let spec = agent.spec(&sh("echo begun"));
    let mut ends = agent.pipes().await;
    ends.stdin = None;
    let pid = agent.create("c", &spec, &ends).await.unwrap();
    let pids = agent
        .client
        .pids(deadline(), &container("c"))
        .await
        .unwrap()
        .pids;
    assert_eq!(pids, [pid]);
    assert_eq!(agent.start_container("c").await.unwrap(), pid);
    let output = agent.finish("c", "", ends).await;
    assert_eq!((output.status, output.stdout.as_str()), (0, "begun\n"));
}

#[tokio::test]
async fn a_missing_program_is_an_error_of_create_and_leaves_nothing() {
    let agent = Agent::start().await;
    let (code, message) = refused(
        agent
            .create("c", &agent.spec(&["no-such"]), &Ends::default())
            .await,
    );
    assert_eq!(code, Code::NOT_FOUND);
    assert_eq!(
        message,
        "exec \"no-such\": executable file not found in $PATH"
    );
    assert!(!agent.cgroup.join("c").exists());
    assert_eq!(refused(agent.delete("c").await).0, Code::NOT_FOUND);
    agent
        .create("c", &agent.spec(&["true"]), &Ends::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_file_that_cannot_be_executed_is_told_from_a_missing_one() {
    let agent = Agent::start().await;
    let (code, message) = refused(
        agent
            .create("c", &agent.spec(&["/bin/plain"]), &Ends::default())
            .await,
    );
    assert_eq!(
        (code, message.as_str()),
        (
            Code::PERMISSION_DENIED,
            "exec \"/bin/plain\": permission denied"
        )
    );
    let (code, _) = refused(
        agent
            .create("c", &agent.spec(&["/etc"]), &Ends::default())
            .await,
    );
    assert_eq!(code, Code::PERMISSION_DENIED);
}

#[tokio::test]
async fn a_relative_working_directory_is_refused() {
    let agent = Agent::start().await;
    let mut spec = agent.spec(&["true"]);
    spec["process"]["cwd"] = json!("tmp");
    let (code, message) = refused(agent.create("c", &spec, &Ends::default()).await);
    assert_eq!(
        (code, message.as_str()),
        (
            Code::INVALID_ARGUMENT,
            "cwd \"tmp\" is not an absolute path"
        )
    );
}

#[tokio::test]
async fn a_killed_container_exits_with_137() {
    let mut agent = Agent::start().await;
    agent.running(&agent.spec(&["sleep", "100"])).await;
    agent.signal("c", 9, false).await.unwrap();
    assert_eq!(agent.exit("c", "").await.status, 137);
    assert_eq!(
        refused(agent.signal("c", 9, false).await).0,
        Code::FAILED_PRECONDITION
    );
    agent.delete("c").await.unwrap();
}

#[tokio::test]
async fn a_signal_reaches_the_programs_handler() {
    let mut agent = Agent::start().await;
    let spec = agent.spec(&sh(
        "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done",
    ));
    let mut ends = agent.pipes().await;
    agent.create("c", &spec, &ends).await.unwrap();
    agent.start_container("c").await.unwrap();
    let mut ready = [0; 6];
    tokio::io::AsyncReadExt::read_exact(ends.stdout.as_mut().unwrap(), &mut ready)
        .await
        .unwrap();
    agent.signal("c", 15, false).await.unwrap();
    assert_eq!(agent.exit("c", "").await.status, 9);
}

#[tokio::test]
async fn a_created_container_can_be_deleted() {
    let agent = Agent::start().await;
    agent
        .create("c", &agent.spec(&["true"]), &Ends::default())
        .await
        .unwrap();
    agent.delete("c").await.unwrap();
    assert!(!agent.cgroup.join("c").exists());
}

#[tokio::test]
async fn delete_ends_what_the_init_left_behind() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&sh("sleep 1000 >/dev/null 2>&1 & exit 0"));
    spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
    agent.running(&spec).await;
    agent.exit("c", "").await;
    agent.delete("c").await.unwrap();
    assert!(!agent.cgroup.join("c").exists());
}

#[tokio::test]
async fn a_running_container_is_not_deleted() {
    let agent = Agent::start().await;
    agent.running(&agent.spec(&["sleep", "100"])).await;
    assert_eq!(
        refused(agent.delete("c").await).0,
        Code::FAILED_PRECONDITION
    );
    assert_eq!(
        refused(agent.start_container("c").await).0,
        Code::FAILED_PRECONDITION
    );
}

#[tokio::test]
async fn an_exec_is_inside_the_container() {
    let mut agent = Agent::start().await;
    agent.running(&agent.spec(&["sleep", "100"])).await;
    let script = "hostname; cat /proc/1/comm; cat /proc/self/cgroup; ls /; exit 5";
    let output = agent.run_exec("c", &process(&sh(script))).await;
    assert_eq!(output.status, 5, "{}", output.stderr);
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines[..2], ["box", "sleep"]);
    assert!(
        lines.contains(&"0::/") && lines.contains(&"home"),
        "{}",
        output.stdout
    );
}

#[tokio::test]
async fn an_exec_of_a_missing_program_fails_and_exits_with_127() {
    let mut agent = Agent::start().await;
    agent.running(&agent.spec(&["sleep", "100"])).await;
    let (code, message) = refused(
        agent
            .exec("c", "e", &process(&["no-such"]), &Ends::default())
            .await,
    );
    assert_eq!(
        (code, message.as_str()),
        (
            Code::NOT_FOUND,
            "exec \"no-such\": executable file not found in $PATH"
        )
    );
    assert_eq!(agent.exit("c", "e").await.status, 127);
    agent
        .client
        .delete_process(deadline(), &exec_of("c", "e"))
        .await
        .unwrap();
    assert_eq!(agent.run_exec("c", &process(&["true"])).await.status, 0);
}

#[tokio::test]
async fn a_signal_to_all_reaches_execs() {
    let mut agent = Agent::start().await;
    agent.running(&agent.spec(&["sleep", "100"])).await;
    agent
        .exec("c", "e", &process(&["sleep", "100"]), &Ends::default())
        .await
        .unwrap();
    agent.signal("c", 9, true).await.unwrap();
    assert_eq!(agent.exit("c", "").await.status, 137);
    assert_eq!(agent.exit("c", "e").await.status, 137);
}

#[tokio::test]
async fn exits_before_the_subscription_are_kept_in_order() {
    let mut agent = Agent::start_unsubscribed().await;
    for id in ["a", "b"] {
        agent
            .create(id, &agent.spec(&["true"]), &Ends::default())
            .await
            .unwrap();
        agent.start_container(id).await.unwrap();
        while !agent
            .client
            .pids(deadline(), &container(id))
            .await
            .unwrap()
            .pids
            .is_empty()
        {}
    }
    agent.subscribe().await;
    for id in ["a", "b"] {
        match agent.event().await {
            event::Kind::Exit(exit) => assert_eq!(exit.container_id, id),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn the_end_of_the_connection_ends_agent_and_containers() {
    let mut agent = Agent::start().await;
    agent.running(&agent.spec(&["sleep", "100"])).await;
    let _ = agent
        .client
        .shutdown(
            ttrpc::context::with_duration(std::time::Duration::from_secs(1)),
            &agent_api::agent::Empty::new(),
        )
        .await;
    assert!(agent.process.wait().unwrap().success());
    let populated = || {
        std::fs::read_to_string(agent.cgroup.join("cgroup.events"))
            .unwrap()
            .contains("populated 1")
    };
    let deadline = std::time::Instant::now() + crate::agent::PATIENCE;
    while populated() {
        assert!(std::time::Instant::now() < deadline, "processes are left");
    }
}

#[tokio::test]
async fn ids_that_are_no_names_are_refused() {
    let agent = Agent::start().await;
    for id in ["", ".", "..", "a/b", "../x"] {
        assert_eq!(
            refused(
                agent
                    .create(id, &agent.spec(&["true"]), &Ends::default())
                    .await
            )
            .0,
            Code::INVALID_ARGUMENT,
            "{id:?}"
        );
    }
}
