//! Docker, through containerd and its shim for runc, finds what it expects of a runtime.

use harness::{CommandLine as _, Docker, only_husk, wait};

use crate::engines;

#[test]
fn status_and_outputs_are_the_containers_and_are_logged() {
    engines::status_and_outputs_are_the_containers_and_are_logged(&Docker::with_busybox());
}

#[test]
fn programs_that_cannot_be_executed_have_dockers_statuses() {
    engines::programs_that_cannot_be_executed_have_statuses_of_their_own(&Docker::with_busybox());
}

#[test]
fn input_reaches_the_process_and_ends() {
    engines::input_reaches_the_process_and_ends(&Docker::with_busybox());
}

#[test]
fn a_terminal_is_the_users() {
    engines::a_terminal_is_the_users(&Docker::with_busybox());
}

#[test]
fn an_exec_has_status_output_and_terminal_of_its_own() {
    engines::an_exec_has_status_output_and_terminal_of_its_own(&Docker::with_busybox());
}

#[test]
fn stop_asks_first_and_kills_then() {
    engines::stop_asks_first_and_kills_then(&Docker::with_busybox());
}

#[test]
fn removal_by_force_leaves_nothing() {
    engines::removal_by_force_leaves_nothing(&Docker::with_busybox(), &["--force"]);
}

#[test]
fn a_container_can_be_started_again() {
    engines::a_container_can_be_started_again(&Docker::with_busybox());
}

#[test]
fn a_restart_policy_is_kept() {
    engines::a_restart_policy_is_kept(&Docker::with_busybox());
}

#[test]
fn volumes_are_written_or_protected() {
    engines::volumes_are_written_or_protected(&Docker::with_busybox());
}

#[test]
fn copies_are_of_the_containers_files() {
    engines::copies_are_of_the_containers_files(&Docker::with_busybox());
}

#[test]
fn namespaces_of_another_container_are_shared() {
    engines::namespaces_of_another_container_are_shared(&Docker::with_busybox());
}

#[test]
fn limits_user_and_names_are_inside() {
    engines::limits_user_and_names_are_inside(&Docker::with_busybox());
}

#[test]
fn health_is_asked_for_inside() {
    let docker = Docker::with_busybox();
    let options = [
        "--health-cmd",
        "test ! -e /ill",
        "--health-interval",
        "1s",
        "--health-retries",
        "1",
    ];
    docker.start("web", &options, &["sleep", "1000"]);
    await_health(&docker, "healthy");
    docker
        .call(&["exec", "--detach", "web", "touch", "/ill"])
        .assert_status(0);
    await_health(&docker, "unhealthy");
}

fn await_health(docker: &Docker, wanted: &str) {
    wait::until(wanted, || {
        docker.inspect("web")["State"]["Health"]["Status"] == wanted
    });
}

#[test]
fn a_container_is_paused_measured_and_given_other_limits() {
    let docker = Docker::with_busybox();
    docker.start("web", &["--memory", "200m"], &["sleep", "1000"]);
    docker.call(&["pause", "web"]).assert_status(0);
    assert_eq!(docker.inspect("web")["State"]["Status"], "paused");
    docker.call(&["unpause", "web"]).assert_status(0);
    let limits = ["--memory", "100m", "--memory-swap", "-1", "--cpus", "0.5"];
    docker
        .call(&[&["update"], &limits[..], &["web"]].concat())
        .assert_status(0);
    let script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
    docker
        .call(&["exec", "web", "sh", "-c", script])
        .assert_prints("104857600\n50000 100000\n");
    let format = "{{.PIDs}} {{.MemUsage}}";
    let stats = docker.call(&["stats", "--no-stream", "--format", format, "web"]);
    stats.assert_status(0);
    assert!(!stats.text().starts_with('0'), "{stats:?}");
    assert!(!stats.text().contains(" 0B /"), "{stats:?}");
}

#[test]
fn its_processes_on_this_host_are_listed() {
    let docker = Docker::with_busybox();
    docker.start("web", &["--init"], &["sleep", "1000"]);
    let pid = docker.inspect("web")["State"]["Pid"].to_string();
    let top = docker.call(&["top", "web", "-o", "pid,comm"]);
    top.assert_status(0);
    let text = top.text();
    let pids = text.lines().skip(1).map(|line| line.split_whitespace());
    let pids: Vec<_> = pids.filter_map(|mut words| words.next()).collect();
    assert_eq!((pids.len(), pids[0]), (2, pid.as_str()), "{text}");
    let inside = docker.call(&["exec", "web", "ps", "-o", "args"]);
    inside.assert_prints("COMMAND\n/sbin/docker-init -- sleep 1000\nsleep 1000\nps -o args\n");
}

#[test]
fn a_network_that_a_guest_does_not_have_is_refused() {
    only_husk("runc has the networks of the host");
    let docker = Docker::with_busybox();
    docker.call(&["network", "create", "wide"]).assert_status(0);
    for (network, part) in [
        ("wide", "the network interface eth0"),
        ("host", "the host's network namespace"),
    ] {
        let output = docker.call(&["run", "--rm", "--network", network, "busybox", "true"]);
        output.assert_status(125);
        assert!(output.errors().contains(part), "{output:?}");
    }
    docker.call(&["network", "rm", "wide"]).assert_status(0);
}
