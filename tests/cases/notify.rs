//! Whoever waits for a service to be ready is told when the container's program says so, as `sd_notify(3)` does.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Stdio;
use std::thread;

use harness::{Bundle, Engine, Runtime, wait};
use rustix::fs::{CWD, Mode};
use rustix::process::Pid;

/// Says other things, waits, and is ready.
const SERVICE: &str = "test \"$NOTIFY_SOCKET\" = /run/notify/notify.sock || echo wrong: $NOTIFY_SOCKET; \
    touch /run/notify/x 2>/dev/null || echo protected; probe notify STATUS=early; echo waiting; \
    until test -e /go; do sleep 0.1; done; probe notify READY=1; echo said; read line; exit 3";

fn service() -> Bundle {
    Bundle::busybox()
        .probe(env!("CARGO_BIN_EXE_probe"), &[])
        .shell(SERVICE)
}

/// An input from which nothing comes, and no end.
fn silent(engine: &Engine) -> File {
    let path = engine.path("input");
    rustix::fs::mkfifoat(CWD, &path, Mode::RWXU).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

fn received(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 4096];
    let length = socket.recv(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// What is told is that it is ready and which process is to be watched. Whatever comes later is read by nobody but the socket's owner.
fn assert_told(socket: UnixDatagram, pid: i32) {
    assert_eq!(received(&socket), "READY=1\n");
    assert_eq!(received(&socket), format!("MAINPID={pid}\n"));
    thread::spawn(move || while socket.recv(&mut [0; 4096]).is_ok() {});
}

#[test]
fn start_returns_when_the_program_is_ready_and_the_caller_is_told() {
    let engine = Engine::of(service());
    let path = engine.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let bundle = engine.bundle().path().to_str().unwrap();
    let mut create = engine.command(&["create", "--bundle", bundle, &engine.id]);
    create.env("NOTIFY_SOCKET", &path).stdin(silent(&engine));
    assert!(create.status().unwrap().success(), "{}", engine.errors());
    let mut start = engine.runtime.command(&["start", &engine.id]);
    let mut start = start.env("NOTIFY_SOCKET", &path).spawn().unwrap();
    engine.await_output("protected\nwaiting\n");
    assert!(start.try_wait().unwrap().is_none(), "it is not ready yet");
    fs::write(engine.bundle().rootfs().join("go"), "").unwrap();
    let pid = engine.state()["pid"].as_i64().unwrap();
    assert_told(socket, i32::try_from(pid).unwrap());
    assert!(start.wait().unwrap().success());
    engine.await_output("waiting\nsaid\n");
    assert_eq!(engine.state()["status"], "running");
}

#[test]
fn run_tells_who_waits_at_an_abstract_socket() {
    let name = format!("husk-case-{}", std::process::id());
    let bound = || {
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        UnixDatagram::bind_addr(&address).unwrap()
    };
    let socket = bound();
    let runtime = Runtime::from_environment();
    let bundle = service();
    bundle.write();
    fs::write(bundle.rootfs().join("go"), "").unwrap();
    let path = bundle.path().to_str().unwrap();
    let id = Runtime::new_id();
    let mut run = runtime.command(&["run", "--bundle", path, &id]);
    run.env("NOTIFY_SOCKET", format!("@{name}"));
    let mut run = run.stdin(Stdio::piped()).spawn().unwrap();
    // In the foreground it is the runtime that ends with the container's status.
    assert_told(socket, Pid::from_child(&run).as_raw_nonzero().get());
    run.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(3));

    let engine = Engine::of(service());
    fs::write(engine.bundle().rootfs().join("go"), "").unwrap();
    let path = engine.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let bundle = engine.bundle().path().to_str().unwrap();
    let mut run = engine.command(&["run", "--detach", "--bundle", bundle, &engine.id]);
    run.env("NOTIFY_SOCKET", &path).stdin(silent(&engine));
    let mut run = run.spawn().unwrap();
    assert_eq!(received(&socket), "READY=1\n");
    let pid = engine.state()["pid"].clone();
    assert_eq!(received(&socket), format!("MAINPID={pid}\n"));
    drop(socket);
    wait::until("run returns", || run.try_wait().unwrap().is_some());
}
