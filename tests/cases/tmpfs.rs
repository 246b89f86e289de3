//! A tmpfs is memory of the guest.

use harness::{Bundle, Runtime};
use serde_json::json;

#[test]
fn tmpfs_has_its_size_and_mode() {
    let bundle = Bundle::busybox()
        .shell("stat -c %a /scratch; head -c 2M /dev/zero >/scratch/f 2>/dev/null || echo full; stat -f -c %T /scratch")
        .mount(json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs",
                      "options": ["nosuid", "nodev", "mode=1770", "size=1m"]}));
    Runtime::from_environment()
        .run(&bundle)
        .assert_prints("1770\nfull\ntmpfs\n");
    let left = std::fs::read_dir(bundle.rootfs().join("scratch")).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}
