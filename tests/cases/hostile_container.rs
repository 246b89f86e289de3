//! A container attacks the agent and its neighbours in the pod. Whatever it is allowed to do short of the guest itself, they
//! live on; and a container that has the guest has its own guest only. The attacks are the probe's.

use harness::{Bundle, Engine, Output, Runtime, only_husk};
use serde_json::json;

use crate::sandboxes::{companion_of, member, pod};

/// The capabilities that open most, one by one; each goes to a container that is root otherwise.
const DANGEROUS: [&str; 5] = [
    "CAP_SYS_ADMIN",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_NET_ADMIN",
    "CAP_MKNOD",
];
/// What root has in a container of an engine.
const USUAL: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// A bundle that has the probe, and the usual capabilities with these.
fn attacker(capabilities: &[&str]) -> Bundle {
    let probe = env!("CARGO_BIN_EXE_probe");
    Bundle::busybox()
        .probe(probe, &[])
        .capabilities(&[&USUAL[..], capabilities].concat())
}

/// The same of a user who may do nothing.
fn unprivileged() -> Bundle {
    let user = json!({"uid": 1000, "gid": 1000});
    attacker(&[]).capabilities(&[]).with("/process/user", user)
}

/// Every kind of attacker, by name.
fn attackers() -> Vec<(&'static str, Bundle)> {
    let mut all = vec![("nobody", unprivileged()), ("root", attacker(&[]))];
    all.extend(DANGEROUS.map(|capability| (capability, attacker(&[capability]))));
    all
}

/// Runs attacks as one more container of the pod.
fn attack(pod: &Engine, bundle: Bundle, attacks: &[&str]) -> Output {
    let member = member(pod, bundle.args(&[&["probe"][..], attacks].concat()));
    let path = member.bundle().path().to_str().unwrap();
    member.call(&["run", "--bundle", path])
}

/// The container lives, and the agent answers for it.
fn assert_alive(container: &Engine) {
    let words = ["exec", &container.id, "echo", "alive"];
    let output = container.runtime.call(&words);
    assert_eq!(output.text(), "alive\n", "{output:?}");
}

fn assert_comes_to_nothing(attacks: &[&str], without: &[&str]) {
    only_husk("runc has no VM and no agent");
    let expected: String = attacks
        .iter()
        .map(|name| format!("{name} holds\n"))
        .collect();
    let pod = pod();
    let kinds = attackers().into_iter();
    for (kind, bundle) in kinds.filter(|(kind, _)| !without.contains(kind)) {
        let output = attack(&pod, bundle, attacks);
        assert_eq!(output.text(), expected, "by {kind}: {output:?}");
        assert_alive(&pod);
    }
}

#[test]
fn the_power_port_is_nobodys() {
    // Who has CAP_SYS_RAWIO may have all ports: a case of its own.
    assert_comes_to_nothing(&["power-port"], &["CAP_SYS_RAWIO"]);
}

#[test]
fn the_ports_of_agent_and_host_give_nothing() {
    assert_comes_to_nothing(&["stream-port", "control-port"], &[]);
}

#[test]
fn who_may_use_all_ports_ends_its_own_sandbox_only() {
    only_husk("runc has no VM and no agent");
    let (canary, pod) = (pod(), pod());
    let output = attack(&pod, attacker(&["CAP_SYS_RAWIO"]), &["switch-off"]);
    output.assert_status(137);
    assert_eq!(pod.state()["status"], "stopped");
    assert_alive(&canary);
}

#[test]
fn cgroups_of_a_container_are_bounded_and_go_with_it() {
    assert_comes_to_nothing(&["cgroup-flood"], &[]);
}

/// Where it shares their pid namespace, a container sees processes that are still the agent's; whoever may look into others, their program too.
#[test]
fn the_agents_program_cannot_be_changed() {
    only_husk("runc has no VM and no agent");
    let pod = pod();
    let victim = member(&pod, companion_of(&pod, Bundle::busybox()));
    let process = victim.make(&["create"], &[]);
    for (kind, bundle) in attackers() {
        let output = attack(&pod, companion_of(&pod, bundle), &["agent-program"]);
        let came_to = match kind {
            "CAP_SYS_PTRACE" => "agent-program holds\n",
            _ => "agent-program: no process of the agent's is seen\n",
        };
        assert_eq!(output.text(), came_to, "by {kind}: {output:?}");
    }
    victim.start();
    assert_eq!(process.wait(), 0);
    assert_alive(&pod);
}

#[test]
fn a_thread_bomb_leaves_the_agent_what_it_needs() {
    only_husk("runc has no VM and no agent");
    let pod = pod();
    let bomb = member(&pod, unprivileged().args(&["probe", "thread-bomb"]));
    let process = bomb.make(&["run", "--detach"], &[]);
    bomb.await_output("full\n");
    for container in [&pod, &bomb] {
        container.call(&["ps"]).assert_status(0);
        let update = ["update", "--cpu-share", "512"];
        container.call(&update).assert_status(0);
    }
    bomb.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(process.wait(), 137);
    assert_alive(&pod);
}

#[test]
fn a_memory_bomb_leaves_the_agent_what_it_needs() {
    only_husk("runc has no VM and no agent");
    let pod = pod();
    for _ in 0..3 {
        attack(&pod, unprivileged(), &["memory-bomb"]).assert_status(137);
        assert_alive(&pod);
    }
}

#[test]
fn the_kernels_guards_are_on() {
    only_husk("runc has no VM and no agent");
    let script = "cd /proc/sys; grep . fs/protected_* kernel/kptr_restrict; \
        head -n 1 /proc/kallsyms | cut -d ' ' -f 1";
    let output = Runtime::from_environment().run(&Bundle::busybox().shell(script));
    output.assert_prints(
        "fs/protected_fifos:1\nfs/protected_hardlinks:1\nfs/protected_regular:2\n\
         fs/protected_symlinks:1\nkernel/kptr_restrict:1\n0000000000000000\n",
    );
}

#[test]
fn a_core_is_a_file_of_the_containers_and_never_starts_a_program() {
    only_husk("runc has no VM and no agent");
    let crash = "ulimit -c unlimited; cd /tmp; sh -c 'kill -SEGV $$'; echo $?; \
        stat -c '%n %u' /tmp/core* 2>/dev/null; rm -f /tmp/core*";
    let pattern = "|/proc/%P/root/bin/busybox touch /proc/%P/root/tmp/ran";
    let script = format!(
        "{crash}; mkdir /mnt; mount -t proc proc /mnt; echo '{pattern}' >/mnt/sys/kernel/core_pattern; \
         cat /proc/sys/kernel/core_pattern; {crash}; test -e /tmp/ran || echo not run"
    );
    let bundle = attacker(&["CAP_SYS_ADMIN"]).shell(&script);
    let output = Runtime::from_environment().run(&bundle);
    output.assert_prints(&format!("139\n/tmp/core 0\n{pattern}\n139\nnot run\n"));
}
