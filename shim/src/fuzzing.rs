//! What reads a stranger's bytes and is no part of [`crate::guest`], for `tests/fuzz`: each
//! function panics when what comes of the bytes is not as promised.

use std::collections::HashMap;
use std::path::Path;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use agent_api::SHARE_DIR;
use oci_spec::runtime::{LinuxResources, Mount, Process, Spec};
use protobuf::Message as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::guest::frames::{Gate, HEADER_BYTES, Link};
use crate::guest::limits;
use crate::spec::{self, ConfiguredSize, Demand, HostSize};
use crate::{cgroup, network, rootfs, state, stats};

const ID: &str = "id";
const BUNDLE: &str = "/bundle";
const HOST: HostSize = HostSize {
    memory_mib: 64 * 1024,
    cpus: 16,
};
const CONFIGURED: ConfiguredSize = ConfiguredSize {
    memory_mib: 256,
    memory_max_mib: None,
    vcpus: 1,
    vcpus_max: None,
};
/// Devices, sizes of huge pages and numbers, with what is around them.
const METRICS_MAX_BYTES: u64 = 16 * 1024;

/// The files of a guest's cgroup: metrics of bounded size.
pub fn metrics(files: &HashMap<String, String>) {
    let metrics = stats::metrics(files);
    assert!(metrics.compute_size() < METRICS_MAX_BYTES);
    for stall in [&metrics.cpu.psi, &metrics.memory.psi, &metrics.io.psi] {
        for data in [&stall.some, &stall.full] {
            for share in [data.avg10, data.avg60, data.avg300] {
                assert!((0.0..=100.0).contains(&share), "{share}");
            }
        }
    }
}

/// What the host's kernel says of processes, mounts, interfaces and cgroups, whose names others have
/// chosen.
pub fn proc_files(bytes: &[u8]) {
    state::read_stat(bytes);
    rootfs::read_mount_table(bytes);
    network::read_tables(bytes);
    cgroup::read_files(bytes);
}

/// A bundle's configuration: the guest's part names no path of the host's, and the host's part is a
/// VM that fits the host.
pub fn configuration(config: &[u8]) {
    let Ok(split) = spec::split(config, ID, Path::new(BUNDLE), &|_| None) else {
        return;
    };
    let share = Path::new(SHARE_DIR).join(ID);
    check_guest(&split.guest, &share, split.host.binds.len());
    for bind in &split.host.binds {
        assert!(bind.destination.is_absolute());
    }
    check_size(split.host.demand);
    let json = split.guest_json(&[]).ok();
    let again = json.and_then(|json| serde_json::from_slice::<Spec>(&json).ok());
    assert!(
        again.is_some(),
        "a configuration that the guest cannot read"
    );
}

fn check_guest(guest: &Spec, share: &Path, binds: usize) {
    let root = guest.root().as_ref().map(|root| root.path().clone());
    assert_eq!(root, Some(share.join("rootfs")));
    let mut seen = 0;
    for mount in guest.mounts().iter().flatten() {
        assert!(mount.destination().is_absolute());
        if is_bind(mount) {
            let wanted = share.join("mounts").join(seen.to_string());
            assert_eq!(
                mount.source().as_ref(),
                Some(&wanted),
                "a bind of the host's"
            );
            seen += 1;
        }
    }
    assert_eq!(seen, binds);
    if let Some(hooks) = guest.hooks() {
        let hosts = [
            hooks.prestart().is_some(),
            hooks.poststart().is_some(),
            hooks.poststop().is_some(),
        ];
        assert!(!hosts.contains(&true), "hooks of the host's");
    }
}

fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    mount.typ().as_deref() == Some("bind")
        || options
            .iter()
            .any(|option| option == "bind" || option == "rbind")
}

fn check_size(demand: Demand) {
    let Ok(size) = demand.vm_size(CONFIGURED, HOST) else {
        return;
    };
    assert!(u64::from(size.memory_max_mib) <= HOST.memory_mib);
    assert!(size.memory_mib <= size.memory_max_mib && (1..=size.vcpus_max).contains(&size.vcpus));
    for demands in [&[][..], &[demand], &[demand; 3]] {
        if let Ok(extent) = size.extent_for(demands) {
            assert!((size.memory_mib..=size.memory_max_mib).contains(&extent.memory_mib));
            assert!((1..=size.vcpus_max).contains(&extent.vcpus));
        }
    }
}

/// An exec's process.
pub fn process(json: &[u8]) {
    if let Ok((made, terminal)) = spec::exec_process(json) {
        let read: Option<Process> = serde_json::from_slice(&made).ok();
        let Some(read) = read else {
            panic!("a process that the guest cannot read");
        };
        assert_eq!(read.terminal().unwrap_or(false), terminal);
        assert!(
            read.cwd().is_absolute() && read.args().as_ref().is_some_and(|args| !args.is_empty())
        );
    }
}

/// New limits.
pub fn resources(json: &[u8]) {
    if let Ok((demand, made)) = spec::resources(json) {
        check_size(demand);
        check_size(Demand::default().updated(demand));
        let read: Option<LinuxResources> = serde_json::from_slice(&made).ok();
        assert!(read.is_some(), "limits that the guest cannot read");
    }
}

/// The agent's connection. What comes out of it is what the agent sent, whole frames only, and no
/// more events at a time than there are credits.
pub fn connection(bytes: &[u8], stream: u32) {
    let link = Link::default();
    let mut gate = pin!(Gate::new(
        tokio::io::join(bytes, tokio::io::sink()),
        link.clone()
    ));
    let mut context = Context::from_waker(Waker::noop());
    let call = call_for_events(stream);
    assert!(matches!(
        gate.as_mut().poll_write(&mut context, &call),
        Poll::Ready(Ok(HEADER_BYTES))
    ));
    let mut passed = Vec::new();
    let mut idle = 0;
    while idle < 2 {
        match read(gate.as_mut(), &mut context) {
            Poll::Ready(Ok(read)) if read.is_empty() => break,
            Poll::Ready(Ok(read)) => {
                passed.extend(read);
                idle = 0;
            }
            Poll::Ready(Err(_)) => {
                assert!(link.violation().is_some());
                break;
            }
            // The others' turn, or no credit: some events have been acted on.
            Poll::Pending => idle += 1,
        }
    }
    assert!(bytes.starts_with(&passed), "other bytes than sent");
    check_frames(&passed, stream);
}

fn read(
    gate: Pin<&mut impl AsyncRead>,
    context: &mut Context<'_>,
) -> Poll<std::io::Result<Vec<u8>>> {
    let mut room = [0; 4096];
    let mut buffer = ReadBuf::new(&mut room);
    gate.poll_read(context, &mut buffer)
        .map_ok(|()| buffer.filled().to_vec())
}

/// The header of a request for a stream.
fn call_for_events(stream: u32) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = stream.to_be_bytes();
    [0, 0, 0, 0, a, b, c, d, 1, 1]
}

/// Whole frames, of kinds and lengths that an agent sends; no more events than credits, since none
/// came back.
fn check_frames(mut bytes: &[u8], stream: u32) {
    let mut events = 0;
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let [a, b, c, d, e, f, g, h, kind, _] = *header;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        match kind {
            2 => assert!(length <= limits::REPLY_MAX_BYTES),
            3 => {
                events += 1;
                assert!(length <= limits::EVENT_MAX_BYTES);
                assert_eq!(u32::from_be_bytes([e, f, g, h]), stream);
            }
            other => panic!("a frame of kind {other}"),
        }
        assert!(rest.len() >= length, "part of a frame");
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty(), "part of a header");
    assert!(events <= limits::EVENTS_AHEAD_MAX);
}
