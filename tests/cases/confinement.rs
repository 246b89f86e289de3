//! Confinement inside the guest: capabilities, seccomp, masked and read-only paths, devices.

use harness::{Bundle, Runtime};
use serde_json::json;

fn run(bundle: &Bundle) -> harness::Output {
    Runtime::from_environment().run(bundle)
}

fn bits(output: &harness::Output, name: &str) -> u64 {
    output.assert_status(0);
    let text = output.text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

#[test]
fn capabilities_are_those_of_the_configuration() {
    let bundle = Bundle::busybox()
        .args(&["cat", "/proc/self/status"])
        .capabilities(&["CAP_CHOWN", "CAP_KILL"]);
    let output = run(&bundle);
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(bits(&output, set), 1 << 0 | 1 << 5, "{set}");
    }
}

#[test]
fn a_capability_that_is_missing_is_missed() {
    let bundle = Bundle::busybox()
        .shell("chown 5 /tmp 2>/dev/null || echo refused")
        .capabilities(&["CAP_KILL"]);
    run(&bundle).assert_prints("refused\n");
}

#[test]
fn no_new_privileges() {
    for wanted in [true, false] {
        let bundle = Bundle::busybox()
            .args(&["grep", "NoNewPrivs", "/proc/self/status"])
            .with("/process/noNewPrivileges", json!(wanted));
        run(&bundle).assert_prints(&format!("NoNewPrivs:\t{}\n", u8::from(wanted)));
    }
}

#[test]
fn a_filtered_system_call_fails_with_its_error() {
    let bundle = Bundle::busybox()
        .shell("mkdir /tmp/a 2>&1; ls -d /tmp/a 2>/dev/null || echo none; grep ^Seccomp: /proc/self/status")
        .with(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                   "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}),
        );
    run(&bundle).assert_prints(
        "mkdir: can't create directory '/tmp/a': Function not implemented\nnone\nSeccomp:\t2\n",
    );
}

/// What programs of the C library and the set-up itself need; close_range and faccessat2 are the newest.
const CALLS: &str = "read write close openat open fstat newfstatat stat lstat lseek mmap mprotect munmap brk \
    rt_sigaction rt_sigprocmask rt_sigreturn ioctl pread64 access pipe2 sched_yield mremap madvise dup dup2 nanosleep \
    clock_nanosleep getpid getppid gettid clone clone3 execve exit exit_group wait4 uname fcntl getcwd chdir fchdir mkdir mkdirat \
    getuid getgid geteuid getegid setuid setgid setgroups setresuid setresgid capget capset prctl arch_prctl futex \
    sched_getaffinity set_tid_address set_robust_list epoll_create1 epoll_ctl epoll_pwait eventfd2 tgkill kill \
    sigaltstack getrandom rseq prlimit64 getrlimit statx poll ppoll getdents64 seccomp readlinkat faccessat faccessat2 \
    umask close_range restart_syscall clock_gettime statfs fstatfs";

#[test]
fn calls_newer_than_a_profile_are_missing_and_others_forbidden() {
    let names: Vec<_> = CALLS.split_ascii_whitespace().collect();
    let bundle = Bundle::busybox()
        .probe(env!("CARGO_BIN_EXE_probe"), &["newer-calls"])
        .with(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                   "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]}),
        );
    run(&bundle).assert_prints("newer-calls holds\n");
}

#[test]
fn a_forbidden_system_call_kills() {
    let bundle = Bundle::busybox()
        .args(&["sh", "-c", "mkdir /tmp/a; echo $?"])
        .with(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
               "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}]}),
        );
    run(&bundle).assert_prints_part("159\n");
}

#[test]
fn masked_paths_show_nothing() {
    let bundle = Bundle::busybox()
        .shell(
            "wc -c </proc/uptime; ls /masked && echo listed; wc -c </etc/secret; \
             test -e /not/there || echo none",
        )
        .with(
            "/linux/maskedPaths",
            json!(["/proc/uptime", "/masked", "/etc/secret", "/not/there"]),
        );
    std::fs::create_dir(bundle.rootfs().join("masked")).unwrap();
    std::fs::write(bundle.rootfs().join("masked/file"), "x").unwrap();
    std::fs::write(bundle.rootfs().join("etc/secret"), "secret").unwrap();
    run(&bundle).assert_prints("0\nlisted\n0\nnone\n");
}

#[test]
fn read_only_paths_are_not_written() {
    let bundle = Bundle::busybox()
        .shell("(echo 1 >/proc/sys/vm/swappiness) 2>/dev/null || echo refused; touch /kept/new 2>/dev/null || echo kept")
        .with("/linux/readonlyPaths", json!(["/proc/sys", "/kept"]));
    std::fs::create_dir(bundle.rootfs().join("kept")).unwrap();
    run(&bundle).assert_prints("refused\nkept\n");
}

#[test]
fn standard_devices_are_there_and_work() {
    let bundle = Bundle::busybox().shell(
        "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; \
         head -c 4 /dev/urandom | wc -c; echo x >/dev/null && ls -l /dev/fd /dev/ptmx | wc -l",
    );
    run(&bundle).assert_prints("4\n2\n");
}

#[test]
fn other_devices_cannot_be_used() {
    // Neither needs a capability to be opened: nothing but the rules can refuse it, and without them
    // one of them is opened and the other one is not there.
    let script = "cd /tmp; mknod fuse c 10 229 && mknod other c 10 228; (: <fuse) && echo read; \
        for refused in '>>fuse' '<other'; do \
        eval \": $refused\" 2>&1 | grep -o 'Operation not permitted'; done";
    let bundle = Bundle::busybox()
        .shell(script)
        .capabilities(&["CAP_MKNOD"])
        .with(
            "/linux/resources/devices",
            json!([
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"},
            ]),
        );
    let refused = "Operation not permitted\n";
    run(&bundle).assert_prints(&format!("read\n{refused}{refused}"));
}
