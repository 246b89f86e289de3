//! Podman finds what it expects of a runtime.

use harness::{CommandLine as _, Podman};

use crate::engines;

#[test]
fn status_and_outputs_are_the_containers_and_are_logged() {
    engines::status_and_outputs_are_the_containers_and_are_logged(&Podman::with_busybox());
}

#[test]
fn programs_that_cannot_be_executed_have_podmans_statuses() {
    engines::programs_that_cannot_be_executed_have_statuses_of_their_own(&Podman::with_busybox());
}

#[test]
fn input_reaches_the_process_and_ends() {
    engines::input_reaches_the_process_and_ends(&Podman::with_busybox());
}

#[test]
fn a_terminal_is_the_users() {
    engines::a_terminal_is_the_users(&Podman::with_busybox());
}

#[test]
fn an_exec_has_status_output_and_terminal_of_its_own() {
    let podman = Podman::with_busybox();
    engines::an_exec_has_status_output_and_terminal_of_its_own(&podman);
    podman.call(&["exec", "web", "nonesuch"]).assert_status(127);
}

#[test]
fn stop_asks_first_and_kills_then() {
    engines::stop_asks_first_and_kills_then(&Podman::with_busybox());
}

#[test]
fn removal_by_force_leaves_nothing() {
    engines::removal_by_force_leaves_nothing(&Podman::with_busybox(), &["--force", "--time", "0"]);
}

#[test]
fn a_container_can_be_started_again() {
    engines::a_container_can_be_started_again(&Podman::with_busybox());
}

#[test]
fn a_restart_policy_is_kept() {
    engines::a_restart_policy_is_kept(&Podman::with_busybox());
}

#[test]
fn volumes_are_written_or_protected() {
    engines::volumes_are_written_or_protected(&Podman::with_busybox());
}

#[test]
fn copies_are_of_the_containers_files() {
    engines::copies_are_of_the_containers_files(&Podman::with_busybox());
}

#[test]
fn namespaces_of_another_container_are_shared() {
    engines::namespaces_of_another_container_are_shared(&Podman::with_busybox());
}

#[test]
fn limits_user_and_names_are_inside() {
    engines::limits_user_and_names_are_inside(&Podman::with_busybox());
}

#[test]
fn health_and_figures_are_the_containers() {
    let podman = Podman::with_busybox();
    let options = [
        "--health-cmd",
        "test -e /ill || true; test ! -e /ill",
        "--health-interval",
        "disable",
    ];
    podman.start("web", &options, &["sleep", "1000"]);
    podman.call(&["healthcheck", "run", "web"]).assert_status(0);
    podman
        .call(&["exec", "web", "touch", "/ill"])
        .assert_status(0);
    podman.call(&["healthcheck", "run", "web"]).assert_status(1);
    let format = "{{.PIDs}} {{.MemUsage}}";
    let stats = podman.call(&["stats", "--no-stream", "--format", format, "web"]);
    stats.assert_status(0);
    assert!(!stats.text().starts_with('0'), "{stats:?}");
    assert!(!stats.text().contains(" 0B /"), "{stats:?}");
}

#[test]
fn a_pod_is_one_vm() {
    let podman = Podman::with_busybox();
    let create = ["pod", "create", "--name", "pod", "--network", "none"];
    let infra = [
        "--infra-image",
        "busybox",
        "--infra-command",
        "/bin/sleep 1000",
    ];
    // Below a pod's own cgroup Podman 4.3 lets nobody open a device, whatever the runtime.
    let options = [&create[..], &infra, &["--share-parent=false"]].concat();
    podman.call(&options).assert_status(0);
    let server = "echo hello | nc -l -p 7000";
    let script = format!("cat /proc/sys/kernel/random/boot_id; {server}; exit 3");
    let web = [
        "run", "--detach", "--name", "web", "--pod", "pod", "busybox",
    ];
    let words = [&web[..], &["sh", "-c", &script]].concat();
    podman.call(&words).assert_status(0);
    let client = "until nc 127.0.0.1 7000; do sleep 0.1; done; cat /proc/sys/kernel/random/boot_id";
    let beside = ["run", "--rm", "--pod", "pod", "busybox", "sh", "-c", client];
    let heard = podman.call(&beside);
    heard.assert_status(0);
    let waited = podman.call(&["wait", "web"]);
    assert_eq!(waited.text(), "3\n", "{waited:?}");
    let boot = podman.call(&["logs", "web"]).text();
    assert_eq!(heard.text(), format!("hello\n{boot}"));
    let remove = ["pod", "rm", "--force", "--time", "0", "pod"];
    podman.call(&remove).assert_status(0);
}
