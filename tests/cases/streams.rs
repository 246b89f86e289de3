//! Standard input, output and error arrive whole, apart, and with their ends.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use harness::{Bundle, Remains, Runtime, wait};

const MIB: usize = 1 << 20;

/// Bytes in which a lost, doubled or moved block shows.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn output_of_16_mib_is_intact() {
    let bundle = Bundle::busybox().args(&["cat", "/data"]);
    let data = pattern(16 * MIB);
    std::fs::write(bundle.rootfs().join("data"), &data).unwrap();
    let output = Runtime::from_environment().run(&bundle);
    output.assert_status(0);
    assert!(
        output.stdout == data,
        "{} bytes came, not these",
        output.stdout.len()
    );
}

#[test]
fn input_of_16_mib_is_intact() {
    let data = pattern(16 * MIB);
    let bundle = Bundle::busybox().args(&["cat"]);
    let output = Runtime::from_environment().run_with_input(&bundle, &data);
    output.assert_status(0);
    assert!(
        output.stdout == data,
        "{} bytes came back, not these",
        output.stdout.len()
    );
}

#[test]
fn end_of_input_reaches_the_process() {
    let bundle = Bundle::busybox().shell("cat >/dev/null; echo end");
    let output = Runtime::from_environment().run_with_input(&bundle, b"some");
    output.assert_prints("end\n");
}

#[test]
fn a_container_need_not_read_its_input() {
    let data = vec![b'x'; 4 * MIB];
    let bundle = Bundle::busybox().shell("echo done");
    Runtime::from_environment()
        .run_with_input(&bundle, &data)
        .assert_prints("done\n");
}

#[test]
fn error_output_is_apart() {
    let bundle = Bundle::busybox().shell("echo out; echo err >&2");
    let output = Runtime::from_environment().run(&bundle);
    output.assert_prints("out\n");
    assert_eq!(output.errors(), "err\n");
}

#[test]
fn a_reader_that_goes_away_ends_the_writer() {
    let runtime = Runtime::from_environment();
    let before = Remains::seen();
    let bundle = Bundle::busybox().args(&["yes"]);
    let mut running = runtime.start(&bundle);
    let id = running.id.clone();
    let mut some = [0; 4096];
    running.take_stdout().read_exact(&mut some).unwrap();
    // `yes` dies of SIGPIPE, or says that it could not write.
    let status = running.wait().status;
    assert!(status == 141 || status == 1, "status {status}");
    before.assert_nothing_new(&id, &runtime.root());
}

#[test]
fn a_slow_reader_gets_all_of_a_flood() {
    let runtime = Runtime::from_environment();
    let length = 2 * MIB;
    let bundle = Bundle::busybox().shell(&format!("yes | head -c {length}"));
    let mut running = runtime.start(&bundle);
    let mut stdout = running.take_stdout();
    let mut seen = 0;
    let mut small = [0; 512];
    loop {
        let count = stdout.read(&mut small).unwrap();
        if count == 0 {
            break;
        }
        seen += count;
        // Far slower than the container writes.
        wait::rest(Duration::from_micros(200));
    }
    assert_eq!(seen, length);
    running.wait().assert_status(0);
}

#[test]
fn output_written_just_before_the_end_arrives() {
    let bundle = Bundle::busybox().shell("head -c 300000 /dev/zero; exit 3");
    let output = Runtime::from_environment().run(&bundle);
    output.assert_status(3);
    assert_eq!(output.stdout.len(), 300_000);
}

#[test]
fn input_and_output_go_back_and_forth() {
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox().shell("while read l; do echo got $l; done");
    let mut running = runtime.start(&bundle);
    let mut stdin = running.take_stdin();
    let mut stdout = running.take_stdout();
    for word in ["one", "two", "three"] {
        writeln!(stdin, "{word}").unwrap();
        let mut answer = vec![0; word.len() + 5];
        stdout.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), format!("got {word}\n"));
    }
    drop(stdin);
    running.wait().assert_status(0);
}

#[test]
fn output_can_be_opened_by_name() {
    let bundle = Bundle::busybox().shell("echo again >/dev/stdout; echo fd >/proc/self/fd/1");
    Runtime::from_environment()
        .run(&bundle)
        .assert_prints("again\nfd\n");
}

#[test]
fn a_file_as_input_and_output_is_used_directly() {
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox().shell("cat; echo more");
    let input = bundle.path().join("input");
    let output = bundle.path().join("output");
    std::fs::write(&input, "from a file\n").unwrap();
    bundle.write();
    let id = Runtime::new_id();
    let mut command = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), &id]);
    command.stdin(Stdio::from(std::fs::File::open(&input).unwrap()));
    command.stdout(Stdio::from(std::fs::File::create(&output).unwrap()));
    assert!(command.status().unwrap().success());
    assert_eq!(
        std::fs::read_to_string(&output).unwrap(),
        "from a file\nmore\n"
    );
}
