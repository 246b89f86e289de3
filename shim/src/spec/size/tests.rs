//! Sizes at first, and how far a VM goes afterwards.

use super::*;

const CONFIGURED: ConfiguredSize = ConfiguredSize {
    memory_mib: 512,
    memory_max_mib: None,
    vcpus: 1,
    vcpus_max: None,
};
const HOST: HostSize = HostSize {
    memory_mib: 4096,
    cpus: 6,
};

fn demand(resources: &str) -> Demand {
    Demand::of(&serde_json::from_str(resources).unwrap())
}

fn asked(asked: Asked, resources: &str) -> VmSize {
    let demand = Demand {
        asked,
        ..demand(resources)
    };
    demand.vm_size(CONFIGURED, HOST).unwrap()
}

fn size(resources: &str) -> Result<(u32, u8), SizeError> {
    demand(resources)
        .vm_size(CONFIGURED, HOST)
        .map(|size| (size.memory_mib, size.vcpus))
}

fn extent(vm: VmSize, resources: &[&str]) -> Result<(u32, u8), String> {
    let demands: Vec<Demand> = resources.iter().map(|text| demand(text)).collect();
    vm.extent_for(&demands)
        .map(|extent| (extent.memory_mib, extent.vcpus))
        .map_err(|error| error.to_string())
}

fn limit(mib: u64) -> String {
    format!(r#"{{"memory":{{"limit":{}}}}}"#, mib * MIB)
}

fn quota(percent: u32) -> String {
    format!(r#"{{"cpu":{{"quota":{}}}}}"#, percent * 1000)
}

#[test]
fn no_limits_give_the_configured_size() {
    assert_eq!(size("{}"), Ok((512, 1)));
    assert_eq!(
        size(r#"{"memory":{"limit":-1},"cpu":{"quota":-1,"period":100000}}"#),
        Ok((512, 1))
    );
}

#[test]
fn memory_limit_is_what_the_container_gets() {
    assert_eq!(size(&limit(1024)), Ok((1024 + 64, 1)));
    assert_eq!(size(r#"{"memory":{"limit":1048577}}"#), Ok((512, 1)));
}

#[test]
fn quota_is_rounded_up_to_whole_cpus() {
    assert_eq!(
        size(r#"{"cpu":{"quota":50000,"period":100000}}"#),
        Ok((512, 1))
    );
    assert_eq!(size(&quota(150)), Ok((512, 2)));
    assert_eq!(size(&quota(300)), Ok((512, 3)));
    assert_eq!(size(r#"{"cpu":{"quota":300000,"period":0}}"#), Ok((512, 3)));
}

#[test]
fn no_more_cpus_than_the_host_has() {
    assert_eq!(size(&quota(9900)), Ok((512, 6)));
}

#[test]
fn what_the_bundle_asks_for_is_taken_as_it_is() {
    let small = Asked {
        memory_mib: Some(128),
        ..Asked::default()
    };
    assert_eq!(asked(small, "{}").memory_mib, 128);
    assert_eq!(asked(small, &limit(200)).memory_mib, 264);
    let many = Asked {
        vcpus: Some(16),
        ..Asked::default()
    };
    assert_eq!(asked(many, &quota(300)).vcpus, 16);
}

#[test]
fn a_configured_number_of_vcpus_is_not_capped() {
    let configured = ConfiguredSize {
        vcpus: 32,
        ..CONFIGURED
    };
    let size = demand("{}").vm_size(configured, HOST).unwrap();
    assert_eq!((size.vcpus, size.vcpus_max), (32, 32));
}

#[test]
fn more_memory_than_the_host_has_is_an_error() {
    let error = size(&limit(8192)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a VM of 8256 MiB is wanted, and the host has 4096 MiB"
    );
    assert!(size(r#"{"memory":{"limit":9223372036854775807}}"#).is_err());
}

#[test]
fn maxima_are_those_asked_for_then_the_configured_ones_then_the_hosts() {
    let maxima = |vm: VmSize| (vm.memory_max_mib, vm.vcpus_max);
    assert_eq!(maxima(asked(Asked::default(), "{}")), (4096, 4));
    let configured = ConfiguredSize {
        memory_max_mib: Some(1000),
        vcpus_max: Some(8),
        ..CONFIGURED
    };
    let vm = demand("{}").vm_size(configured, HOST).unwrap();
    assert_eq!(maxima(vm), (1000, 8));
    let said = Asked {
        memory_max_mib: Some(9000),
        vcpus_max: Some(2),
        ..Asked::default()
    };
    let vm = Demand {
        asked: said,
        ..demand(&quota(500))
    };
    let vm = vm.vm_size(configured, HOST).unwrap();
    assert_eq!((maxima(vm), vm.vcpus), ((4096, 2), 2));
}

#[test]
fn a_maximum_is_no_less_than_the_size_at_boot() {
    let small = Asked {
        memory_max_mib: Some(1),
        vcpus: Some(3),
        vcpus_max: Some(1),
        ..Asked::default()
    };
    let vm = asked(small, "{}");
    assert_eq!((vm.memory_max_mib, vm.vcpus_max), (512, 3));
}

#[test]
fn a_vm_grows_by_memory_blocks_up_to_its_maximum() {
    let vm = asked(
        Asked {
            memory_max_mib: Some(1001),
            ..Asked::default()
        },
        "{}",
    );
    assert_eq!(extent(vm, &[&limit(448)]), Ok((512, 1)));
    assert_eq!(extent(vm, &[&limit(449)]), Ok((512 + 128, 1)));
    assert_eq!(extent(vm, &[&limit(936)]), Ok((1000, 1)));
    assert_eq!(
        extent(vm, &[&limit(937)]).unwrap_err(),
        "a memory limit of 937 MiB needs a VM of 1001 MiB, and this one can have 1000 MiB"
    );
    assert_eq!(extent(vm, &[r#"{"memory":{"limit":-1}}"#]), Ok((512, 1)));
}

#[test]
fn limits_and_quotas_of_all_containers_are_added_up() {
    let vm = asked(Asked::default(), "{}");
    let both = [limit(400), limit(300)];
    assert_eq!(extent(vm, &[&both[0], &both[1], "{}"]), Ok((512 + 256, 1)));
    assert_eq!(extent(vm, &[&quota(150), &quota(100)]), Ok((512, 3)));
}

#[test]
fn vcpus_follow_the_quota_between_the_configured_number_and_the_maximum() {
    let vm = asked(Asked::default(), &quota(300));
    assert_eq!(extent(vm, &[&quota(50)]), Ok((512, 1)));
    assert_eq!(extent(vm, &[&quota(900)]), Ok((512, 4)));
    assert_eq!(extent(vm, &[r#"{"cpu":{"quota":-1}}"#]), Ok((512, 1)));
    let configured = ConfiguredSize {
        vcpus: 2,
        ..CONFIGURED
    };
    let vm = demand("{}").vm_size(configured, HOST).unwrap();
    assert_eq!(extent(vm, &[&quota(100)]), Ok((512, 2)));
    assert_eq!(extent(vm, &[&quota(300)]), Ok((512, 3)));
}

#[test]
fn vcpus_that_were_asked_for_stay_unless_a_maximum_was_too() {
    let two = Asked {
        vcpus: Some(2),
        ..Asked::default()
    };
    let vm = asked(two, "{}");
    assert_eq!(extent(vm, &[&quota(400)]), Ok((512, 2)));
    assert_eq!(extent(vm, &[&quota(100)]), Ok((512, 2)));
    let up_to_three = Asked {
        vcpus_max: Some(3),
        ..two
    };
    let vm = asked(up_to_three, "{}");
    assert_eq!(extent(vm, &[&quota(400)]), Ok((512, 3)));
}

#[test]
fn what_an_update_does_not_say_stays() {
    let before = demand(r#"{"memory":{"limit":1048576},"cpu":{"quota":200000,"period":100000}}"#);
    let change = demand(r#"{"memory":{"limit":0},"cpu":{"period":50000}}"#);
    let after = before.updated(change);
    assert_eq!((after.limit_mib(), after.cpus()), (Some(1), Some(4)));
    let change = demand(r#"{"memory":{"limit":-1},"cpu":{"quota":-1}}"#);
    let after = before.updated(change);
    assert_eq!((after.limit_mib(), after.cpus()), (None, None));
}
