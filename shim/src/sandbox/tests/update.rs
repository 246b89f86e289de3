//! Limits, and the size of the VM that follows from them.

use super::*;

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
