//! A container with a terminal.

use harness::{Bundle, Runtime, Terminal};
use serde_json::json;

#[test]
fn size_is_that_of_the_terminal_and_follows_it() {
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox()
        .shell("trap 'stty size; exit 5' WINCH; tty; stty size; echo ready; while :; do sleep 0.1; done")
        .with("/process/terminal", json!(true));
    let mut terminal = Terminal::new(101, 37);
    let mut child = runtime.start_in(&bundle, &terminal);
    let shown = terminal.read_until("ready\r\n");
    assert!(shown.contains("/dev/"), "{shown}");
    assert!(shown.contains("37 101"), "{shown}");
    terminal.resize(55, 22);
    terminal.read_until("22 55\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[test]
fn typing_reaches_the_container_and_the_terminal_is_as_before() {
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox()
        .shell("echo ready; read line; echo \"<$line>\"; exit 7")
        .with("/process/terminal", json!(true));
    let mut terminal = Terminal::new(80, 24);
    assert!(terminal.is_cooked());
    let mut child = runtime.start_in(&bundle, &terminal);
    terminal.read_until("ready\r\n");
    assert!(!terminal.is_cooked());
    terminal.type_in("hello\r");
    terminal.read_until("<hello>\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(7));
    assert!(terminal.is_cooked());
}

#[test]
fn control_c_interrupts_the_program_inside() {
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox()
        .shell("trap 'echo interrupted; exit 6' INT; echo ready; while :; do sleep 0.1; done")
        .with("/process/terminal", json!(true));
    let mut terminal = Terminal::new(80, 24);
    let mut child = runtime.start_in(&bundle, &terminal);
    terminal.read_until("ready\r\n");
    terminal.type_in("\u{3}");
    terminal.read_until("interrupted\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(6));
}

#[test]
fn it_is_looked_for_on_all_streams() {
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox()
        .shell("test -t 0; echo on a terminal: $?; stty size; exit 3")
        .with("/process/terminal", json!(true));
    bundle.write();
    let path = bundle.path().to_str().unwrap();
    let run = |redirected: &str| {
        let command = runtime.command(&["run", "--bundle", path, &Runtime::new_id()]);
        let mut in_shell = std::process::Command::new("sh");
        in_shell.args(["-c", &format!("exec \"$@\" {redirected}"), "sh"]);
        in_shell.arg(command.get_program()).args(command.get_args());
        in_shell
    };
    let mut terminal = Terminal::new(91, 31);
    let mut child = terminal.command(&run("</dev/null")).spawn().unwrap();
    terminal.read_until("on a terminal: 0\r\n31 91\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    // Into a file go lines as the program ends them.
    let file = bundle.path().join("out");
    let all = format!("</dev/null >{} 2>/dev/null", file.display());
    let mut child = terminal.command(&run(&all)).spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("on a terminal: 0\n"), "{text:?}");
    assert!(!text.contains('\r'), "{text:?}");
}

#[test]
fn a_terminal_is_asked_for_where_there_is_none() {
    let bundle = Bundle::busybox().with("/process/terminal", json!(true));
    let output = Runtime::from_environment().run(&bundle);
    if Runtime::is_husk() {
        output.assert_refused(&["terminal"]);
    } else {
        assert_ne!(output.status, 0);
    }
}
