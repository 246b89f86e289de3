//! Paths of cgroups, and whose they are.

use super::*;

fn path(cgroups_path: &str) -> Option<String> {
    relative_path(Path::new(cgroups_path))
        .ok()
        .map(|path| path.to_str().unwrap().to_owned())
}

#[test]
fn paths_stay_below_the_hierarchy() {
    assert_eq!(path("/default/web").as_deref(), Some("default/web"));
    assert_eq!(path("default/./web").as_deref(), Some("default/web"));
    assert_eq!(path("/default/../../web"), None);
    assert_eq!(path("/"), None);
}

#[test]
fn systemds_form_becomes_a_path() {
    assert_eq!(
        path("system.slice:docker:4f").as_deref(),
        Some("system.slice/docker-4f.scope")
    );
    assert_eq!(
        path("kubepods-burstable-pod1.slice:cri-containerd:4f").as_deref(),
        Some(
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/\
             cri-containerd-4f.scope"
        )
    );
    assert_eq!(
        path(":docker:4f").as_deref(),
        Some("system.slice/docker-4f.scope")
    );
    assert_eq!(
        path("-.slice:docker:4f").as_deref(),
        Some("docker-4f.scope")
    );
    for bad in [
        "../x.slice:docker:4f",
        "x.slice:a/b:4f",
        "x.slice:a:../4f",
        "x:a:4f",
    ] {
        assert_eq!(path(bad), None, "{bad}");
    }
}

#[test]
fn each_root_has_paths_of_its_own() {
    let own = own_path(Path::new("/run/husk"), "web");
    assert!(own.starts_with("husk") && own.ends_with("web"));
    assert_eq!(own.iter().count(), DEFAULT_LEVELS);
    assert_ne!(own, own_path(Path::new("/run/husk2"), "web"));
}

#[test]
fn memory_has_room_for_page_tables_and_the_host_side() {
    assert_eq!(memory_max(1024), (1024 + 4 + OVERHEAD_MIB) << 20);
}

#[test]
fn a_cgroup_is_found_whatever_its_name() {
    let table = b"2:name=x:/elsewhere\n0::/a\xff b/c\n";
    assert_eq!(
        unified(table),
        Some(Path::new(OsStr::from_bytes(b"a\xff b/c")))
    );
    assert_eq!(unified(b"1:memory:/a\n"), None);
}

#[test]
fn numbers_are_found_by_name() {
    let events = "low 0\noom 4\noom_kill 2\noom_group_kill 0\n";
    assert_eq!(count_of(events, "oom_kill"), 2);
    assert_eq!(count_of(events, "oom_kil"), 0);
    assert_eq!(count_of("", "oom_kill"), 0);
}
