//! The hostile guest in a VMM of its own, with the case as its supervisor.

use std::fs;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use harness::{Runtime, initrd_with};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType, recvmsg, send, socketpair,
};
use tempfile::TempDir;
use vmm_api::{
    Command, Cpus, Event, Jail, Message, PACKET_MAX_BYTES, Reply, Request, Share, Stats, VmConfig,
    Vsock,
};

use super::oracle::{ANSWER, Scales, Words, until};

/// The ports that the guest may dial, each once: the agent's and more, so that there are connections to attack.
const PORTS: Range<u32> = 1024..1088;
/// Streams that are kept, as a supervisor might; later ones are closed at once.
const STREAMS_MAX: usize = 100;

/// See the module.
pub(super) struct Machine {
    /// Names its processes.
    pub(super) id: String,
    child: Child,
    control: OwnedFd,
    said: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    next_request: u64,
    streams: Vec<OwnedFd>,
    /// The memory that its guest has come to, as it has told.
    resized: Option<u32>,
    /// Its configuration and the directory that it shares.
    _directory: TempDir,
}

/// What is left of a machine.
#[derive(Debug)]
pub(super) struct End {
    pub(super) status: ExitStatus,
    pub(super) words: Words,
}

impl Machine {
    /// Starts a machine with every device, whose guest carries out `attacks`. It can grow by 64 MiB.
    pub(super) fn start(attacks: &str, vcpus: u8) -> Self {
        let directory = TempDir::new().unwrap();
        let orders = directory.path().join("orders");
        initrd_with(attacks.as_bytes(), &orders);
        let share = directory.path().join("share");
        for name in ["c/rootfs", "c/mounts/0", "c/mounts/1"] {
            fs::create_dir_all(share.join(name)).unwrap();
        }
        for name in ["c/rootfs/marker", "c/mounts/2", "c/mounts/1/file"] {
            fs::write(share.join(name), name).unwrap();
        }
        let id = Runtime::new_id();
        let config = VmConfig {
            id: id.clone(),
            cpus: Cpus {
                boot: vcpus,
                max: vcpus,
            },
            memory_mib: 64,
            memory_max_mib: 128,
            kernel: env!("HUSK_HOSTILE_GUEST").into(),
            initrd: orders,
            cmdline: Vec::new(),
            vsock: Vsock {
                cid: 3,
                host_ports: PORTS.collect(),
            },
            share: Some(Share {
                root: share,
                tag: "husk".into(),
            }),
            jail: Jail::default(),
        };
        let path = directory.path().join(&id);
        fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
        Self::of(&path, id, directory)
    }

    fn of(config: &Path, id: String, directory: TempDir) -> Self {
        let (control, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let (console, writer) = io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        for end in [&theirs, &writer] {
            fcntl_setfd(end, FdFlags::empty()).unwrap();
        }
        let tree = PathBuf::from(std::env::var_os("HUSK_TREE").expect("HUSK_TREE names the tree"));
        // As the first process of a PID namespace, as it must be.
        let mut child = Process::new("unshare")
            .args(["--pid", "--fork", "--kill-child"])
            .arg(tree.join("libexec/husk/husk-vmm"))
            .args(["--control-fd", &theirs.as_raw_fd().to_string()])
            .args(["--console-fd", &writer.as_raw_fd().to_string()])
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let errors = child.stderr.take().unwrap();
        let readers = vec![
            collect(console, Arc::clone(&said)),
            collect(errors, Arc::clone(&said)),
        ];
        Self {
            id,
            child,
            control,
            said,
            readers,
            next_request: 1,
            streams: Vec::new(),
            resized: None,
            _directory: directory,
        }
    }

    /// Weighs it from now on.
    pub(super) fn weighed(&self) -> Scales {
        let id = self.child.id();
        let children = format!("/proc/{id}/task/{id}/children");
        let vmm = until("the VMM is started", || {
            let children = fs::read_to_string(&children).ok()?;
            children.split_whitespace().next()?.parse().ok()
        });
        Scales::under(vmm)
    }

    /// What its guest, and it, have said so far.
    pub(super) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits for the guest to say this, and takes what else the VMM tells of meanwhile.
    #[track_caller]
    pub(super) fn await_words(&mut self, text: &str) {
        let said = Arc::clone(&self.said);
        until(text, || {
            self.take_events();
            said.lock().unwrap().contains(text).then_some(())
        });
    }

    /// Gives it a command and does not wait; the number of the request.
    pub(super) fn order(&mut self, command: Command) -> u64 {
        let id = self.next_request;
        self.next_request += 1;
        let text = serde_json::to_vec(&Request { id, command }).unwrap();
        send(&self.control, &text, SendFlags::NOSIGNAL).unwrap();
        id
    }

    /// Its answer to a command. It comes within [`ANSWER`], whatever the guest does.
    #[track_caller]
    pub(super) fn answer(&mut self, command: Command) -> Reply {
        let start = Instant::now();
        let id = self.order(command);
        loop {
            let message = self.receive(ANSWER.saturating_sub(start.elapsed()).as_secs());
            match message.unwrap_or_else(|| panic!("no answer within {ANSWER:?}: {}", self.said()))
            {
                Message::Reply { id: of, result } if of == id => return result.unwrap(),
                _ => {}
            }
        }
    }

    /// What it knows of itself.
    #[track_caller]
    pub(super) fn stats(&mut self) -> Stats {
        match self.answer(Command::Stats) {
            Reply::Stats(stats) => stats,
            other => panic!("{other:?} is no answer to a question for statistics"),
        }
    }

    fn take_events(&mut self) {
        while self.receive(0).is_some() {}
    }

    /// The next message within so many seconds. Streams that come with it are kept, as long as they are few.
    fn receive(&mut self, seconds: u64) -> Option<Message> {
        let mut files = [PollFd::new(&self.control, PollFlags::IN)];
        let deadline = Timespec {
            tv_sec: seconds.cast_signed(),
            tv_nsec: 0,
        };
        if poll(&mut files, Some(&deadline)).unwrap() == 0 {
            return None;
        }
        let mut text = vec![0; PACKET_MAX_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let mut data = [IoSliceMut::new(&mut text)];
        let received = recvmsg(
            &self.control,
            &mut data,
            &mut rights,
            RecvFlags::CMSG_CLOEXEC,
        );
        let length = received.ok()?.bytes;
        for message in rights.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                let room = STREAMS_MAX.saturating_sub(self.streams.len());
                self.streams.extend(files.take(room));
            }
        }
        let text = text.get(..length).filter(|text| !text.is_empty())?;
        let message = serde_json::from_slice(text).unwrap();
        if let Message::Event(Event::Resized { memory_mib }) = message {
            self.resized = Some(memory_mib);
        }
        Some(message)
    }

    /// Waits for its end by itself.
    #[track_caller]
    pub(super) fn end(mut self) -> End {
        let status = until("the end of the machine", || {
            self.take_events();
            self.child.try_wait().unwrap()
        });
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        End {
            status,
            words: Words(self.said()),
        }
    }

    /// Stops it by order, which it takes whatever the guest does.
    #[track_caller]
    pub(super) fn stop(mut self) -> End {
        assert_eq!(self.answer(Command::Stop), Reply::Done);
        self.end()
    }

    /// Hangs up without having looked at what it had to tell; it ends by itself.
    #[track_caller]
    pub(super) fn leave(mut self) -> End {
        let (unused, _) = io::pipe().unwrap();
        self.control = unused.into();
        let status = until("the end of the machine", || self.child.try_wait().unwrap());
        End {
            status,
            words: Words(self.said()),
        }
    }

    /// Waits until it says that its guest has as much memory as was wanted.
    #[track_caller]
    pub(super) fn await_resized(&mut self) -> u32 {
        until("all memory is plugged", || {
            self.take_events();
            self.resized
        })
    }
}

impl Drop for Machine {
    /// A case that failed leaves nothing running.
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            println!("--- the guest\n{}", self.said());
        }
    }
}

fn collect(mut from: impl Read + Send + 'static, to: Arc<Mutex<String>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            to.lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    })
}
