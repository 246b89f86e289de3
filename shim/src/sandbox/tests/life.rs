//! From creation to deletion, of containers, execs, members and the sandbox.

use super::*;

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
