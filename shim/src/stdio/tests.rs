//! Streams against a VMM that is a socket: what it is handed are the guest's ends.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use rustix::fs::{Mode, OFlags};
use rustix::net::RecvFlags;
use tokio::io::Interest;
use vmm_api::{Command, Message, Reply, Request};

use super::*;
use crate::deadlines::DRAIN;
use crate::polled;
use crate::state::ProcessRef;
use crate::storage::Storage;
use crate::vm;

/// More than any buffer between the ends.
const MUCH_BYTES: usize = 3 * 1024 * 1024;

/// Answers every `Connect` and hands out the guest's ends in order, their ids read.
async fn guest_ends(vmm: OwnedFd, ids: Vec<StreamId>) -> Vec<UnixStream> {
    let vmm = polled::watch(vmm).unwrap();
    let mut ends = Vec::new();
    for expected in ids {
        let mut packet = vec![0; vmm_api::PACKET_MAX_BYTES];
        let (length, fd) = vmm
            .async_io(Interest::READABLE, |socket| receive(socket, &mut packet))
            .await
            .unwrap();
        let request: Request = serde_json::from_slice(&packet[..length]).unwrap();
        assert_eq!(request.command, Command::Connect { port: PORT_STREAM });
        let reply = Message::Reply {
            id: request.id,
            result: Ok(Reply::Done),
        };
        let reply = serde_json::to_vec(&reply).unwrap();
        rustix::net::send(&vmm, &reply, rustix::net::SendFlags::empty()).unwrap();
        let mut end = UnixStream::from(fd);
        let mut id = [0; 8];
        end.read_exact(&mut id).unwrap();
        assert_eq!(u64::from_le_bytes(id), expected.get());
        ends.push(end);
    }
    ends
}

fn receive(socket: &OwnedFd, packet: &mut [u8]) -> io::Result<(usize, OwnedFd)> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut slices = [io::IoSliceMut::new(packet)];
    let message = rustix::net::recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::DONTWAIT)?;
    let fd = ancillary
        .drain()
        .find_map(|message| match message {
            rustix::net::RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .unwrap();
    Ok((message.bytes, fd))
}

/// Opens `stdio`'s streams. With them come the guest's ends.
async fn open(stdio: &Stdio) -> (ProcessStreams, Vec<UnixStream>) {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let (control, _events) = vm::open_control(ours).unwrap();
    let ids = Ids::random(stdio).unwrap();
    let in_order = [ids.stdin, ids.stdout, ids.stderr, ids.terminal];
    let expected = in_order.into_iter().flatten().collect();
    let outside = Outside::open(&Storage::default(), stdio).await.unwrap();
    let (streams, ends) = tokio::join!(
        ProcessStreams::open(&control, ids, outside),
        guest_ends(theirs, expected)
    );
    (streams.unwrap(), ends)
}

fn lent(fd: &impl std::os::fd::AsRawFd) -> String {
    lent_name(ProcessRef::this().unwrap(), fd.as_raw_fd())
}

fn stdin_of(fd: &impl std::os::fd::AsRawFd) -> Stdio {
    Stdio {
        stdin: lent(fd),
        ..Stdio::default()
    }
}

fn stdout_of(fd: &impl std::os::fd::AsRawFd) -> Stdio {
    Stdio {
        stdout: lent(fd),
        ..Stdio::default()
    }
}

/// Runs what blocks beside the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn read_all(mut from: impl io::Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

fn pattern() -> Vec<u8> {
    (0..251).cycle().take(MUCH_BYTES).collect()
}

#[tokio::test]
async fn all_output_reaches_a_slow_reader() {
    let (reader, writer) = io::pipe().unwrap();
    let (streams, mut ends) = open(&stdout_of(&writer)).await;
    drop(writer);
    let mut end = ends.remove(0);
    let writing = tokio::task::spawn_blocking(move || end.write_all(&pattern()).unwrap());
    let reading = blocking(move || read_all(reader)).await;
    writing.await.unwrap();
    assert!(reading == pattern());
    streams.drain().await;
}

#[tokio::test]
async fn stdin_half_close_reaches_process() {
    let (reader, mut writer) = io::pipe().unwrap();
    let (_streams, mut ends) = open(&stdin_of(&reader)).await;
    let end = ends.remove(0);
    let writing = tokio::task::spawn_blocking(move || writer.write_all(&pattern()).unwrap());
    let got = blocking(move || read_all(end)).await;
    writing.await.unwrap();
    assert!(got == pattern());
}

#[tokio::test]
async fn a_file_and_dev_null_are_read_to_their_end() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&pattern()).unwrap();
    io::Seek::rewind(&mut file).unwrap();
    let (_streams, mut ends) = open(&stdin_of(&file)).await;
    let end = ends.remove(0);
    assert!(blocking(move || read_all(end)).await == pattern());

    let null = std::fs::File::open("/dev/null").unwrap();
    let (_streams, mut ends) = open(&stdin_of(&null)).await;
    let end = ends.remove(0);
    assert!(blocking(move || read_all(end)).await.is_empty());
}

#[tokio::test]
async fn output_is_appended_at_the_lent_files_place() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"before ").unwrap();
    let (streams, mut ends) = open(&stdout_of(&file)).await;
    ends[0].write_all(b"after").unwrap();
    drop(ends.remove(0));
    streams.drain().await;
    io::Seek::rewind(&mut file).unwrap();
    assert_eq!(read_all(file), b"before after");
}

#[tokio::test]
async fn a_lent_pipe_stays_blocking_for_its_owner() {
    let (reader, writer) = io::pipe().unwrap();
    let (_streams, _ends) = open(&stdin_of(&reader)).await;
    let flags = rustix::fs::fcntl_getfl(&reader).unwrap();
    assert!(!flags.contains(OFlags::NONBLOCK));
    drop(writer);
}

#[tokio::test]
async fn a_reader_that_goes_away_closes_the_stream() {
    let (reader, writer) = io::pipe().unwrap();
    let (_streams, mut ends) = open(&stdout_of(&writer)).await;
    drop((reader, writer));
    let mut end = ends.remove(0);
    let error = blocking(move || {
        loop {
            if let Err(error) = end.write_all(b"more") {
                return error;
            }
        }
    })
    .await;
    // A reset, where bytes were on their way when the stream was closed.
    let closed = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
    assert!(closed.contains(&error.kind()), "{error}");
}

#[tokio::test]
async fn a_guest_that_closes_its_input_frees_the_writer() {
    let (reader, mut writer) = io::pipe().unwrap();
    let (_streams, mut ends) = open(&stdin_of(&reader)).await;
    drop(reader);
    drop(ends.remove(0));
    let error = blocking(move || {
        loop {
            if let Err(error) = writer.write_all(b"more") {
                return error;
            }
        }
    })
    .await;
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_lent_fifo_without_a_writer_is_at_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    make_fifo(&path);
    let reader = open_fifo(&path, OFlags::RDONLY);
    let mut writer = std::fs::File::from(open_fifo(&path, OFlags::WRONLY));
    writer.write_all(b"last words").unwrap();
    drop(writer);
    let (_streams, mut ends) = open(&stdin_of(&reader)).await;
    let end = ends.remove(0);
    assert_eq!(blocking(move || read_all(end)).await, b"last words");
}

#[tokio::test]
async fn a_fifos_input_ends_when_it_is_closed_and_not_when_a_writer_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stdin");
    make_fifo(&path);
    let stdio = Stdio {
        stdin: path.to_str().unwrap().to_owned(),
        ..Stdio::default()
    };
    let (mut streams, mut ends) = open(&stdio).await;
    for word in [b"one ".as_slice(), b"two"] {
        let mut writer = std::fs::File::from(open_fifo(&path, OFlags::WRONLY));
        writer.write_all(word).unwrap();
    }
    let mut end = ends.remove(0);
    let (mut end, words) = blocking(move || {
        let mut words = [0; 7];
        end.read_exact(&mut words).unwrap();
        (end, words)
    })
    .await;
    assert_eq!(&words, b"one two");
    end.set_nonblocking(true).unwrap();
    let open_still = end.read(&mut [0]).unwrap_err();
    assert_eq!(open_still.kind(), io::ErrorKind::WouldBlock);
    end.set_nonblocking(false).unwrap();
    streams.close_stdin();
    assert!(blocking(move || read_all(end)).await.is_empty());
}

#[tokio::test]
async fn an_output_fifos_reader_may_come_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stdout");
    make_fifo(&path);
    let stdio = Stdio {
        stdout: path.to_str().unwrap().to_owned(),
        ..Stdio::default()
    };
    let (streams, mut ends) = open(&stdio).await;
    ends[0].write_all(b"early").unwrap();
    let reader = std::fs::File::from(open_fifo(&path, OFlags::RDONLY));
    drop(ends.remove(0));
    streams.drain().await;
    assert_eq!(read_all(reader), b"early");
}

#[tokio::test]
async fn a_terminal_is_one_stream_both_ways() {
    let (stdin, mut typed) = io::pipe().unwrap();
    let (shown, stdout) = io::pipe().unwrap();
    let stdio = Stdio {
        terminal: true,
        stdin: lent(&stdin),
        stdout: lent(&stdout),
        stderr: "/nowhere".into(),
    };
    let (streams, mut ends) = open(&stdio).await;
    drop(stdout);
    let mut end = ends.remove(0);
    end.write_all(b"$ ").unwrap();
    tokio::task::yield_now().await;
    typed.write_all(b"ls\n").unwrap();
    let (mut end, line) = blocking(move || {
        let mut line = [0; 3];
        end.read_exact(&mut line).unwrap();
        (end, line)
    })
    .await;
    assert_eq!(&line, b"ls\n");
    end.write_all(b"a b\r\n").unwrap();
    drop(end);
    streams.drain().await;
    assert_eq!(read_all(shown), b"$ a b\r\n");
}

#[tokio::test]
async fn output_that_never_ends_is_given_up_after_the_exit() {
    let (_reader, writer) = io::pipe().unwrap();
    let (streams, ends) = open(&stdout_of(&writer)).await;
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    streams.drain().await;
    assert!((DRAIN..2 * DRAIN).contains(&before.elapsed()));
    drop(ends);
}

/// A stream whose process has exited and had written `owed`; others have it open.
async fn exited(to: &Stdio, owed: Option<u64>) -> (ProcessStreams, UnixStream) {
    let (mut streams, mut ends) = open(to).await;
    streams.owe(Carried {
        stdout: owed,
        stderr: None,
    });
    (streams, ends.remove(0))
}

/// Its guest's end is written to until the host has closed it.
async fn until_closed(mut end: UnixStream) -> io::Error {
    blocking(move || {
        loop {
            if let Err(error) = end.write_all(b"more") {
                return error;
            }
        }
    })
    .await
}

#[tokio::test]
async fn what_a_process_wrote_is_waited_for_and_not_what_its_children_do() {
    let (mut reader, writer) = io::pipe().unwrap();
    let (streams, mut end) = exited(&stdout_of(&writer), Some(3)).await;
    drop(writer);
    let draining = tokio::spawn(streams.drain_owed());
    end.write_all(b"own").unwrap();
    let mut left = LeftOutputs::default();
    left.add(draining.await.unwrap());
    end.write_all(b" child").unwrap();
    let (mut reader, text) = blocking(move || {
        let mut text = [0; 9];
        reader.read_exact(&mut text).unwrap();
        (reader, text)
    })
    .await;
    assert_eq!(&text, b"own child");
    // The container's end.
    drop(end);
    left.take().drain().await;
    assert_eq!(blocking(move || reader.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_process_that_wrote_nothing_is_not_waited_for() {
    let (_reader, writer) = io::pipe().unwrap();
    let (streams, end) = exited(&stdout_of(&writer), Some(0)).await;
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    let left = streams.drain_owed().await;
    assert_eq!(before.elapsed(), std::time::Duration::ZERO);
    drop(left);
    tokio::time::resume();
    until_closed(end).await;
}

#[tokio::test]
async fn a_fifo_is_closed_after_what_is_owed_and_the_writer_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stdout");
    make_fifo(&path);
    let stdio = Stdio {
        stdout: path.to_str().unwrap().to_owned(),
        ..Stdio::default()
    };
    let (streams, mut end) = exited(&stdio, Some(3)).await;
    let reader = std::fs::File::from(open_fifo(&path, OFlags::RDONLY));
    end.write_all(b"own").unwrap();
    let left = streams.drain_owed().await;
    assert_eq!(blocking(move || read_all(reader)).await, b"own");
    let writing = blocking(move || end.write_all(&pattern()).map(|()| end));
    let end = writing.await.unwrap();
    drop(left);
    until_closed(end).await;
}

#[tokio::test]
async fn a_guest_that_lies_of_what_was_written_is_given_up() {
    let (mut reader, writer) = io::pipe().unwrap();
    let (streams, mut end) = exited(&stdout_of(&writer), Some(u64::MAX)).await;
    drop(writer);
    let taking = blocking(move || io::copy(&mut reader, &mut io::sink()));
    tokio::time::pause();
    let before = tokio::time::Instant::now();
    let writing = async {
        loop {
            if end.write_all(b"x").is_err() {
                return;
            }
            tokio::time::sleep(DRAIN / 2).await;
        }
    };
    let left = tokio::select! {
        left = streams.drain_owed() => left,
        () = writing => panic!("the stream is closed"),
    };
    assert!(before.elapsed() < DRAIN * 10, "{:?}", before.elapsed());
    tokio::time::resume();
    drop((left, end));
    taking.await.unwrap();
}

#[tokio::test]
async fn only_so_many_outputs_outlive_their_processes() {
    let (_reader, writer) = io::pipe().unwrap();
    let mut left = LeftOutputs::default();
    let mut ends = Vec::new();
    for _ in 0..=output::LEFT_MAX {
        let (streams, end) = exited(&stdout_of(&writer), Some(0)).await;
        left.add(streams.drain_owed().await);
        ends.push(end);
    }
    until_closed(ends.remove(0)).await;
    ends.remove(0).write_all(b"x").unwrap();
}

#[tokio::test]
async fn a_terminal_is_shown_as_its_owner_wants_it() {
    let terminal = |stdout: &str| Stdio {
        terminal: true,
        stdout: stdout.to_owned(),
        ..Stdio::default()
    };
    let window = async |stdio: &Stdio| open(stdio).await.0.window();
    let (_reader, writer) = io::pipe().unwrap();
    let shown = window(&terminal(&lent(&writer))).await.unwrap();
    assert!(shown.keep_newlines);
    assert_eq!(window(&terminal("")).await, None);

    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let master = rustix::pty::openpt(flags).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
    let (streams, _ends) = open(&terminal(&lent(&slave))).await;
    assert_eq!(streams.window().unwrap(), Window::default());
    let mut mode = rustix::termios::tcgetattr(&master).unwrap();
    mode.output_modes
        .remove(rustix::termios::OutputModes::ONLCR);
    let now = rustix::termios::OptionalActions::Now;
    rustix::termios::tcsetattr(&master, now, &mode).unwrap();
    let size = rustix::termios::Winsize {
        ws_col: 99,
        ws_row: 33,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&master, size).unwrap();
    let expected = Window {
        columns: 99,
        rows: 33,
        keep_newlines: true,
    };
    assert_eq!(streams.window().unwrap(), expected);
}

#[tokio::test]
async fn a_slow_reader_is_waited_for_while_the_lender_lives() {
    let (reader, writer) = io::pipe().unwrap();
    let (streams, mut ends) = open(&stdout_of(&writer)).await;
    tokio::time::pause();
    drop(writer);
    // More than the pipe holds, less than pipe, chunk and sockets do.
    let bytes = vec![b'x'; 100 * 1024];
    ends[0].write_all(&bytes).unwrap();
    drop(ends);
    let reading = async {
        tokio::time::sleep(DRAIN * 5).await;
        blocking(move || read_all(reader)).await
    };
    let (got, ()) = tokio::join!(reading, streams.drain());
    assert_eq!(got.len(), bytes.len());
}

#[test]
fn ids_are_those_of_the_streams_there_are() {
    let stdio = Stdio {
        stdin: "/a".into(),
        stderr: "/b".into(),
        ..Stdio::default()
    };
    let ids = Ids::random(&stdio).unwrap();
    assert!(ids.stdin.is_some() && ids.stderr.is_some());
    assert_eq!((ids.stdout, ids.terminal), (None, None));
    let wire = agent_api::agent::Streams::from(ids);
    assert_eq!(Some(wire.stdin), ids.stdin.map(StreamId::get));
    assert_eq!((wire.stdout, wire.terminal), (0, 0));
    let terminal = Stdio {
        terminal: true,
        ..stdio
    };
    let ids = Ids::random(&terminal).unwrap();
    assert!(ids.terminal.is_some() && ids.stdin.is_none() && ids.stderr.is_none());
}

#[test]
fn ids_cannot_be_guessed_and_are_not_shown() {
    let terminal = Stdio {
        terminal: true,
        ..Stdio::default()
    };
    let id = || Ids::random(&terminal).unwrap().terminal.unwrap();
    let ids: Vec<u64> = (0..64).map(|_| id().get()).collect();
    // Every bit is both: of 64 random numbers one has a bit all the same once in 2^63.
    assert_eq!(ids.iter().fold(0, |bits, id| bits | id), u64::MAX);
    assert_eq!(ids.iter().fold(u64::MAX, |bits, id| bits & id), 0);
    let id = id();
    assert!(!format!("{id:?}").contains(&id.get().to_string()));
}

fn make_fifo(path: &std::path::Path) {
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
}

fn open_fifo(path: &std::path::Path, access: OFlags) -> OwnedFd {
    let fd = rustix::fs::open(path, access | OFlags::NONBLOCK, Mode::empty()).unwrap();
    rustix::io::ioctl_fionbio(&fd, false).unwrap();
    fd
}
