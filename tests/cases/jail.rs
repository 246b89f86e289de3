//! The jail of a VMM, looked at from the host while it runs a guest. What happens inside of it when
//! it is attacked is in `vmm/tests/jail`.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use harness::{Background, Bundle, Runtime, only_husk};
use rustix::process::{Pid, Signal, kill_process};

fn proc_of(pid: Pid) -> PathBuf {
    Path::new("/proc").join(pid.as_raw_nonzero().to_string())
}

/// The value of a field of a `status` file.
fn field(status: &Path, name: &str) -> String {
    let text = fs::read_to_string(status).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

fn running(runtime: &Runtime) -> (Background<'_>, PathBuf) {
    let bundle = Bundle::busybox().shell("echo up; sleep 1000");
    let mut container = Background::started(runtime, bundle);
    container.wait_for("up\n");
    let vmm = proc_of(runtime.process(&container.id, "vmm"));
    (container, vmm)
}

/// Puts an instruction that no program may use everywhere in a program's code: its next step is a
/// fault. A signal that is only sent does not end the first process of a PID namespace.
fn break_code(process: &Path) {
    const HALT: u8 = 0xf4;
    let maps = fs::read_to_string(process.join("maps")).unwrap();
    let code = maps
        .lines()
        .find(|line| line.contains(" r-xp ") && line.ends_with("husk-vmm"));
    let (start, end) = code
        .unwrap()
        .split_once(' ')
        .unwrap()
        .0
        .split_once('-')
        .unwrap();
    let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
    let memory = fs::OpenOptions::new()
        .write(true)
        .open(process.join("mem"))
        .unwrap();
    let halts = vec![HALT; usize::try_from(end - start).unwrap()];
    memory.write_all_at(&halts, start).unwrap();
}

#[test]
fn the_vmm_has_namespaces_of_its_own() {
    only_husk("runc has no VMM");
    let runtime = Runtime::from_environment();
    let (container, vmm) = running(&runtime);
    for name in ["pid", "ipc", "uts", "mnt", "net"] {
        let link = |process: &Path| fs::read_link(process.join("ns").join(name)).unwrap();
        assert_ne!(link(&vmm), link(Path::new("/proc/self")), "{name}");
    }
    let pids = field(&vmm.join("status"), "NSpid");
    assert_eq!(pids.split_whitespace().nth(1), Some("1"), "{pids}");
    container.remove();
}

#[test]
fn every_thread_has_a_filter_and_no_more_capabilities_than_a_file_server() {
    only_husk("runc has no VMM");
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP.
    const FILE_SERVER: u64 =
        1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 27 | 1 << 31;
    let runtime = Runtime::from_environment();
    let (container, vmm) = running(&runtime);
    let threads: Vec<_> = fs::read_dir(vmm.join("task")).unwrap().collect();
    assert!(threads.len() > 4);
    for thread in threads {
        let status = thread.unwrap().path().join("status");
        let name = field(&status, "Name");
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            let held = u64::from_str_radix(&field(&status, set), 16).unwrap();
            assert_eq!(held & !FILE_SERVER, 0, "{set} of {name}");
        }
        assert_eq!(field(&status, "NoNewPrivs"), "1", "{name}");
        assert_eq!(field(&status, "Seccomp"), "2", "{name}");
    }
    container.remove();
}

#[test]
fn root_looks_into_the_vmm_and_nobody_dumps_it() {
    only_husk("runc has no VMM");
    const PATTERN: &str = "/proc/sys/kernel/core_pattern";
    let runtime = Runtime::from_environment();
    let (container, vmm) = running(&runtime);
    let memory = fs::read_to_string(vmm.join("smaps_rollup")).unwrap();
    assert!(memory.contains("Pss:"), "{memory}");
    // What an operator may have: every core dump is a program's to take.
    let directory = tempfile::tempdir().unwrap();
    let (taker, core) = (
        directory.path().join("taker"),
        directory.path().join("core"),
    );
    fs::write(&taker, format!("#!/bin/sh\nexec cat >{}\n", core.display())).unwrap();
    fs::set_permissions(&taker, fs::Permissions::from_mode(0o755)).unwrap();
    let before = fs::read_to_string(PATTERN).unwrap();
    fs::write(PATTERN, format!("|{}", taker.display())).unwrap();
    let mut other = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    kill_process(Pid::from_child(&other), Signal::SEGV).unwrap();
    other.wait().unwrap();
    let dumped = core.metadata().is_ok_and(|core| core.len() > 0);
    fs::remove_file(&core).unwrap();
    break_code(&vmm);
    // Something for its threads to do.
    let _failed = container.exec(&["true"]);
    container.until_stopped();
    fs::write(PATTERN, before).unwrap();
    assert!(dumped, "the taker takes nothing at all");
    assert!(!core.exists());
    container.remove();
}
