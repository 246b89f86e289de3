//! What is written for what `linux.resources` says.

use serde_json::{Value, json};

use super::*;

fn limits(given: Value, present: &Present) -> Result<Limits, PlanError> {
    read(&serde_json::from_value(given).unwrap(), present)
}

fn writes(given: Value) -> Vec<(String, String)> {
    of(limits(given, &Present::default()).unwrap())
}

fn of(limits: Limits) -> Vec<(String, String)> {
    limits
        .writes
        .into_iter()
        .map(|write| (write.file, write.value))
        .collect()
}

fn pairs(given: &[(&str, &str)]) -> Vec<(String, String)> {
    given
        .iter()
        .map(|(file, value)| ((*file).to_owned(), (*value).to_owned()))
        .collect()
}

fn refusal(given: Value) -> String {
    limits(given, &Present::default())
        .expect_err("refused")
        .to_string()
}

#[test]
fn cpu_shares_become_weights() {
    for (shares, weight) in [(2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)] {
        assert_eq!(weight_of(shares), weight, "{shares}");
    }
    assert_eq!(writes(json!({"cpu": {"shares": 0}})), []);
    assert_eq!(
        writes(json!({"cpu": {"shares": 5, "idle": 1}})),
        pairs(&[("cpu.idle", "1")])
    );
}

#[test]
fn a_quota_or_a_period_alone_leaves_the_other() {
    let one = |cpu: Value, quota: Option<&str>| {
        let present = Present {
            cpu_quota: quota.map(str::to_owned),
            ..Present::default()
        };
        of(limits(json!({ "cpu": cpu }), &present).unwrap())
    };
    assert_eq!(
        one(json!({"quota": 5000}), None),
        pairs(&[("cpu.max", "5000 100000")])
    );
    assert_eq!(
        one(json!({"quota": 5000}), Some("700")),
        pairs(&[("cpu.max", "5000")])
    );
    assert_eq!(
        one(json!({"period": 9000}), Some("700")),
        pairs(&[("cpu.max", "700 9000")])
    );
    assert_eq!(
        one(json!({"quota": -1}), Some("700")),
        pairs(&[("cpu.max", "max")])
    );
}

#[test]
fn a_burst_comes_after_its_quota() {
    assert_eq!(
        writes(json!({"cpu": {"quota": 5000, "period": 10000, "burst": 4000}})),
        pairs(&[
            ("cpu.max.burst", "0"),
            ("cpu.max", "5000 10000"),
            ("cpu.max.burst", "4000")
        ])
    );
}

#[test]
fn swap_is_what_is_left_of_memory_and_swap() {
    let swap = |memory: Value| writes(json!({ "memory": memory }));
    assert_eq!(
        swap(json!({"limit": 100, "swap": 150})),
        pairs(&[("memory.swap.max", "50"), ("memory.max", "100")])
    );
    assert_eq!(
        swap(json!({"limit": 100, "swap": 100})),
        pairs(&[("memory.swap.max", "0"), ("memory.max", "100")])
    );
    assert_eq!(
        swap(json!({"limit": 100, "swap": -1})),
        pairs(&[("memory.swap.max", "max"), ("memory.max", "100")])
    );
    assert_eq!(
        swap(json!({"limit": -1})),
        pairs(&[("memory.swap.max", "max"), ("memory.max", "max")])
    );
    assert_eq!(swap(json!({"limit": 100})), pairs(&[("memory.max", "100")]));
    assert_eq!(swap(json!({"limit": 0, "swap": 0})), []);
}

#[test]
fn swap_alone_counts_from_the_limit_there_is() {
    let present = Present {
        memory_max: Some(100),
        ..Present::default()
    };
    let set = limits(json!({"memory": {"swap": 130}}), &present).unwrap();
    assert_eq!(of(set), pairs(&[("memory.swap.max", "30")]));
    assert_eq!(
        refusal(json!({"memory": {"swap": 130}})),
        "linux.resources.memory.swap: cannot be limited without a limit on memory"
    );
    assert_eq!(
        refusal(json!({"memory": {"limit": 200, "swap": 130}})),
        "linux.resources.memory.swap: below the limit on memory, which it includes"
    );
}

#[test]
fn a_limit_below_what_is_used_is_refused_where_that_is_asked_for() {
    let present = Present {
        memory_current: 500,
        ..Present::default()
    };
    let set = |check: bool| {
        limits(
            json!({"memory": {"limit": 400, "checkBeforeUpdate": check}}),
            &present,
        )
    };
    assert!(set(false).is_ok());
    assert!(set(true).is_err());
}

#[test]
fn block_io_is_that_of_version_2() {
    assert_eq!(
        writes(json!({"blockIO": {
            "weight": 1000,
            "weightDevice": [{"major": 254, "minor": 0, "weight": 10}],
            "throttleReadBpsDevice": [{"major": 254, "minor": 0, "rate": 100}],
            "throttleWriteIOPSDevice": [{"major": 254, "minor": 0, "rate": 0}],
        }})),
        pairs(&[
            ("io.weight", "10000"),
            ("io.weight", "254:0 1"),
            ("io.max", "254:0 rbps=100"),
            ("io.max", "254:0 wiops=max")
        ])
    );
    assert!(refusal(json!({"blockIO": {"leafWeight": 100}})).contains("leafWeight"));
}

#[test]
fn huge_pages_pids_rdma_and_files_are_written() {
    assert_eq!(
        writes(json!({
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}],
            "pids": {"limit": -1},
            "rdma": {"mlx": {"hcaHandles": 3, "hcaObjects": 4}},
            "unified": {"memory.high": "1000"},
        })),
        pairs(&[
            ("pids.max", "max"),
            ("hugetlb.2MB.max", "4096"),
            ("hugetlb.2MB.rsvd.max", "4096"),
            ("rdma.max", "mlx hca_handle=3 hca_object=4"),
            ("memory.high", "1000")
        ])
    );
    for size in ["2", "3MB", "MB", "2mb", "2MB/../x", "../2MB"] {
        let given = json!({"hugepageLimits": [{"pageSize": size, "limit": 1}]});
        assert!(refusal(given).contains("pageSize"), "{size}");
    }
    for file in ["../memory.max", "a/b.c", "memory"] {
        assert!(refusal(json!({"unified": {file: "1"}})).contains("unified"));
    }
}

#[test]
fn what_version_2_does_not_have_is_left_out_and_told() {
    let given = json!({
        "memory": {"kernel": 1, "kernelTCP": 1, "swappiness": 60, "disableOOMKiller": true},
        "network": {"classID": 7},
    });
    let read = limits(given, &Present::default()).unwrap();
    assert_eq!(read.writes, []);
    assert_eq!(read.ignored.len(), 5, "{:?}", read.ignored);
    assert!(refusal(json!({"cpu": {"realtimeRuntime": 5}})).contains("realtimeRuntime"));
}
