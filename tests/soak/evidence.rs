//! What is known of husk's processes while one of them hangs: where their threads are, what KVM has
//! counted of each VM, where its vCPUs are, and what is open.

use std::fs;
use std::path::Path;
use std::time::Duration;

use harness::wait;

/// Debian's, and every other distribution's.
const TRACING: &str = "/sys/kernel/debug/tracing";
/// Each exit of a vCPU, with the guest's instruction pointer and the reason.
const EVENTS: &str = "events/kvm/enable";
const KVM: &str = "/sys/kernel/debug/kvm";
/// For the vCPUs to show where they are.
const TRACED: Duration = Duration::from_secs(3);
/// Lines of the trace.
const LINES_MAX: usize = 60;

/// Looks at the tracing once: it is mounted when somebody does, and would then be new.
pub(crate) fn prepare() {
    let _ = fs::read_dir(TRACING).map(Iterator::count);
}

/// Prints it. What cannot be read is left out.
pub(crate) fn print() {
    println!("=== evidence");
    exits("at first");
    for pid in husks() {
        process(&pid);
    }
    vcpus();
    exits("some seconds later");
    println!("=== end of the evidence");
}

/// Processes whose executable is one of husk's.
fn husks() -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    pids.filter(|pid| {
        fs::read_link(format!("/proc/{pid}/exe"))
            .is_ok_and(|exe| exe.file_name().is_some_and(is_husks))
    })
    .collect()
}

fn is_husks(name: &std::ffi::OsStr) -> bool {
    name == "husk" || name == "husk-vmm"
}

fn process(pid: &str) {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    println!("--- process {pid}: {}", line.replace('\0', " "));
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    for thread in threads.into_iter().flatten().flatten() {
        let path = thread.path();
        let read = |name: &str| {
            let text = fs::read_to_string(path.join(name)).unwrap_or_default();
            text.trim_end().to_owned()
        };
        let state: Vec<_> = read("stat")
            .rsplit_once(") ")
            .map_or(Vec::new(), |(_, rest)| {
                rest.split(' ').take(1).map(str::to_owned).collect()
            });
        println!(
            "thread {} {}: {state:?} wchan {} syscall {}",
            thread.file_name().display(),
            read("comm"),
            read("wchan"),
            read("syscall")
        );
        println!("{}", read("stack"));
    }
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        println!("fd {} {}", entry.file_name().display(), target.display());
    }
}

/// What KVM has counted of each VM and vCPU, of what is not 0.
fn exits(when: &str) {
    println!("--- counters of KVM, {when}");
    for vm in fs::read_dir(KVM).into_iter().flatten().flatten() {
        if vm.path().is_dir() {
            counters(&vm.path());
        }
    }
}

fn counters(folder: &Path) {
    let mut line = String::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            counters(&entry.path());
        } else if let Ok(value) = fs::read_to_string(entry.path())
            && !matches!(value.trim(), "" | "0")
            && !value.trim().contains('\n')
        {
            line += &format!(" {}={}", entry.file_name().display(), value.trim());
        }
    }
    println!("{}:{line}", folder.display());
}

/// Where the vCPUs are, by their exits for some seconds.
fn vcpus() {
    let tracing = Path::new(TRACING);
    let write = |name: &str, text: &str| fs::write(tracing.join(name), text).is_ok();
    if !(write("trace", "") && write(EVENTS, "1") && write("tracing_on", "1")) {
        println!("--- no tracing of KVM here");
        return;
    }
    wait::rest(TRACED);
    write(EVENTS, "0");
    let trace = fs::read_to_string(tracing.join("trace")).unwrap_or_default();
    let lines: Vec<_> = trace
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    println!("--- {} events of KVM in {TRACED:?}; the last:", lines.len());
    for line in &lines[lines.len().saturating_sub(LINES_MAX)..] {
        println!("{line}");
    }
}
