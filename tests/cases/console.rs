//! Terminals of processes in the background, at an engine that has their masters.

use harness::{Bundle, Engine};
use serde_json::json;

const SIZES: &str =
    "trap 'stty size' WINCH; tty; stty size; echo ready; while :; do sleep 0.1; done";

fn with_terminal(script: &str) -> Engine {
    Engine::of(
        Bundle::busybox()
            .shell(script)
            .with("/process/terminal", json!(true)),
    )
}

#[test]
fn the_size_set_on_the_master_is_the_containers() {
    let engine = with_terminal(SIZES);
    let console = engine.console();
    let path = console.path.clone();
    let process = engine.make(&["create"], &["--console-socket", &path]);
    let mut terminal = console.terminal();
    terminal.resize(99, 33);
    engine.start();
    // Its first words: no change of size comes before them.
    let first = terminal.read_until("33 99\r\n");
    assert_eq!(first.lines().count(), 2, "{first}");
    terminal.read_until("ready\r\n");
    terminal.resize(55, 22);
    terminal.read_until("22 55\r\n");
    engine.call(&["delete", "--force"]).assert_status(0);
    assert_eq!(process.wait(), 137);
}

#[test]
fn keys_reach_the_container() {
    let engine = with_terminal("echo ready; read line; echo \"<$line>\"; exit 7");
    let console = engine.console();
    let path = console.path.clone();
    let process = engine.make(&["run", "--detach"], &["--console-socket", &path]);
    let mut terminal = console.terminal();
    terminal.read_until("ready\r\n");
    terminal.type_in("hello\r");
    terminal.read_until("<hello>\r\n");
    assert_eq!(process.wait(), 7);
}

#[test]
fn lines_end_as_the_owner_of_the_master_wants_them() {
    let engine = with_terminal("echo one; exec sleep 1000");
    let console = engine.console();
    let path = console.path.clone();
    let _process = engine.make(&["create"], &["--console-socket", &path]);
    let mut terminal = console.terminal();
    terminal.keep_newlines();
    engine.start();
    assert_eq!(terminal.read_until("\n"), "one\n");
    // An exec's terminal is another one.
    let console = engine.console();
    let path = console.path.clone();
    let exec = engine.exec(&["--tty", "--console-socket", &path], &["echo", "two"]);
    let mut terminal = console.terminal();
    assert_eq!(terminal.read_until("\n"), "two\r\n");
    assert_eq!(exec.wait(), 0);
}

#[test]
fn a_closed_master_hangs_up_the_terminal() {
    let engine = with_terminal("trap 'exit 9' HUP; echo ready; while :; do sleep 0.1; done");
    let console = engine.console();
    let path = console.path.clone();
    let process = engine.make(&["run", "--detach"], &["--console-socket", &path]);
    let mut terminal = console.terminal();
    terminal.read_until("ready\r\n");
    drop(terminal);
    assert_eq!(process.wait(), 9);
}

#[test]
fn an_exec_has_a_terminal_of_its_own() {
    let engine = Engine::of(Bundle::busybox().args(&["sleep", "1000"]));
    let _process = engine.make(&["run", "--detach"], &[]);
    let console = engine.console();
    let path = console.path.clone();
    let script = "trap 'stty size; exit 8' WINCH; echo ready; while :; do sleep 0.1; done";
    let exec = engine.exec(&["--tty", "--console-socket", &path], &["sh", "-c", script]);
    let mut terminal = console.terminal();
    terminal.read_until("ready\r\n");
    terminal.resize(66, 44);
    terminal.read_until("44 66\r\n");
    assert_eq!(exec.wait(), 8);
}

#[test]
fn terminal_and_console_socket_go_together() {
    let engine = with_terminal("true");
    let bundle = engine.bundle().path().to_str().unwrap().to_owned();
    engine
        .call(&["create", "--bundle", &bundle])
        .assert_refused(&[
            "cannot allocate tty if",
            "will detach without setting console socket",
        ]);
    let engine = Engine::of(Bundle::busybox());
    let bundle = engine.bundle().path().to_str().unwrap().to_owned();
    let console = engine.console();
    for verb in ["create", "run"] {
        engine
            .call(&[verb, "--bundle", &bundle, "--console-socket", &console.path])
            .assert_refused(&["cannot use console socket if"]);
    }
}
