//! Bad input: one clear line, a status other than 0, and nothing left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use harness::{Bundle, Output, Runtime, only_husk};
use serde_json::json;

/// Runs what must be refused.
fn refused(bundle: &Bundle, parts: &[&str]) -> Output {
    let output = Runtime::from_environment().run(bundle);
    if Runtime::is_husk() {
        output.assert_refused(parts);
    } else {
        assert_ne!(output.status, 0);
    }
    output
}

/// Calls `run` with these words; nothing may be left.
fn call(words: &[&str], parts: &[&str]) {
    let runtime = Runtime::from_environment();
    let output = runtime.call(&[&["run"], words].concat());
    if Runtime::is_husk() {
        output.assert_refused(parts);
    } else {
        assert_ne!(output.status, 0);
    }
    assert_eq!(fs::read_dir(runtime.root()).map_or(0, Iterator::count), 0);
}

#[test]
fn no_bundle() {
    call(&["--bundle", "/not/there", "x"], &["/not/there"]);
}

#[test]
fn no_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    call(&["--bundle", path, "x"], &["config.json", "husk spec"]);
}

#[test]
fn broken_configuration() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("config.json"),
        "{\n\"ociVersion\": oops}",
    )
    .unwrap();
    let path = directory.path().to_str().unwrap();
    call(&["--bundle", path, "x"], &["config.json", "line 2"]);
}

#[test]
fn a_version_nobody_knows() {
    only_husk("runc looks at no version");
    refused(
        &Bundle::busybox().with("/ociVersion", json!("7.0.0")),
        &["ociVersion", "7.0.0"],
    );
}

#[test]
fn no_root_file_system() {
    let bundle = Bundle::busybox().with("/root/path", json!("elsewhere"));
    refused(&bundle, &["elsewhere"]);
}

#[test]
fn a_user_that_the_container_cannot_have() {
    let bundle = Bundle::busybox()
        .own_users(10)
        .with("/process/user", json!({"uid": 5000, "gid": 0}));
    refused(&bundle, &["5000"]);
}

#[test]
fn a_command_that_is_not_there() {
    let output = refused(
        &Bundle::busybox().args(&["no-such-command", "x"]),
        &["no-such-command"],
    );
    if Runtime::is_husk() {
        output.assert_status(127);
    }
}

#[test]
fn a_command_that_is_not_executable() {
    let bundle = Bundle::busybox().args(&["/etc/passwd"]);
    let output = refused(&bundle, &["/etc/passwd"]);
    if Runtime::is_husk() {
        output.assert_status(126);
    }
}

#[test]
fn a_relative_working_directory() {
    refused(
        &Bundle::busybox().with("/process/cwd", json!("tmp")),
        &["cwd", "tmp"],
    );
}

#[test]
fn no_command_at_all() {
    refused(&Bundle::busybox().args(&[]), &["args"]);
}

#[test]
fn a_name_in_use() {
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox().shell("echo up; read line; echo $line");
    let mut running = runtime.start(&bundle);
    let mut stdin = running.take_stdin();
    let id = running.id.clone();
    running.wait_for("up\n");
    let other = Bundle::busybox();
    other.write();
    let output = runtime.call(&["run", "--bundle", other.path().to_str().unwrap(), &id]);
    assert_ne!(output.status, 0);
    if Runtime::is_husk() {
        output.assert_refused(&[&id, "exists"]);
    }
    std::io::Write::write_all(&mut stdin, b"unharmed\n").unwrap();
    running.wait().assert_prints("unharmed\n");
}

#[test]
fn names_that_are_none() {
    let bundle = Bundle::busybox();
    bundle.write();
    let path = bundle.path().to_str().unwrap();
    for name in ["a/b", "../x", "..", ".", ""] {
        call(&["--bundle", path, name], &[]);
    }
}

#[test]
fn the_network_of_the_host() {
    only_husk("runc gives a container the host's");
    refused(
        &Bundle::busybox().without_namespace("network"),
        &["network"],
    );
}

#[test]
fn the_processes_of_the_host() {
    only_husk("runc gives a container the host's");
    refused(&Bundle::busybox().without_namespace("pid"), &["pid"]);
}

#[test]
fn a_source_of_a_bind_mount_that_is_not_there() {
    let bundle = Bundle::busybox().bind(Path::new("/not/there"), "/data", &["bind"]);
    refused(&bundle, &["/not/there"]);
}

#[test]
fn no_permission_for_kvm() {
    only_husk("runc has no VM");
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox();
    bundle.write();
    fs::set_permissions(bundle.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The built tree may lie where another user cannot go.
    let executable = bundle.path().join("husk");
    fs::copy(runtime.executable(), &executable).unwrap();
    let mut command = Command::new(executable);
    command
        .args(["run", "--bundle", bundle.path().to_str().unwrap(), "x"])
        .uid(65534)
        .gid(65534);
    assert_one_line_about(&command.output().unwrap(), "root");
}

#[test]
fn no_kvm() {
    only_husk("runc has no VM");
    // A mount namespace whose /dev is as good as empty.
    let hidden = "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec \"$@\"";
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox();
    bundle.write();
    let plain = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), "x"]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", hidden, "sh"]);
    command.arg(plain.get_program()).args(plain.get_args());
    assert_one_line_about(&command.output().unwrap(), "/dev/kvm");
    assert_eq!(fs::read_dir(runtime.root()).map_or(0, Iterator::count), 0);
}

#[track_caller]
fn assert_one_line_about(output: &std::process::Output, subject: &str) {
    assert!(!output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(errors.trim_end().lines().count(), 1, "{errors}");
    assert!(errors.contains(subject), "{errors}");
}

/// Runs with an asset that is not what it should be.
fn with_asset(name: &str, content: Option<&[u8]>) {
    only_husk("runc has no VM");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("asset");
    if let Some(content) = content {
        fs::write(&path, content).unwrap();
    }
    let runtime = Runtime::from_environment().configured(&format!("{name} = {path:?}\n"));
    runtime
        .run(&Bundle::busybox())
        .assert_refused(&[name, path.to_str().unwrap()]);
}

#[test]
fn a_kernel_that_is_missing() {
    with_asset("kernel", None);
}

#[test]
fn a_kernel_that_is_none() {
    with_asset("kernel", Some(&[b'x'; 8192]));
}

#[test]
fn an_initrd_that_is_missing() {
    with_asset("initrd", None);
}

#[test]
fn an_initrd_that_is_none() {
    with_asset("initrd", Some(&[b'x'; 8192]));
}

#[test]
fn more_memory_than_the_host_has() {
    only_husk("runc has no VM");
    let runtime = Runtime::from_environment().configured("memory_mib = 4000000\n");
    runtime
        .run(&Bundle::busybox())
        .assert_refused(&["4000000 MiB", "the host has"]);
}

#[test]
fn a_setting_nobody_knows() {
    only_husk("runc has no configuration file");
    let runtime = Runtime::from_environment().configured("memroy_mib = 512\n");
    runtime
        .run(&Bundle::busybox())
        .assert_refused(&["memroy_mib"]);
}

#[test]
fn a_list_of_a_root_that_is_not_there() {
    let runtime = Runtime::from_environment();
    let output = Command::new(runtime.executable())
        .args(["--root", "/not/there", "list"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("/not/there"), "{errors}");
}

#[test]
fn errors_are_called_so_and_debugging_without_a_log_is_on_standard_error() {
    let runtime = Runtime::from_environment();
    let call = |words: &[&str]| {
        let mut command = Command::new(runtime.executable());
        command.arg("--root").arg(runtime.root()).args(words);
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), errors)
    };
    let (status, errors) = call(&["state", "nonesuch"]);
    assert_ne!(status, Some(0));
    assert!(errors.contains("error"), "{errors}");
    assert!(!errors.contains("level=debug"), "{errors}");
    let bundle = Bundle::busybox().shell("exit 3");
    bundle.write();
    let path = bundle.path().to_str().unwrap();
    let id = Runtime::new_id();
    let (status, errors) = call(&["--debug", "run", "--bundle", path, &id]);
    assert_eq!(status, Some(3), "{errors}");
    assert!(errors.contains("level=debug"), "{errors}");
}
