//! What of the host a VMM that was taken over does not reach, with its filters out of the way.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread;

use husk_vmm::{host, jail};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use vmm_api::Jail;

use super::{Supervisor, alone, call, in_jail, text};

fn opens(directory: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat(directory, path, flags | OFlags::CLOEXEC, Mode::empty())
}

#[test]
fn own_descriptors_lead_to_nothing_else_of_proc() {
    alone(
        "jail::reach::own_descriptors_lead_to_nothing_else_of_proc",
        || {
            let supervisor = Supervisor::new();
            let descriptors = host::own_descriptors().unwrap();
            in_jail(Some(&supervisor.share()), move || {
                for path in [
                    "../../sys/kernel/core_pattern",
                    "../../sys/kernel/hostname",
                    "../../1/root",
                    "../../1/environ",
                    "../../self/mem",
                    "../mem",
                    "../root",
                    "../cwd",
                    "../environ",
                    "../task",
                    "../../kcore",
                    "../../kmsg",
                    "../../../etc",
                ] {
                    let opened = opens(&descriptors, path, OFlags::PATH);
                    assert!(
                        matches!(opened, Err(Errno::NOENT | Errno::NOTDIR)),
                        "{path}: {opened:?}"
                    );
                }
                // A parent of itself, and as its own descriptor.
                let itself = descriptors.as_raw_fd().to_string();
                for path in ["..", "../..", &itself, &format!("{itself}/..")] {
                    let again =
                        opens(&descriptors, path, OFlags::PATH | OFlags::DIRECTORY).unwrap();
                    let out = opens(&again, "../status", OFlags::RDONLY);
                    assert_eq!(out.err(), Some(Errno::NOENT), "{path}");
                }
            });
        },
    );
}

#[test]
fn own_descriptors_are_opened_again() {
    alone("jail::reach::own_descriptors_are_opened_again", || {
        let supervisor = Supervisor::new();
        fs::write(supervisor.rootfs().join("file"), "text").unwrap();
        let descriptors = host::own_descriptors().unwrap();
        in_jail(Some(&supervisor.share()), move || {
            let path = OFlags::PATH | OFlags::CLOEXEC;
            let file = rustix::fs::open("/c/rootfs/file", path, Mode::empty()).unwrap();
            let again = opens(&descriptors, &file.as_raw_fd().to_string(), OFlags::RDONLY);
            let mut bytes = [0; 8];
            assert_eq!(rustix::io::read(again.unwrap(), &mut bytes), Ok(4));
        });
    });
}

#[test]
fn nothing_of_the_host_is_mounted() {
    alone("jail::reach::nothing_of_the_host_is_mounted", || {
        let supervisor = Supervisor::new();
        in_jail(Some(&supervisor.share()), || {
            let names: Vec<_> = fs::read_dir("/")
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert_eq!(names, ["c"]);
            for path in [
                "/proc/self/status",
                "/sys",
                "/dev/null",
                "/etc/passwd",
                "/../etc",
            ] {
                assert!(fs::metadata(path).is_err(), "{path}");
            }
        });
        in_jail(None, || {
            assert_eq!(fs::read_dir("/").unwrap().count(), 0);
            assert!(fs::write("/new", "").is_err());
        });
    });
}

/// The inodes of the calling thread's namespaces.
fn namespaces(of: &OwnedFd) -> BTreeMap<&'static str, String> {
    ["ipc", "mnt", "net", "pid", "uts"]
        .into_iter()
        .map(|name| {
            let link = rustix::fs::readlinkat(of, name, Vec::new()).unwrap();
            (name, link.into_string().unwrap())
        })
        .collect()
}

fn own_namespaces() -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/thread-self/ns", flags, Mode::empty()).unwrap()
}

#[test]
fn namespaces_are_its_own_and_have_no_other_process() {
    const NAME: &str = "jail::reach::namespaces_are_its_own_and_have_no_other_process";
    alone(NAME, || {
        let supervisor = Supervisor::new();
        let share = supervisor.share();
        let before = namespaces(&own_namespaces());
        let jailed = thread::spawn(move || {
            let own = own_namespaces();
            jail::enter(Jail::default(), Some(&share)).unwrap();
            namespaces(&own)
        });
        let after = jailed.join().unwrap();
        for name in ["ipc", "mnt", "net", "uts"] {
            assert_ne!(before[name], after[name], "{name}");
        }
        in_jail(None, || {
            assert_eq!(rustix::process::getpid(), rustix::process::Pid::INIT);
            // Nobody but this process, which such a signal does not reach.
            let everybody = u64::from(u32::MAX);
            assert_eq!(
                call(libc::SYS_kill, [everybody, 0, 0, 0, 0, 0]),
                Err(libc::ESRCH)
            );
            for pid in 2..100 {
                assert_eq!(
                    call(libc::SYS_kill, [pid, 0, 0, 0, 0, 0])
                        .err()
                        .filter(|error| *error != libc::ESRCH),
                    None
                );
                assert_eq!(
                    call(libc::SYS_prlimit64, [pid, 7, 0, 0, 0, 0]).is_ok(),
                    is_own_thread(pid)
                );
            }
        });
    });
}

/// `prlimit64` takes threads, too.
fn is_own_thread(id: u64) -> bool {
    call(libc::SYS_tgkill, [1, id, 0, 0, 0, 0]).is_ok()
}

#[test]
fn capabilities_are_a_file_servers_and_stay_so() {
    alone(
        "jail::reach::capabilities_are_a_file_servers_and_stay_so",
        || {
            use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
            let supervisor = Supervisor::new();
            let file_server = CapabilitySet::CHOWN
                | CapabilitySet::DAC_OVERRIDE
                | CapabilitySet::FOWNER
                | CapabilitySet::FSETID
                | CapabilitySet::MKNOD
                | CapabilitySet::SETFCAP
                | CapabilitySet::SETGID
                | CapabilitySet::SETUID;
            for (share, wanted) in [
                (Some(supervisor.share()), file_server),
                (None, CapabilitySet::empty()),
            ] {
                in_jail(share.as_deref(), move || {
                    let held = capabilities(None).unwrap();
                    assert_eq!((held.effective, held.permitted), (wanted, wanted));
                    assert_eq!(held.inheritable, CapabilitySet::empty());
                    let all = CapabilitySet::SYS_ADMIN | wanted;
                    let more = CapabilitySets {
                        effective: all,
                        permitted: all,
                        inheritable: CapabilitySet::empty(),
                    };
                    assert_eq!(set_capabilities(None, more), Err(Errno::PERM));
                    let users = u64::from(libc::CLONE_NEWUSER.cast_unsigned());
                    let _refused_or_not = call(libc::SYS_unshare, [users, 0, 0, 0, 0, 0]);
                    let root = text("/");
                    let mounted = call(
                        libc::SYS_mount,
                        [
                            pointer(&root),
                            pointer(&root),
                            0,
                            libc::MS_REMOUNT | libc::MS_BIND,
                            0,
                            0,
                        ],
                    );
                    assert_eq!(mounted, Err(libc::EPERM));
                });
            }
        },
    );
}

fn pointer(text: &CStr) -> u64 {
    text.as_ptr().addr() as u64
}

#[test]
fn nothing_is_dumped() {
    alone("jail::reach::nothing_is_dumped", || {
        in_jail(None, || {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Core);
            assert_eq!((limit.current, limit.maximum), (Some(1), Some(1)));
            let dumpable = rustix::process::dumpable_behavior();
            assert_eq!(dumpable, Ok(rustix::process::DumpableBehavior::NotDumpable));
        });
    });
}
