//! The text of a guest's cgroup files, as containerd's metrics of cgroup version 2 (pure).
//!
//! The guest is not trusted: whatever it wrote becomes numbers or is left out. Only names that are known are looked for, so a text can
//! not make the result larger, and lists of devices and page sizes have bounds. `max` is the largest number there is, which is
//! how containerd says "no limit". The files are described in the kernel's `admin-guide/cgroup-v2.rst`.

use std::collections::HashMap;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats,
    PidsStat,
};
use protobuf::MessageField;

/// Lines read of one file: `memory.stat` has some sixty.
const LINES_MAX: usize = 256;

/// Devices in `io.stat`: a guest has as many as its supervisor gave it, which is a handful.
const DEVICES_MAX: usize = 64;

/// Sizes of huge pages a processor can have, and then some.
const PAGE_SIZES_MAX: usize = 8;

/// The longest name of such a size, `1024KB` with room.
const PAGE_SIZE_NAME_MAX: usize = 16;

type Files = HashMap<String, String>;

/// All metrics there are files for.
pub(crate) fn metrics(files: &Files) -> Metrics {
    Metrics {
        pids: pids(files).into(),
        cpu: files.get("cpu.stat").map(|text| cpu(text, files)).into(),
        memory: memory(files).into(),
        io: files.get("io.stat").map(|text| io(text, files)).into(),
        hugetlb: hugetlb(files),
        memory_events: files.get("memory.events").map(|text| events(text)).into(),
        ..Default::default()
    }
}

fn pids(files: &Files) -> Option<PidsStat> {
    Some(PidsStat {
        current: single(files, "pids.current")?,
        limit: single(files, "pids.max").unwrap_or(u64::MAX),
        ..Default::default()
    })
}

fn cpu(text: &str, files: &Files) -> CPUStat {
    let stat = Keyed::of(text);
    CPUStat {
        usage_usec: stat.get("usage_usec"),
        user_usec: stat.get("user_usec"),
        system_usec: stat.get("system_usec"),
        nr_periods: stat.get("nr_periods"),
        nr_throttled: stat.get("nr_throttled"),
        throttled_usec: stat.get("throttled_usec"),
        nr_bursts: stat.get("nr_bursts"),
        burst_usec: stat.get("burst_usec"),
        psi: pressure(files, "cpu.pressure"),
        ..Default::default()
    }
}

fn memory(files: &Files) -> Option<MemoryStat> {
    let stat = Keyed::of(files.get("memory.stat")?);
    let of_both = |name: &str| {
        let sum = stat.get(&format!("{name}_anon"));
        sum.saturating_add(stat.get(&format!("{name}_file")))
    };
    Some(MemoryStat {
        anon: stat.get("anon"),
        file: stat.get("file"),
        kernel_stack: stat.get("kernel_stack"),
        slab: stat.get("slab"),
        sock: stat.get("sock"),
        shmem: stat.get("shmem"),
        file_mapped: stat.get("file_mapped"),
        file_dirty: stat.get("file_dirty"),
        file_writeback: stat.get("file_writeback"),
        anon_thp: stat.get("anon_thp"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        slab_reclaimable: stat.get("slab_reclaimable"),
        slab_unreclaimable: stat.get("slab_unreclaimable"),
        pgfault: stat.get("pgfault"),
        pgmajfault: stat.get("pgmajfault"),
        // The kernel counts these apart since 5.9, containerd together.
        workingset_refault: of_both("workingset_refault"),
        workingset_activate: of_both("workingset_activate"),
        workingset_nodereclaim: stat.get("workingset_nodereclaim"),
        pgrefill: stat.get("pgrefill"),
        pgscan: stat.get("pgscan"),
        pgsteal: stat.get("pgsteal"),
        pgactivate: stat.get("pgactivate"),
        pgdeactivate: stat.get("pgdeactivate"),
        pglazyfree: stat.get("pglazyfree"),
        pglazyfreed: stat.get("pglazyfreed"),
        thp_fault_alloc: stat.get("thp_fault_alloc"),
        thp_collapse_alloc: stat.get("thp_collapse_alloc"),
        usage: single(files, "memory.current").unwrap_or_default(),
        usage_limit: single(files, "memory.max").unwrap_or(u64::MAX),
        max_usage: single(files, "memory.peak").unwrap_or_default(),
        swap_usage: single(files, "memory.swap.current").unwrap_or_default(),
        swap_limit: single(files, "memory.swap.max").unwrap_or_default(),
        psi: pressure(files, "memory.pressure"),
        ..Default::default()
    })
}

fn events(text: &str) -> MemoryEvents {
    let events = Keyed::of(text);
    MemoryEvents {
        low: events.get("low"),
        high: events.get("high"),
        max: events.get("max"),
        oom: events.get("oom"),
        oom_kill: events.get("oom_kill"),
        oom_group_kill: events.get("oom_group_kill"),
        ..Default::default()
    }
}

fn io(text: &str, files: &Files) -> IOStat {
    IOStat {
        usage: text
            .lines()
            .take(LINES_MAX)
            .filter_map(device)
            .take(DEVICES_MAX)
            .collect(),
        psi: pressure(files, "io.pressure"),
        ..Default::default()
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn device(line: &str) -> Option<IOEntry> {
    let mut words = line.split_ascii_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut entry = IOEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..Default::default()
    };
    for (name, value) in words.filter_map(|word| word.split_once('=')) {
        let Ok(value) = value.parse() else { continue };
        match name {
            "rbytes" => entry.rbytes = value,
            "wbytes" => entry.wbytes = value,
            "rios" => entry.rios = value,
            "wios" => entry.wios = value,
            _ => {}
        }
    }
    Some(entry)
}

fn hugetlb(files: &Files) -> Vec<HugeTlbStat> {
    let mut sizes: Vec<&str> = files
        .keys()
        .filter_map(|name| name.strip_prefix("hugetlb.")?.strip_suffix(".current"))
        .filter(|size| is_page_size(size))
        .collect();
    sizes.sort_unstable();
    sizes.truncate(PAGE_SIZES_MAX);
    let stat = |size: &str| HugeTlbStat {
        current: single(files, &format!("hugetlb.{size}.current")).unwrap_or_default(),
        max: single(files, &format!("hugetlb.{size}.max")).unwrap_or(u64::MAX),
        failcnt: files
            .get(&format!("hugetlb.{size}.events"))
            .map_or(0, |text| Keyed::of(text).get("max")),
        pagesize: size.to_owned(),
        ..Default::default()
    };
    sizes.into_iter().map(stat).collect()
}

fn is_page_size(text: &str) -> bool {
    (1..=PAGE_SIZE_NAME_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// The lines `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and `full …`.
fn pressure(files: &Files, name: &str) -> MessageField<PSIStats> {
    let Some(text) = files.get(name) else {
        return MessageField::none();
    };
    let mut stats = PSIStats::default();
    for line in text.lines().take(LINES_MAX) {
        match line.split_once(' ') {
            Some(("some", rest)) => stats.some = MessageField::some(stall(rest)),
            Some(("full", rest)) => stats.full = MessageField::some(stall(rest)),
            _ => {}
        }
    }
    MessageField::some(stats)
}

fn stall(text: &str) -> PSIData {
    let mut data = PSIData::default();
    let average = |text: &str| {
        text.parse()
            .ok()
            .filter(|share: &f64| (0.0..=100.0).contains(share))
            .unwrap_or_default()
    };
    for (name, value) in text
        .split_ascii_whitespace()
        .filter_map(|word| word.split_once('='))
    {
        match name {
            "avg10" => data.avg10 = average(value),
            "avg60" => data.avg60 = average(value),
            "avg300" => data.avg300 = average(value),
            "total" => data.total = value.parse().unwrap_or_default(),
            _ => {}
        }
    }
    data
}

/// A file of lines `name number`.
struct Keyed<'a>(HashMap<&'a str, u64>);

impl<'a> Keyed<'a> {
    fn of(text: &'a str) -> Self {
        let pairs = text.lines().take(LINES_MAX).filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name, value.trim().parse().ok()?))
        });
        Self(pairs.collect())
    }

    /// 0 when it is not there, or not a number.
    fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }
}

/// A file that is one number or `max`.
fn single(files: &Files, name: &str) -> Option<u64> {
    match files.get(name)?.trim() {
        "max" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(files: &[(&str, &str)]) -> Files {
        files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect()
    }

    #[test]
    fn what_a_kernel_writes_is_understood() {
        let metrics = metrics(&files(&[
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            (
                "cpu.stat",
                "usage_usec 12\nuser_usec 7\nsystem_usec 5\nnr_throttled 2\n",
            ),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.00 avg300=0.00 total=99\n",
            ),
            (
                "memory.stat",
                "anon 4096\nworkingset_refault_anon 1\nworkingset_refault_file 2\n",
            ),
            ("memory.current", "8192\n"),
            ("memory.max", "1048576\n"),
            ("memory.events", "low 0\nmax 4\noom 1\noom_kill 1\n"),
            (
                "io.stat",
                "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
            ),
            ("hugetlb.2MB.current", "0\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 5\n"),
        ]));
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, u64::MAX));
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.nr_throttled), (12, 2));
        assert_eq!(metrics.cpu.psi.some.total, 99);
        assert!((metrics.cpu.psi.some.avg10 - 1.5).abs() < 1e-9);
        assert_eq!((metrics.memory.anon, metrics.memory.usage), (4096, 8192));
        assert_eq!(metrics.memory.workingset_refault, 3);
        assert_eq!(metrics.memory.usage_limit, 1_048_576);
        assert_eq!(metrics.memory_events.oom_kill, 1);
        let device = &metrics.io.usage[0];
        assert_eq!((device.major, device.rios, device.wbytes), (254, 3, 2));
        assert_eq!(metrics.hugetlb[0].pagesize, "2MB");
        assert_eq!(metrics.hugetlb[0].failcnt, 5);
    }

    #[test]
    fn files_that_are_missing_give_no_metrics() {
        let metrics = metrics(&Files::new());
        assert!(metrics.pids.is_none() && metrics.cpu.is_none() && metrics.memory.is_none());
        assert!(metrics.io.is_none() && metrics.hugetlb.is_empty());
    }

    #[test]
    fn nonsense_becomes_nothing() {
        let metrics = metrics(&files(&[
            ("pids.current", "-1"),
            (
                "cpu.stat",
                "usage_usec 99999999999999999999999\nuser_usec\n user_usec x\n\0",
            ),
            (
                "cpu.pressure",
                "some avg10=NaN avg60=inf avg300=-1 total=x\nfull\n",
            ),
            ("memory.stat", ""),
            ("memory.max", "lots"),
            (
                "io.stat",
                "a:b rbytes=1\n1:2\n1:2:3 rios=1\n1:1 rios=x rbytes=7",
            ),
        ]));
        assert!(metrics.pids.is_none());
        assert_eq!(metrics.cpu.usage_usec, 0);
        assert!(metrics.cpu.psi.some.avg60.abs() < 1e-9);
        assert_eq!(metrics.memory.usage_limit, u64::MAX);
        assert_eq!(metrics.io.usage.len(), 2);
    }

    #[test]
    fn lists_have_bounds() {
        let devices: String = (0..10_000).map(|n| format!("8:{n} rios=1\n")).collect();
        let mut files = files(&[("io.stat", &devices)]);
        for n in 0..1000 {
            files.insert(format!("hugetlb.{n}.current"), "1".into());
        }
        files.insert(format!("hugetlb.{}.current", "x".repeat(1000)), "1".into());
        files.insert("hugetlb.\u{1b}[2J.current".into(), "1".into());
        let metrics = metrics(&files);
        assert_eq!(metrics.io.usage.len(), DEVICES_MAX);
        assert_eq!(metrics.hugetlb.len(), PAGE_SIZES_MAX);
        assert!(
            metrics
                .hugetlb
                .iter()
                .all(|stat| stat.pagesize.len() <= PAGE_SIZE_NAME_MAX)
        );
    }
}
