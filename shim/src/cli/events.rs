//! `husk events`: what a container uses, again and again, and when it ran out of memory; a JSON object per line, as runc prints them.
//!
//! ```text
//!   subscribe ─► every interval: statistics, a line ─┬─ out of memory: a line
//!                                                    └─ the container has ended: done
//! ```

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use containerd_shim_protos::cgroups_v2::metrics::{IOEntry, Metrics};
use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::topics::{TASK_EXIT_EVENT_TOPIC, TASK_OOM_EVENT_TOPIC};
use protobuf::Message as _;
use serde::Serialize;
use serde_json::{Map, Value, json};
use ttrpc::Code;

use super::Failure;
use super::foreground::block_on;
use super::record;
use super::tasks::{Task, TaskError};
use crate::config::Options;
use crate::state::Status;

/// The states of a container that uses something.
const ALIVE: [Status; 3] = [Status::Created, Status::Running, Status::Paused];

const NS_PER_US: u64 = 1000;

/// Print what a container uses and when it runs out of memory
///
/// A JSON object per line, until the container ends. All figures are the guest's.
#[derive(Debug, clap::Args)]
pub(super) struct EventsArgs {
    /// How often to print what it uses
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    interval: Duration,
    /// Print what it uses now, and no more
    #[arg(long)]
    stats: bool,
    /// The container
    id: String,
}

/// Prints them.
pub(super) fn run(options: &Options, args: &EventsArgs) -> Result<ExitCode, Failure> {
    let words = format!("container with id {} is not running", args.id);
    record::state(options, &args.id)?.expect_one_of(&ALIVE, &words)?;
    block_on(async {
        let task = Task::connect(options, &args.id).await?;
        if args.stats {
            let metrics = task.stats().await;
            print_stats(&args.id, &metrics.map_err(|e| no_stats(e, &args.id))?)?;
        } else {
            follow(&task, args).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Prints until the container ends.
async fn follow(task: &Task, args: &EventsArgs) -> anyhow::Result<()> {
    let mut events = task.events().await?;
    let mut ticks = tokio::time::interval(args.interval);
    // The first tick is now; the first figures come after an interval.
    ticks.tick().await;
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(Some(event)) if is_end(&event, &args.id) => return Ok(()),
                Ok(Some(event)) if is_oom(&event, &args.id) => {
                    print_line("oom", &args.id, None)?;
                }
                Ok(Some(_)) => {}
                // The sandbox is gone.
                Ok(None) | Err(_) => return Ok(()),
            },
            _ = ticks.tick() => match task.stats().await {
                Ok(metrics) => print_stats(&args.id, &metrics)?,
                // It has ended, and the event is on its way.
                Err(TaskError::Refused {
                    code: Code::NOT_FOUND | Code::FAILED_PRECONDITION | Code::UNAVAILABLE,
                    ..
                }) => return Ok(()),
                Err(error) => return Err(no_stats(error, &args.id)),
            },
        }
    }
}

fn print_stats(id: &str, metrics: &Metrics) -> anyhow::Result<()> {
    print_line("stats", id, Some(stats(metrics)))
}

fn no_stats(error: TaskError, id: &str) -> anyhow::Error {
    anyhow!(error).context(format!("cannot read the statistics of {id}"))
}

/// A line of the output, its members in runc's order.
#[derive(Serialize)]
struct Line<'a> {
    r#type: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

fn print_line(r#type: &'static str, id: &str, data: Option<Value>) -> anyhow::Result<()> {
    let line = serde_json::to_string(&Line { r#type, id, data })?;
    writeln!(std::io::stdout(), "{line}").context("cannot print an event")
}

fn is_end(event: &Envelope, id: &str) -> bool {
    event.topic == TASK_EXIT_EVENT_TOPIC
        && TaskExit::parse_from_bytes(&event.event.value)
            .is_ok_and(|exit| exit.container_id == id && exit.id == id)
}

fn is_oom(event: &Envelope, id: &str) -> bool {
    event.topic == TASK_OOM_EVENT_TOPIC
        && TaskOOM::parse_from_bytes(&event.event.value).is_ok_and(|oom| oom.container_id == id)
}

/// runc's object: what a reader of it may expect is there, also where version 2 of cgroups has nothing to say.
fn stats(metrics: &Metrics) -> Value {
    let none = json!({"limit": 0, "failcnt": 0});
    let memory = &metrics.memory;
    // Memory and swap together, as in version 1.
    let both = |memory: u64, swap: u64| match (memory, swap) {
        (_, u64::MAX) | (u64::MAX, _) => u64::MAX,
        (memory, swap) => memory.saturating_add(swap),
    };
    let throttling = without_zeros([
        ("periods", metrics.cpu.nr_periods),
        ("throttledPeriods", metrics.cpu.nr_throttled),
        ("throttledTime", nanoseconds(metrics.cpu.throttled_usec)),
    ]);
    json!({
        "cpu": {
            "usage": {
                "total": nanoseconds(metrics.cpu.usage_usec),
                "kernel": nanoseconds(metrics.cpu.system_usec),
                "user": nanoseconds(metrics.cpu.user_usec),
            },
            "throttling": throttling,
        },
        "cpuset": {},
        "memory": {
            "cache": memory.file,
            "usage": {
                "limit": memory.usage_limit,
                "usage": memory.usage,
                "max": memory.max_usage,
                "failcnt": metrics.memory_events.max,
            },
            "swap": {
                "limit": both(memory.usage_limit, memory.swap_limit),
                "usage": both(memory.usage, memory.swap_usage),
                "failcnt": 0,
            },
            "kernel": none,
            "kernelTCP": none,
            "raw": raw_memory(metrics),
        },
        "pids": without_zeros([
            ("current", metrics.pids.current),
            ("limit", if metrics.pids.limit == u64::MAX { 0 } else { metrics.pids.limit }),
        ]),
        "blkio": blkio(&metrics.io.usage),
        "hugetlb": hugetlb(metrics),
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

fn nanoseconds(us: u64) -> u64 {
    us.saturating_mul(NS_PER_US)
}

fn without_zeros<const N: usize>(numbers: [(&str, u64); N]) -> Value {
    let some = numbers.into_iter().filter(|(_, number)| *number != 0);
    some.map(|(name, number)| (name.to_owned(), number.into()))
        .collect::<Map<_, _>>()
        .into()
}

fn raw_memory(metrics: &Metrics) -> Value {
    let stat = &metrics.memory;
    json!({
        "anon": stat.anon, "file": stat.file, "kernel_stack": stat.kernel_stack, "slab": stat.slab,
        "sock": stat.sock, "shmem": stat.shmem, "file_mapped": stat.file_mapped,
        "file_dirty": stat.file_dirty, "file_writeback": stat.file_writeback,
        "anon_thp": stat.anon_thp, "inactive_anon": stat.inactive_anon,
        "active_anon": stat.active_anon, "inactive_file": stat.inactive_file,
        "active_file": stat.active_file, "unevictable": stat.unevictable,
        "slab_reclaimable": stat.slab_reclaimable, "slab_unreclaimable": stat.slab_unreclaimable,
        "pgfault": stat.pgfault, "pgmajfault": stat.pgmajfault,
        "workingset_refault": stat.workingset_refault,
        "workingset_activate": stat.workingset_activate,
        "workingset_nodereclaim": stat.workingset_nodereclaim, "pgrefill": stat.pgrefill,
        "pgscan": stat.pgscan, "pgsteal": stat.pgsteal, "pgactivate": stat.pgactivate,
        "pgdeactivate": stat.pgdeactivate, "pglazyfree": stat.pglazyfree,
        "pglazyfreed": stat.pglazyfreed, "thp_fault_alloc": stat.thp_fault_alloc,
        "thp_collapse_alloc": stat.thp_collapse_alloc,
    })
}

fn blkio(devices: &[IOEntry]) -> Value {
    let entry = |device: &IOEntry, op: &str, value: u64| json!({"major": device.major, "minor": device.minor, "op": op, "value": value});
    let (mut bytes, mut operations) = (Vec::new(), Vec::new());
    for device in devices {
        bytes.push(entry(device, "Read", device.rbytes));
        bytes.push(entry(device, "Write", device.wbytes));
        operations.push(entry(device, "Read", device.rios));
        operations.push(entry(device, "Write", device.wios));
    }
    if devices.is_empty() {
        return json!({});
    }
    json!({"ioServiceBytesRecursive": bytes, "ioServicedRecursive": operations})
}

fn hugetlb(metrics: &Metrics) -> Value {
    let sizes = metrics.hugetlb.iter().map(|stat| {
        let numbers = json!({"usage": stat.current, "failcnt": stat.failcnt});
        (stat.pagesize.clone(), numbers)
    });
    sizes.collect::<Map<_, _>>().into()
}

/// A duration in Go's way: numbers with units, `1m30s`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 5s, 500ms or 1m30s");
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, behind) = rest.split_at(digits.ok_or_else(wrong)?);
        let unit = behind.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, behind) = behind.split_at(unit.unwrap_or(behind.len()));
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        total += number.parse::<f64>().map_err(|_| wrong())? * seconds;
        rest = behind;
    }
    match Duration::try_from_secs_f64(total) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("duration interval must be greater than 0".into()),
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::cgroups_v2::metrics::{CPUStat, MemoryStat, PidsStat};
    use protobuf::MessageField;

    use super::*;
    use crate::events::Event;
    use crate::process::{Exit, ProcessKey};

    #[test]
    fn statistics_have_runcs_names_and_units() {
        let metrics = Metrics {
            cpu: MessageField::some(CPUStat {
                usage_usec: 3,
                nr_throttled: 1,
                ..Default::default()
            }),
            memory: MessageField::some(MemoryStat {
                usage: 4096,
                usage_limit: u64::MAX,
                ..Default::default()
            }),
            pids: MessageField::some(PidsStat {
                current: 2,
                limit: u64::MAX,
                ..Default::default()
            }),
            ..Default::default()
        };
        let stats = stats(&metrics);
        assert_eq!(stats["cpu"]["usage"]["total"], 3000);
        assert_eq!(stats["cpu"]["throttling"], json!({"throttledPeriods": 1}));
        assert_eq!(stats["memory"]["usage"]["limit"], u64::MAX);
        assert_eq!(stats["memory"]["swap"]["limit"], u64::MAX);
        assert_eq!(stats["pids"], json!({"current": 2}));
        assert_eq!(stats["blkio"], json!({}));
    }

    #[test]
    fn the_end_of_an_exec_is_not_the_containers() {
        let exit = |exec: &str| {
            let key = ProcessKey {
                container: "web".into(),
                exec: exec.into(),
            };
            let exit = Exit::lost();
            Event::Exit { key, pid: 1, exit }.envelope().unwrap()
        };
        assert!(is_end(&exit(""), "web"));
        assert!(!is_end(&exit("sh"), "web"));
        assert!(!is_end(&exit(""), "other"));
    }

    #[test]
    fn intervals_are_read_as_go_does() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5ms"), Ok(Duration::from_micros(1500)));
        for wrong in ["", "0s", "5", "s", "-1s", "5x", "1e9h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
