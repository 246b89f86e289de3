//! Standard streams: every byte, half-closes, readers that go away, terminals.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::agent::{Agent, PATIENCE, deadline, exec_of, process, read, sh};

#[tokio::test]
async fn stdout_and_stderr_are_streams_of_their_own() {
    let mut agent = Agent::start().await;
    let spec = agent.spec(&sh("echo out; echo err >&2"));
    let output = agent.run(&spec).await;
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str()),
        ("out\n", "err\n")
    );
}

#[tokio::test]
async fn stdin_half_close_reaches_process() {
    let mut agent = Agent::start().await;
    let mut ends = agent.pipes().await;
    agent
        .create("c", &agent.spec(&["cat"]), &ends)
        .await
        .unwrap();
    agent.start_container("c").await.unwrap();
    let mut stdin = ends.stdin.take().unwrap();
    stdin.write_all(b"to and fro").await.unwrap();
    stdin.shutdown().await.unwrap();
    let output = agent.finish("c", "", ends).await;
    assert_eq!((output.status, output.stdout.as_str()), (0, "to and fro"));
}

#[tokio::test]
async fn no_byte_is_lost_in_bulk() {
    let mut agent = Agent::start().await;
    let mut ends = agent.pipes().await;
    agent
        .create("c", &agent.spec(&["cat"]), &ends)
        .await
        .unwrap();
    agent.start_container("c").await.unwrap();
    let bytes: Vec<u8> = (0..4_000_000_u32).map(|n| b'a' + (n % 26) as u8).collect();
    let mut stdin = ends.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = tokio::spawn(async move { stdin.write_all(&sent).await });
    let output = agent.finish("c", "", ends).await;
    writer.await.unwrap().unwrap();
    assert!(output.stdout.as_bytes() == bytes);
}

#[tokio::test]
async fn a_reader_that_goes_away_is_a_broken_pipe() {
    let mut agent = Agent::start().await;
    let mut ends = agent.pipes().await;
    agent
        .create("c", &agent.spec(&["yes"]), &ends)
        .await
        .unwrap();
    agent.start_container("c").await.unwrap();
    let mut some = [0; 4096];
    ends.stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut some)
        .await
        .unwrap();
    ends.stdout = None;
    // SIGPIPE does not kill the first process of a pid namespace; yes ends with an error instead.
    assert_ne!(agent.exit("c", "").await.status, 0);
}

#[tokio::test]
async fn sigpipe_has_its_default_meaning() {
    let mut agent = Agent::start().await;
    let spec = agent.spec(&sh("grep SigIgn /proc/self/status"));
    let output = agent.run(&spec).await.stdout;
    let ignored = u64::from_str_radix(output.split_whitespace().last().unwrap(), 16).unwrap();
    const SIGPIPE: u32 = 13;
    assert_eq!(ignored & 1 << (SIGPIPE - 1), 0, "{output}");
}

#[tokio::test]
async fn a_slow_reader_stops_the_writer() {
    let mut agent = Agent::start().await;
    let ends = agent.pipes().await;
    let spec = agent.spec(&sh("dd if=/dev/zero bs=65536 count=400 2>/dev/null"));
    agent.create("c", &spec, &ends).await.unwrap();
    agent.start_container("c").await.unwrap();
    // Nobody has read yet, and pipes and sockets hold less than that.
    assert!(
        timeout(std::time::Duration::from_millis(500), agent.exit("c", ""))
            .await
            .is_err()
    );
    let output = agent.finish("c", "", ends).await;
    assert_eq!(output.stdout.len(), 400 * 65536);
}

#[tokio::test]
async fn the_exit_does_not_wait_for_streams() {
    let mut agent = Agent::start().await;
    agent.running(&agent.spec(&["sleep", "100"])).await;
    let ends = agent.pipes().await;
    agent
        .exec("c", "e", &process(&sh("sleep 99 & echo done")), &ends)
        .await
        .unwrap();
    assert_eq!(agent.exit("c", "e").await.status, 0);
    agent.signal("c", 9, true).await.unwrap();
    assert_eq!(read(ends.stdout).await, "done\n");
}

#[tokio::test]
async fn dev_stdout_can_be_opened_by_the_user() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&sh(
        "echo reopened > /dev/stdout; echo too > /proc/self/fd/2",
    ));
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let output = agent.run(&spec).await;
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str()),
        ("reopened\n", "too\n")
    );
}

#[tokio::test]
async fn streams_may_come_after_the_create() {
    let mut agent = Agent::start().await;
    let mut late = agent.pipes().await;
    late.stdin = None;
    agent
        .create("c", &agent.spec(&["echo", "hello"]), &late)
        .await
        .unwrap();
    agent.start_container("c").await.unwrap();
    assert_eq!(agent.finish("c", "", late).await.stdout, "hello\n");
}

#[tokio::test]
async fn a_terminal_is_the_controlling_one_and_can_be_resized() {
    let mut agent = Agent::start().await;
    let mut spec = agent.spec(&sh(
        "tty; stty size; read line; stty size; echo got $line; ls -l /dev/console",
    ));
    spec["process"]["terminal"] = json!(true);
    let mut ends = agent.terminal().await;
    agent.create("c", &spec, &ends).await.unwrap();
    agent.start_container("c").await.unwrap();
    let mut terminal = ends.terminal.take().unwrap();
    let mut seen = String::new();
    while !seen.contains("30 90") {
        let mut some = [0; 512];
        let count = timeout(PATIENCE, terminal.read(&mut some))
            .await
            .expect("output")
            .unwrap();
        assert_ne!(count, 0, "{seen}");
        seen.push_str(std::str::from_utf8(&some[..count]).unwrap());
    }
    assert!(seen.contains("/dev/pts/0"), "{seen}");
    let size = agent_api::agent::WindowSize {
        width: 120,
        height: 50,
        ..Default::default()
    };
    let request = agent_api::agent::ResizePtyRequest {
        container_id: "c".to_owned(),
        size: Some(size).into(),
        ..Default::default()
    };
    agent.client.resize_pty(deadline(), &request).await.unwrap();
    terminal.write_all(b"keys\n").await.unwrap();
    let rest = read(Some(terminal)).await;
    assert!(
        rest.contains("50 120") && rest.contains("got keys"),
        "{rest}"
    );
    assert!(rest.contains("136,"), "the console is the terminal: {rest}");
    assert_eq!(agent.exit("c", "").await.status, 0);
}

#[tokio::test]
async fn an_exec_has_a_terminal_of_its_own() {
    let mut agent = Agent::start().await;
    agent.running(&agent.spec(&["sleep", "100"])).await;
    let ends = agent.terminal().await;
    let mut command = process(&sh("tty; stty size"));
    command["terminal"] = json!(true);
    command["consoleSize"] = json!({"height": 7, "width": 8});
    agent.exec("c", "e", &command, &ends).await.unwrap();
    assert_eq!(read(ends.terminal).await, "/dev/pts/0\r\n7 8\r\n");
    assert_eq!(agent.exit("c", "e").await.status, 0);
    agent
        .client
        .delete_process(deadline(), &exec_of("c", "e"))
        .await
        .unwrap();
}
