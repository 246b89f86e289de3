//! Pausing, and what a paused container may be asked.

use super::*;

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
