//! Images of registries and archives, as skopeo copies them and umoci unpacks them: what comes of it is run as it is.

use std::path::Path;
use std::process::Command;

use harness::{Bundle, Remains, Runtime, Terminal};

/// Runs a tool, which must end well.
fn tool(folder: &Path, words: &[&str]) {
    let output = Command::new(words[0])
        .args(&words[1..])
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| panic!("{words:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {errors}");
}

/// An image in an archive as registries and `docker save` give it: a busybox with a command, a user, a directory and a variable.
fn archive(folder: &Path) {
    let busybox = Bundle::busybox();
    let tree = busybox.rootfs();
    let users = "root:x:0:0:root:/root:/bin/sh\nweb:x:7:8:web:/home/web:/bin/sh\n";
    std::fs::write(tree.join("etc/passwd"), users).unwrap();
    std::fs::create_dir_all(tree.join("home/web")).unwrap();
    std::os::unix::fs::chown(tree.join("home/web"), Some(7), Some(8)).unwrap();
    tool(folder, &["umoci", "init", "--layout", "made"]);
    tool(folder, &["umoci", "new", "--image", "made:web"]);
    let tree = tree.to_str().unwrap();
    tool(
        folder,
        &["umoci", "insert", "--image", "made:web", tree, "/"],
    );
    let configured = [
        "umoci",
        "config",
        "--image",
        "made:web",
        "--config.user=web",
        "--config.workingdir=/home/web",
        "--config.env=GREETING=hello",
        "--config.entrypoint=/bin/sh",
        "--config.entrypoint=-c",
        "--config.cmd=id -u; id -g; pwd; echo $GREETING $HOME; tty; echo mine >file; stat -c '%a %u %g' file; echo end; exit 5",
    ];
    tool(folder, &configured);
    let words = [
        "skopeo",
        "copy",
        "oci:made:web",
        "docker-archive:web.tar:web:1",
    ];
    tool(folder, &words);
}

#[test]
fn one_that_skopeo_copies_and_umoci_unpacks_runs_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    archive(folder.path());
    let words = ["skopeo", "copy", "docker-archive:web.tar", "oci:images:web"];
    tool(folder.path(), &words);
    tool(
        folder.path(),
        &["umoci", "unpack", "--image", "images:web", "web"],
    );

    let runtime = Runtime::from_environment();
    let before = Remains::seen();
    let id = Runtime::new_id();
    let bundle = folder.path().join("web");
    let command = runtime.command(&["run", "--bundle", bundle.to_str().unwrap(), &id]);
    let mut terminal = Terminal::new(80, 24);
    let mut child = terminal.command(&command).spawn().unwrap();
    let shown = terminal.read_until("end\r\n");
    assert_eq!(
        shown,
        "7\r\n8\r\n/home/web\r\nhello /home/web\r\n/dev/pts/0\r\n644 7 8\r\nend\r\n"
    );
    assert_eq!(child.wait().unwrap().code(), Some(5));
    before.assert_nothing_new(&id, &runtime.root());
    let file = std::fs::read_to_string(bundle.join("rootfs/home/web/file")).unwrap();
    assert_eq!(file, "mine\n");
}
