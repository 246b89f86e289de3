//! System calls that each filter stops, made by a thread that has it; and what is said of one that
//! does.

use std::os::unix::process::ExitStatusExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use husk_vmm::{seccomp, violation};

use super::{alone, call, is_alone, run_alone};

const FILTERS: &[&str] = &[
    "control", "vcpu", "devices", "vsock", "fs", "console", "rng", "mem",
];

/// A call that no thread of a VMM has a use for. Where one thread has, it is named.
struct Forbidden {
    what: &'static str,
    number: libc::c_long,
    arguments: [u64; 6],
    but_for: &'static [&'static str],
}

static STOPPED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_stopped(_: i32) {
    STOPPED.store(true, Ordering::SeqCst);
}

/// From now on a call that is stopped returns, and nothing has been done.
fn survive() {
    let handler = on_stopped as extern "C" fn(i32);
    // SAFETY: the handler writes one atomic.
    let before = unsafe { libc::signal(libc::SIGSYS, handler as libc::sighandler_t) };
    assert_ne!(before, libc::SIG_ERR);
}

fn unsigned(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

fn of_processes() -> Vec<Forbidden> {
    const FORK: i32 = libc::SIGCHLD;
    const THREAD_IN_NAMESPACE: i32 = 0x003d_0f00 | libc::CLONE_NEWUSER;
    let call = |what, number, arguments: [u64; 6]| Forbidden {
        what,
        number,
        arguments,
        but_for: &[],
    };
    vec![
        call("kill", libc::SYS_kill, [1, 0, 0, 0, 0, 0]),
        call("tgkill of another", libc::SYS_tgkill, [2, 2, 0, 0, 0, 0]),
        call("tkill", libc::SYS_tkill, [2, 0, 0, 0, 0, 0]),
        call(
            "rt_sigqueueinfo",
            libc::SYS_rt_sigqueueinfo,
            [2, 0, 0, 0, 0, 0],
        ),
        call("pidfd_open", libc::SYS_pidfd_open, [1, 0, 0, 0, 0, 0]),
        call("pidfd_getfd", libc::SYS_pidfd_getfd, [0, 0, 0, 0, 0, 0]),
        call("ptrace", libc::SYS_ptrace, [16, 2, 0, 0, 0, 0]),
        call(
            "process_vm_readv",
            libc::SYS_process_vm_readv,
            [2, 0, 0, 0, 0, 0],
        ),
        call(
            "prlimit64 of another",
            libc::SYS_prlimit64,
            [2, 7, 0, 0, 0, 0],
        ),
        call(
            "prlimit64 that sets",
            libc::SYS_prlimit64,
            [0, 7, 1, 0, 0, 0],
        ),
        call("fork", libc::SYS_fork, [0; 6]),
        call(
            "vfork by clone",
            libc::SYS_clone,
            [unsigned(FORK), 0, 0, 0, 0, 0],
        ),
        call(
            "clone of namespaces",
            libc::SYS_clone,
            [unsigned(THREAD_IN_NAMESPACE), 0, 0, 0, 0, 0],
        ),
        call("execve", libc::SYS_execve, [0; 6]),
        call("execveat", libc::SYS_execveat, [0; 6]),
        call(
            "unshare of users",
            libc::SYS_unshare,
            [unsigned(libc::CLONE_NEWUSER), 0, 0, 0, 0, 0],
        ),
        call("setns", libc::SYS_setns, [0; 6]),
        call("prctl of dumpable", libc::SYS_prctl, [4, 1, 0, 0, 0, 0]),
        call(
            "a handler of SIGSYS",
            libc::SYS_rt_sigaction,
            [31, 0, 0, 8, 0, 0],
        ),
        call(
            "a filter with a listener",
            libc::SYS_seccomp,
            [1, 8, 0, 0, 0, 0],
        ),
    ]
}

fn of_the_host() -> Vec<Forbidden> {
    const F_SETOWN: u64 = 8;
    const PROT_ALL: u64 = 7;
    let anonymous = unsigned(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let datagram = unsigned(libc::SOCK_DGRAM);
    let unix = unsigned(libc::AF_UNIX);
    let call = |what, number, arguments: [u64; 6]| Forbidden {
        what,
        number,
        arguments,
        but_for: &[],
    };
    let messages = |what, number| Forbidden {
        what,
        number,
        arguments: [0, 0, 0, 0, 0, 0],
        but_for: &["control"],
    };
    vec![
        call(
            "mmap of code",
            libc::SYS_mmap,
            [0, 4096, PROT_ALL, anonymous, u64::MAX, 0],
        ),
        call(
            "mprotect to code",
            libc::SYS_mprotect,
            [0, 0, PROT_ALL, 0, 0, 0],
        ),
        call(
            "pkey_mprotect",
            libc::SYS_pkey_mprotect,
            [0, 0, PROT_ALL, 0, 0, 0],
        ),
        call("memfd_create", libc::SYS_memfd_create, [0; 6]),
        call("socket", libc::SYS_socket, [unix, datagram, 0, 0, 0, 0]),
        call(
            "datagram pair",
            libc::SYS_socketpair,
            [unix, datagram, 0, 0, 0, 0],
        ),
        call("connect", libc::SYS_connect, [0; 6]),
        call("sendto", libc::SYS_sendto, [0; 6]),
        messages("sendmsg", libc::SYS_sendmsg),
        messages("recvmsg", libc::SYS_recvmsg),
        call(
            "fcntl that signals",
            libc::SYS_fcntl,
            [0, F_SETOWN, 1, 0, 0, 0],
        ),
        call(
            "ioctl of terminals",
            libc::SYS_ioctl,
            [0, 0x5412, 0, 0, 0, 0],
        ),
        call("mount", libc::SYS_mount, [0; 6]),
        call("open_tree", libc::SYS_open_tree, [0; 6]),
        call("mount_setattr", libc::SYS_mount_setattr, [0; 6]),
        call("umount2", libc::SYS_umount2, [0; 6]),
        call("pivot_root", libc::SYS_pivot_root, [0; 6]),
        call("chroot", libc::SYS_chroot, [0; 6]),
        call("open_by_handle_at", libc::SYS_open_by_handle_at, [0; 6]),
        call("bpf", libc::SYS_bpf, [0; 6]),
        call("io_uring_setup", libc::SYS_io_uring_setup, [0; 6]),
        call("userfaultfd", libc::SYS_userfaultfd, [0; 6]),
        call("perf_event_open", libc::SYS_perf_event_open, [0; 6]),
        call("keyctl", libc::SYS_keyctl, [0; 6]),
        call("init_module", libc::SYS_init_module, [0; 6]),
        call("reboot", libc::SYS_reboot, [0; 6]),
        call("settimeofday", libc::SYS_settimeofday, [0; 6]),
    ]
}

/// Locks that a file server does not take: nobody waits in it, and its process has owners of its own for them.
fn of_locks() -> impl Iterator<Item = Forbidden> {
    [
        (
            "fcntl that waits for a lock",
            libc::SYS_fcntl,
            libc::F_OFD_SETLKW,
        ),
        ("fcntl of a process's locks", libc::SYS_fcntl, libc::F_SETLK),
        ("flock that waits", libc::SYS_flock, libc::LOCK_EX),
    ]
    .into_iter()
    .map(|(what, number, operation)| Forbidden {
        what,
        number,
        arguments: [0, unsigned(operation), 0, 0, 0, 0],
        but_for: &[],
    })
}

#[test]
fn filters_stop_what_no_thread_needs() {
    alone("jail::filters::filters_stop_what_no_thread_needs", || {
        survive();
        for filter in FILTERS {
            let through = thread::spawn(move || {
                seccomp::load(filter).unwrap();
                let mut through = Vec::new();
                let calls = of_processes()
                    .into_iter()
                    .chain(of_the_host())
                    .chain(of_locks());
                for forbidden in calls.filter(|call| !call.but_for.contains(filter)) {
                    STOPPED.store(false, Ordering::SeqCst);
                    let _result = call(forbidden.number, forbidden.arguments);
                    if !STOPPED.load(Ordering::SeqCst) {
                        through.push(forbidden.what);
                    }
                }
                through
            });
            assert_eq!(through.join().unwrap(), [""; 0], "{filter}");
        }
    });
}

#[test]
fn new_threads_are_made_by_the_call_that_a_filter_can_look_into() {
    const NAME: &str =
        "jail::filters::new_threads_are_made_by_the_call_that_a_filter_can_look_into";
    alone(NAME, || {
        survive();
        let made = thread::spawn(|| {
            seccomp::load("devices").unwrap();
            let error = call(libc::SYS_clone3, [0; 6]);
            assert_eq!(error, Err(libc::ENOSYS));
            assert!(!STOPPED.load(Ordering::SeqCst));
            thread::Builder::new().spawn(|| 7).unwrap().join().unwrap()
        });
        assert_eq!(made.join().unwrap(), 7);
    });
}

#[test]
fn signals_reach_the_own_process() {
    alone("jail::filters::signals_reach_the_own_process", || {
        for filter in FILTERS {
            let sent = thread::spawn(move || {
                seccomp::load(filter).unwrap();
                let own = call(libc::SYS_gettid, [0; 6]).unwrap();
                call(libc::SYS_tgkill, [1, own.cast_unsigned(), 0, 0, 0, 0])
            });
            assert_eq!(sent.join().unwrap(), Ok(0), "{filter}");
        }
    });
}

#[test]
fn stopped_call_is_told_by_its_number_and_ends_the_process() {
    const NAME: &str = "jail::filters::stopped_call_is_told_by_its_number_and_ends_the_process";
    if is_alone() {
        violation::install().unwrap();
        let thread = thread::spawn(|| {
            seccomp::load("rng").unwrap();
            // SAFETY: takes no pointer.
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) }
        });
        panic!("a socket: {:?}", thread.join());
    }
    let output = run_alone(NAME);
    assert_eq!(output.status.signal(), Some(libc::SIGSYS));
    let text = String::from_utf8_lossy(&output.stderr);
    let line = format!(
        "husk-vmm: a thread with the filter rng made system call {}\n",
        libc::SYS_socket
    );
    assert!(text.contains(&line), "{text}");
}
