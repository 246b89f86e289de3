//! An agent that does not answer in time.

use super::*;

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
