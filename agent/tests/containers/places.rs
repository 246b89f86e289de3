//! Where mounts are made, and what covers what is hidden.

use serde_json::json;

use crate::agent::{Agent, sh};

#[tokio::test]
async fn what_is_masked_twice_is_covered_once_and_by_one_file_system() {
    let mut agent = Agent::start().await;
    let rootfs = agent.path("rootfs");
    for directory in ["one", "two"] {
        std::fs::create_dir(rootfs.join(directory)).unwrap();
        std::fs::write(rootfs.join(directory).join("file"), "secret").unwrap();
    }
    std::os::unix::fs::symlink("one", rootfs.join("link")).unwrap();
    let mut spec = agent.spec(&sh(
        "grep -cE ' /(one|two) ' /proc/self/mountinfo; grep -c ' /proc/uptime ' /proc/self/mountinfo; \
         test $(stat -c %d /one) = $(stat -c %d /two) && echo shared; cat /one/file /two/file; wc -c </proc/uptime",
    ));
    spec["linux"]["maskedPaths"] = json!([
        "/one",
        "/two",
        "one",
        "/one/",
        "/link",
        "/proc/uptime",
        "/proc/uptime",
    ]);
    let output = agent.run(&spec).await;
    assert_eq!(output.stdout, "2\n1\nshared\n0\n", "{}", output.stderr);
}

#[tokio::test]
async fn an_images_own_null_device_masks_nothing() {
    let mut agent = Agent::start().await;
    let rootfs = agent.path("rootfs");
    let _ = std::fs::create_dir(rootfs.join("dev"));
    let _ = std::fs::remove_file(rootfs.join("dev/null"));
    std::fs::write(rootfs.join("dev/null"), "the image's").unwrap();
    let mut spec = agent.spec(&sh(
        "cat /proc/uptime; echo kept >/proc/uptime; cat /proc/uptime",
    ));
    // No new /dev, and nothing in it.
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    spec["linux"]["maskedPaths"] = json!(["/proc/uptime"]);
    let output = agent.run(&spec).await;
    assert_eq!(
        (&*output.stdout, &*output.stderr, output.status),
        ("", "", 0)
    );
}

#[tokio::test]
async fn mounts_are_made_behind_links_to_nothing() {
    let mut agent = Agent::start().await;
    let rootfs = agent.path("rootfs");
    let volume = agent.path("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("file"), "inside").unwrap();
    for (link, target) in [
        ("absolute", "/made/a"),
        ("up", "../../../made/b"),
        ("back", "missing/../made/c"),
        ("chain", "absolute/d"),
    ] {
        std::os::unix::fs::symlink(target, rootfs.join(link)).unwrap();
    }
    let mut spec = agent.spec(&sh(
        "for p in made/a made/b made/c/e made/a/d; do cat /$p/file; done",
    ));
    for at in ["/absolute", "/up", "/back/e", "/chain"] {
        spec["mounts"].as_array_mut().unwrap().push(
            json!({"destination": at, "type": "bind", "source": volume, "options": ["bind"]}),
        );
    }
    let output = agent.run(&spec).await;
    assert_eq!(output.stdout, "inside".repeat(4), "{}", output.stderr);
}
