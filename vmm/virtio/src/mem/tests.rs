//! The device as a driver sees it, with a host that takes down what it is told.

use super::*;
use crate::testing::FakeDriver;

const START: u64 = 4 << 30;
const BLOCKS: u64 = 8;
const RESPONSE_ROOM: u32 = 16;

const ACK: u8 = 0;
const NACK: u8 = 1;
const BUSY: u8 = 2;
const ERROR: u8 = 3;

/// What the host was told: blocks and whether they were plugged.
type Told = Vec<(Range<u64>, bool)>;

#[derive(Clone, Debug, Default)]
struct FakeBacking {
    told: Arc<Mutex<Told>>,
    refuses: Arc<Mutex<bool>>,
}

impl FakeBacking {
    fn tell(&self, range: &Range<u64>, plugged: bool) -> io::Result<()> {
        if *self.refuses.lock().unwrap() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let blocks = range.start / BLOCK_BYTES..range.end / BLOCK_BYTES;
        self.told.lock().unwrap().push((blocks, plugged));
        Ok(())
    }
}

impl Backing for FakeBacking {
    fn plug(&mut self, range: Range<u64>) -> io::Result<()> {
        self.tell(&range, true)
    }

    fn unplug(&mut self, range: Range<u64>) -> io::Result<()> {
        self.tell(&range, false)
    }
}

struct Fixture {
    driver: FakeDriver,
    host: Host,
    backing: FakeBacking,
}

impl Fixture {
    fn new() -> Self {
        let backing = FakeBacking::default();
        let region = START..START + BLOCKS * BLOCK_BYTES;
        let (device, host) = Mem::new(region, Box::new(backing.clone())).unwrap();
        let mut driver = FakeDriver::new(Box::new(device));
        driver.bring_up();
        Self {
            driver,
            host,
            backing,
        }
    }

    /// Response and state.
    fn ask(&mut self, kind: u16, first: u64, count: u16) -> (u8, u8) {
        let mut request = [0; REQUEST_BYTES];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        let address = START.wrapping_add(first.wrapping_mul(BLOCK_BYTES));
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        let response = self.driver.exchange(0, &request, RESPONSE_ROOM);
        assert_eq!(response.len(), 10);
        (response[0], response[8])
    }

    fn plug(&mut self, first: u64, count: u16) -> u8 {
        self.ask(0, first, count).0
    }

    fn unplug(&mut self, first: u64, count: u16) -> u8 {
        self.ask(1, first, count).0
    }

    fn config(&self, field: u64) -> u64 {
        let word = |at| u64::from(self.driver.read(0x100 + field * 8 + at));
        word(0) | word(4) << 32
    }

    fn request(&self, blocks: u64) {
        let usable = BLOCKS * BLOCK_BYTES;
        self.host.request(blocks * BLOCK_BYTES, usable).unwrap();
    }

    /// Whether the host has been told that what it requested is so.
    fn is_told(&self) -> bool {
        self.host.event().clear().unwrap()
    }
}

#[test]
fn configuration_tells_region_and_sizes() {
    let mut fixture = Fixture::new();
    fixture.request(3);
    assert_eq!(fixture.plug(0, 2), ACK);
    let fields: Vec<u64> = (0..7).map(|field| fixture.config(field)).collect();
    let size = BLOCKS * BLOCK_BYTES;
    let wanted = [
        BLOCK_BYTES,
        0,
        START,
        size,
        size,
        2 * BLOCK_BYTES,
        3 * BLOCK_BYTES,
    ];
    assert_eq!(fields, wanted);
}

#[test]
fn blocks_are_plugged_up_to_what_is_requested() {
    let mut fixture = Fixture::new();
    fixture.request(0);
    assert_eq!(fixture.plug(0, 1), NACK);
    fixture.request(3);
    assert_eq!(fixture.plug(1, 2), ACK);
    assert_eq!(fixture.plug(5, 2), NACK);
    assert_eq!(fixture.plug(5, 1), ACK);
    assert_eq!(fixture.host.plugged(), 3 * BLOCK_BYTES);
    let told = fixture.backing.told.lock().unwrap();
    assert_eq!(*told, [(1..3, true), (5..6, true)]);
}

#[test]
fn only_the_usable_part_of_the_region_can_be_plugged() {
    let mut fixture = Fixture::new();
    let usable = |fixture: &Fixture| fixture.config(4) / BLOCK_BYTES;
    assert_eq!((usable(&fixture), fixture.plug(0, 1)), (0, ERROR));
    fixture.host.request(BLOCK_BYTES, 3 * BLOCK_BYTES).unwrap();
    assert_eq!((usable(&fixture), fixture.plug(3, 1)), (3, ERROR));
    assert_eq!(fixture.plug(2, 1), ACK);
    fixture.host.request(0, BLOCK_BYTES).unwrap();
    assert_eq!((usable(&fixture), fixture.unplug(2, 1)), (3, ACK));
}

#[test]
fn blocks_are_given_back() {
    let mut fixture = Fixture::new();
    fixture.request(4);
    assert_eq!(fixture.plug(0, 4), ACK);
    fixture.request(2);
    assert_eq!(fixture.unplug(1, 2), ACK);
    assert_eq!(fixture.ask(3, 0, 1), (ACK, 0));
    assert_eq!(fixture.ask(3, 1, 2), (ACK, 1));
    assert_eq!(fixture.ask(3, 0, 2), (ACK, 2));
    assert_eq!(fixture.ask(2, 0, 0), (ACK, 0));
    assert_eq!(fixture.host.plugged(), 0);
    let told = fixture.backing.told.lock().unwrap();
    let given = [(1..3, false), (0..1, false), (3..4, false)];
    assert_eq!(told[1..], given);
}

#[test]
fn what_makes_no_sense_changes_nothing() {
    let mut fixture = Fixture::new();
    fixture.request(BLOCKS);
    assert_eq!(fixture.plug(2, 2), ACK);
    for (kind, first, count) in [
        (0, 2, 1),
        (0, 1, 2),
        (1, 0, 1),
        (1, 3, 2),
        (0, 0, 0),
        (0, BLOCKS, 1),
        (0, 4, 5),
        (1, 2, u16::MAX),
        (3, 7, 2),
        (0, u64::MAX, 1),
        (0, 1 << 40, 1),
        (9, 0, 1),
    ] {
        assert_eq!(
            fixture.ask(kind, first, count).0,
            ERROR,
            "{kind} {first} {count}"
        );
    }
    assert_eq!(fixture.backing.told.lock().unwrap().len(), 1);
    assert_eq!(fixture.host.plugged(), 2 * BLOCK_BYTES);
}

#[test]
fn host_without_memory_is_busy_and_nothing_is_plugged() {
    let mut fixture = Fixture::new();
    fixture.request(2);
    *fixture.backing.refuses.lock().unwrap() = true;
    assert_eq!(fixture.plug(0, 1), BUSY);
    assert_eq!(fixture.host.plugged(), 0);
    *fixture.backing.refuses.lock().unwrap() = false;
    assert_eq!(fixture.plug(0, 1), ACK);
    *fixture.backing.refuses.lock().unwrap() = true;
    assert_eq!((fixture.unplug(0, 1), fixture.ask(2, 0, 0).0), (BUSY, BUSY));
    assert_eq!(fixture.host.plugged(), BLOCK_BYTES);
}

#[test]
fn host_is_told_once_when_a_request_is_reached() {
    let mut fixture = Fixture::new();
    fixture.request(2);
    assert_eq!(fixture.plug(0, 1), ACK);
    assert!(!fixture.is_told());
    assert_eq!(fixture.plug(1, 1), ACK);
    assert!(fixture.is_told());
    assert_eq!((fixture.unplug(1, 1), fixture.plug(1, 1)), (ACK, ACK));
    assert!(!fixture.is_told());
    fixture.request(2);
    assert!(fixture.is_told());
    let most = BLOCKS * BLOCK_BYTES;
    assert!(fixture.host.request(BLOCK_BYTES / 2, most).is_err());
    assert!(fixture.host.request(most + 1, most + 1).is_err());
    assert!(fixture.host.request(most, most - 1).is_err());
}

#[test]
fn reset_and_pause_leave_blocks_plugged() {
    let mut fixture = Fixture::new();
    fixture.request(2);
    assert_eq!(fixture.plug(0, 2), ACK);
    fixture.driver.transport.pause();
    fixture.driver.transport.resume();
    assert_eq!(fixture.ask(3, 0, 2), (ACK, 0));
    fixture.driver.reset();
    fixture.driver.bring_up();
    assert_eq!(fixture.ask(3, 0, 2), (ACK, 0));
    assert_eq!(fixture.unplug(0, 2), ACK);
    assert_eq!(fixture.backing.told.lock().unwrap().len(), 2);
}

#[test]
fn another_device_goes_on_from_the_saved_state() {
    let backing = FakeBacking::default();
    let region = START..START + BLOCKS * BLOCK_BYTES;
    let (mut device, host) = Mem::new(region, Box::new(backing.clone())).unwrap();
    host.request(3 * BLOCK_BYTES, 7 * BLOCK_BYTES).unwrap();
    device.adopt(3 * BLOCK_BYTES, &[1..2, 5..7]).unwrap();
    assert_eq!(host.plugged(), 3 * BLOCK_BYTES);
    let told = backing.told.lock().unwrap().clone();
    assert_eq!(told, [(1..2, true), (5..7, true)]);
    assert!(device.adopt(0, &[0..1, 7..9]).is_err());
}

#[test]
fn short_request_breaks_the_device_only() {
    let mut fixture = Fixture::new();
    fixture.driver.offer(0, &[0; 8], RESPONSE_ROOM);
    fixture.driver.wait_needs_reset();
    fixture.driver.reset();
    fixture.driver.bring_up();
    assert_eq!(fixture.ask(2, 0, 0).0, ACK);
}

/// The register `ConfigGeneration`.
fn generation(fixture: &Fixture) -> u32 {
    fixture.driver.read(0x0fc)
}

#[test]
fn generation_changes_with_the_configuration() {
    let mut fixture = Fixture::new();
    let mut before = generation(&fixture);
    let mut changed = |fixture: &Fixture| {
        let now = generation(fixture);
        std::mem::replace(&mut before, now) != now
    };
    fixture
        .host
        .request(4 * BLOCK_BYTES, 8 * BLOCK_BYTES)
        .unwrap();
    assert!(changed(&fixture));
    assert!(!changed(&fixture));
    assert_eq!(fixture.plug(0, 2), ACK);
    assert!(changed(&fixture));
    assert_eq!(fixture.plug(0, 8), ERROR);
    assert!(!changed(&fixture));
}

#[test]
fn device_in_another_process_goes_on_asking_though_nothing_is_plugged() {
    let (mut device, host) = Mem::new(
        START..START + BLOCKS * BLOCK_BYTES,
        Box::new(FakeBacking::default()),
    )
    .unwrap();
    device.adopt(2 * BLOCK_BYTES, &[]).unwrap();
    assert_eq!(host.shared.lock().requested, 2 * BLOCK_BYTES);
    // Once it is asked for something else here, a pause does not bring the old amount back.
    host.request(BLOCK_BYTES, 4 * BLOCK_BYTES).unwrap();
    device.adopt(2 * BLOCK_BYTES, &[]).unwrap();
    assert_eq!(host.shared.lock().requested, BLOCK_BYTES);
}

#[test]
fn region_is_not_cut_into_more_parts_than_the_host_has_mappings_for() {
    let mut state = State {
        blocks: Blocks::new(4 * PARTS_MAX),
        usable: 4 * PARTS_MAX,
        requested: 4 * PARTS_MAX * BLOCK_BYTES,
        generation: 0,
        asked: true,
        awaited: false,
    };
    let mut backing = FakeBacking::default();
    let mut answer = |request| state.answer(Some(&request), &mut backing);
    let every_other = (0..2 * PARTS_MAX).map(|number| 2 * number);
    let refused = every_other.map(|block| answer(Request::Plug(block..block + 1)));
    let refused = refused
        .take_while(|response| *response == Response::Ack)
        .count();
    assert!(u64::try_from(refused).unwrap() <= PARTS_MAX / 2);
    // The holes may still be filled, and all of it be given back.
    assert_eq!(answer(Request::Plug(1..2)), Response::Ack);
    assert_eq!(answer(Request::UnplugAll), Response::Ack);
}
