//! A guest that says too much.

use super::*;

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
