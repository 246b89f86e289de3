//! A queue and its chains over memory that says anything, beside a reading of the specification
//! (virtio 1.2, section 2.7).
//!
//! Promised: a chain is what its descriptors say, cut where they make no sense; nothing is written
//! but the used ring, the event index and the buffers that are the device's to write; the used
//! ring's entries are those completed, in order; and the driver is interrupted when it wants to be.

use std::io::Write as _;
use std::sync::{Arc, OnceLock};

use vm_memory::{Bytes, GuestAddress};
use vmm_virtio::{Chain, Event, GuestMemory, Irq, Queue, QueueError, QueueState};

use crate::input::Input;

const STEPS_MAX: usize = 128;
/// Two regions with a gap between them.
const REGION_BYTES: usize = 0x8000;
const SECOND: u64 = 0x1_0000;
const MEMORY_END: usize = 0x1_8000;
const SIZE_MAX: u16 = 16;
/// Where an honest driver has its tables.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Where an indirect table may be put.
const INDIRECT: u64 = 0x4000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT_FLAG: u16 = 4;

/// One piece of a chain: address, length, whether the device may write it.
type Piece = (u64, u32, bool);

struct Fixture {
    memory: &'static GuestMemory,
    irq: Arc<Irq>,
    queue: Queue,
    /// Heads taken and not completed.
    taken: Vec<u16>,
    /// Chains completed since the driver was last asked whether it wants an interrupt.
    completed: u16,
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let memory = memory();
    clear(memory);
    let state = state(&mut input);
    let kick = Event::new().unwrap();
    let irq = Arc::new(Irq::new(Event::new().unwrap()));
    let queue = Queue::new(&state, SIZE_MAX, memory, kick, Arc::clone(&irq));
    let possible = is_possible(&state);
    let Ok(queue) = queue else {
        assert!(!possible, "{state:?}");
        return;
    };
    assert_eq!(queue.state(), state);
    if !possible {
        // Only the end of each table is looked at; what lies in a gap is an error when it is used.
        assert!(is_queue(&state), "{state:?}");
        return;
    }
    let mut fixture = Fixture {
        memory,
        irq,
        queue,
        taken: Vec::new(),
        completed: 0,
    };
    for _ in 0..STEPS_MAX {
        if input.is_empty() || fixture.step(&mut input).is_err() {
            break;
        }
    }
}

fn state(input: &mut Input<'_>) -> QueueState {
    let kind = input.u8();
    let mut state = QueueState {
        size: 1 << (kind & 7),
        descriptors: DESCRIPTORS,
        available: AVAILABLE,
        used: USED,
        next_available: 0,
        next_used: 0,
        event_index: kind & 8 != 0,
    };
    if kind & 16 != 0 {
        state.next_available = input.u16();
        state.next_used = input.u16();
    }
    if kind & 32 != 0 {
        state.descriptors = u64::from(input.u16());
        state.available = u64::from(input.u16());
        state.used = u64::from(input.u16());
    }
    if kind & 64 != 0 {
        state.size = input.u16();
        state.used = input.u64();
    }
    state
}

/// Section 2.7: the size is a power of two and no larger than the device allows, the tables are
/// aligned.
fn is_queue(state: &QueueState) -> bool {
    state.size.is_power_of_two()
        && state.size <= SIZE_MAX
        && state.descriptors.is_multiple_of(16)
        && state.available.is_multiple_of(2)
        && state.used.is_multiple_of(4)
}

/// The same, and they lie in memory.
fn is_possible(state: &QueueState) -> bool {
    let size = u64::from(state.size);
    is_queue(state)
        && is_memory(state.descriptors, 16 * size)
        && is_memory(state.available, 6 + 2 * size)
        && is_memory(state.used, 6 + 8 * size)
}

fn is_memory(start: u64, bytes: u64) -> bool {
    let region = u64::try_from(REGION_BYTES).unwrap();
    let inside = |first: u64| {
        start >= first
            && start
                .checked_add(bytes)
                .is_some_and(|end| end <= first + region)
    };
    inside(0) || inside(SECOND)
}

impl Fixture {
    fn step(&mut self, input: &mut Input<'_>) -> Result<(), QueueError> {
        match input.u8() % 12 {
            0 => {
                let address = u64::from(input.u32() % u32::try_from(MEMORY_END).unwrap());
                let length = usize::from(input.u8() % 32);
                self.put(address, input.bytes(length));
            }
            1 | 2 => self.put_descriptor(input),
            3 => {
                let slot = u64::from(input.u8() % 16);
                self.put(
                    self.queue.state().available + 4 + 2 * slot,
                    &input.u16().to_le_bytes(),
                );
            }
            4 => self.put(self.queue.state().available + 2, &input.u16().to_le_bytes()),
            5 => self.offer(input),
            6 | 7 => self.take(input)?,
            8 => self.complete(input)?,
            9 => self.notify()?,
            10 => self.rearm(input)?,
            _ => self.pause(input),
        }
        Ok(())
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        // What is not memory is nothing that a driver could write either.
        let _written = self.memory.write_slice(bytes, GuestAddress(address));
    }

    fn put_descriptor(&self, input: &mut Input<'_>) {
        let kind = input.u8();
        let table = if kind & 1 == 0 {
            self.queue.state().descriptors
        } else {
            INDIRECT
        };
        let at = table + 16 * u64::from(input.u8() % 20);
        let (address, length) = match kind >> 1 & 3 {
            0 => (0x5000 + u64::from(input.u8()), u32::from(input.u8())),
            1 => (INDIRECT, 16 * u32::from(input.u8() % 20)),
            2 => (u64::from(input.u32()), u32::from(input.u16())),
            _ => (input.u64(), input.u32()),
        };
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &length.to_le_bytes());
        self.put(at + 12, &u16::from(input.u8() & 7).to_le_bytes());
        self.put(at + 14, &u16::from(input.u8() % 20).to_le_bytes());
    }

    /// One more chain in the available ring, as a driver offers it.
    fn offer(&self, input: &mut Input<'_>) {
        let state = self.queue.state();
        let index: u16 = self.read(state.available + 2).unwrap_or(0);
        let slot = u64::from(index % state.size);
        self.put(
            state.available + 4 + 2 * slot,
            &u16::from(input.u8() % 20).to_le_bytes(),
        );
        self.put(state.available + 2, &index.wrapping_add(1).to_le_bytes());
    }

    fn read(&self, address: u64) -> Option<u16> {
        self.memory.read_obj::<u16>(GuestAddress(address)).ok()
    }

    fn take(&mut self, input: &mut Input<'_>) -> Result<(), QueueError> {
        let before = self.queue.state();
        let available = self.read(before.available + 2).unwrap();
        let pending = available.wrapping_sub(before.next_available);
        let head =
            self.read(before.available + 4 + 2 * u64::from(before.next_available % before.size));
        let snapshot = contents(self.memory);
        let chain = match self.queue.next(self.memory) {
            Err(error) => {
                assert!(pending > before.size, "{error}");
                return Err(error);
            }
            Ok(None) => {
                assert_eq!(pending, 0);
                return Ok(());
            }
            Ok(Some(chain)) => chain,
        };
        assert!((1..=before.size).contains(&pending));
        assert_eq!(Some(chain.head()), head);
        let pieces = walk(self.memory, &before, chain.head());
        // Taking a chain changes nothing but, with the event index, what the device says of itself.
        let event = event_place(&before);
        check_changes(self.memory, &snapshot, &[event]);
        let mut writable = check_chain(&chain, &pieces)?;
        let snapshot = contents(self.memory);
        match input.u8() % 4 {
            0 => {
                let bytes = input.bytes(16);
                let fits = bytes.len() <= usize::try_from(total(&pieces, true)).unwrap();
                assert_eq!(chain.write_from(bytes).is_ok(), fits);
            }
            1 => {
                let mut bytes = [0; 64];
                let count = chain.read_into(&mut bytes)?;
                assert_eq!(u64::try_from(count).unwrap(), total(&pieces, false).min(64));
                writable.clear();
            }
            2 => {
                let mut writer = chain.writer()?;
                let room = writer.available_bytes().min(0x2000);
                writer.write_all(&vec![0x5a; room]).unwrap();
            }
            _ => writable.clear(),
        }
        check_changes(self.memory, &snapshot, &writable);
        let head = chain.head();
        if input.u8() & 7 == 0 {
            self.queue.put_back();
            assert_eq!(self.queue.state().next_available, before.next_available);
        } else {
            self.taken.push(head);
        }
        Ok(())
    }

    fn complete(&mut self, input: &mut Input<'_>) -> Result<(), QueueError> {
        let Some(head) = self.taken.pop() else {
            return Ok(());
        };
        let before = self.queue.state();
        let snapshot = contents(self.memory);
        let written = input.u32();
        let completed = self.queue.complete(self.memory, head, written);
        if head >= before.size {
            assert!(completed.is_err(), "head {head} of {}", before.size);
            check_changes(self.memory, &snapshot, &[]);
            return completed;
        }
        completed?;
        self.completed = self.completed.wrapping_add(1);
        let slot = u64::from(before.next_used % before.size);
        let place = before.used + 4 + 8 * slot;
        let next = before.next_used.wrapping_add(1);
        check_changes(self.memory, &snapshot, &[(place, 8), (before.used + 2, 2)]);
        assert_eq!(self.queue.state().next_used, next);
        assert_eq!(self.read(before.used + 2), Some(next));
        assert_eq!(
            self.memory.read_obj::<u32>(GuestAddress(place)).unwrap(),
            u32::from(head)
        );
        assert_eq!(
            self.memory
                .read_obj::<u32>(GuestAddress(place + 4))
                .unwrap(),
            written
        );
        Ok(())
    }

    /// Section 2.7.7.2, and 2.7.10 with the event index.
    fn notify(&mut self) -> Result<(), QueueError> {
        let state = self.queue.state();
        let snapshot = contents(self.memory);
        self.irq.line().clear().unwrap();
        self.queue.notify(self.memory)?;
        check_changes(self.memory, &snapshot, &[]);
        let raised = self.irq.line().clear().unwrap();
        let used = state.next_used;
        let wanted = if state.event_index {
            let event = self
                .read(state.available + 4 + 2 * u64::from(state.size))
                .unwrap();
            used.wrapping_sub(event).wrapping_sub(1) < std::mem::take(&mut self.completed)
        } else {
            self.read(state.available).unwrap() & 1 == 0
        };
        assert!(raised || !wanted, "an interrupt is missing");
        // Without the event index an interrupt too many does no harm.
        assert!(
            raised == wanted || !state.event_index,
            "an interrupt too many"
        );
        Ok(())
    }

    fn rearm(&mut self, input: &mut Input<'_>) -> Result<(), QueueError> {
        let state = self.queue.state();
        let snapshot = contents(self.memory);
        let places = [(state.used, 2), event_place(&state)];
        if input.u8() & 1 == 0 {
            self.queue.disarm(self.memory)?;
            check_changes(self.memory, &snapshot, &places);
            return Ok(());
        }
        let more = self.queue.rearm(self.memory)?;
        check_changes(self.memory, &snapshot, &places);
        let available = self.read(state.available + 2).unwrap();
        assert_eq!(more, available != state.next_available);
        if state.event_index {
            assert_eq!(self.read(event_place(&state).0), Some(state.next_available));
        }
        Ok(())
    }

    /// The queue goes on from its state.
    fn pause(&mut self, input: &mut Input<'_>) {
        let state = self.queue.state();
        if input.u8() & 1 == 1 {
            let kick = self.queue.kick().try_clone().unwrap();
            let again = Queue::new(&state, SIZE_MAX, self.memory, kick, Arc::clone(&self.irq));
            self.queue = again.unwrap();
            self.completed = 0;
        }
        assert_eq!(self.queue.state(), state);
    }
}

/// The device's event index: where it says at which kick it wants to be woken.
fn event_place(state: &QueueState) -> (u64, u64) {
    (state.used + 4 + 8 * u64::from(state.size), 2)
}

/// The chain from `head` on, as section 2.7.5 has it, up to the first descriptor that makes no
/// sense. The flag says whether there was one.
fn walk(memory: &GuestMemory, state: &QueueState, head: u16) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let (mut table, mut size) = (state.descriptors, u32::from(state.size));
    let (mut index, mut left) = (u32::from(head), size);
    let mut indirect = false;
    let mut bytes: u64 = 0;
    while left > 0 && index < size {
        let Some(at) = table.checked_add(16 * u64::from(index)) else {
            break;
        };
        let Ok(descriptor) = memory.read_obj::<[u8; 16]>(GuestAddress(at)) else {
            break;
        };
        let address = u64::from_le_bytes(descriptor[..8].try_into().unwrap());
        let length = u32::from_le_bytes(descriptor[8..12].try_into().unwrap());
        let flags = u16::from_le_bytes(descriptor[12..14].try_into().unwrap());
        let next = u16::from_le_bytes(descriptor[14..].try_into().unwrap());
        if flags & INDIRECT_FLAG != 0 {
            let entries = length / 16;
            let odd = length % 16 != 0 || entries > u32::from(u16::MAX);
            // A chain ends with its table; that it goes on behind it is not looked at.
            if indirect || odd {
                break;
            }
            (indirect, table, size) = (true, address, entries);
            (index, left) = (0, entries);
            continue;
        }
        bytes += u64::from(length);
        if bytes > u64::from(u32::MAX) {
            break;
        }
        pieces.push((address, length, flags & WRITE != 0));
        if flags & NEXT == 0 {
            break;
        }
        index = next.into();
        left -= 1;
    }
    pieces
}

fn total(pieces: &[Piece], writable: bool) -> u64 {
    let wanted = pieces.iter().filter(|piece| piece.2 == writable);
    wanted.map(|piece| u64::from(piece.1)).sum()
}

/// Compares a chain's pieces with the descriptors; returns where the device may write.
fn check_chain(chain: &Chain<'_>, pieces: &[Piece]) -> Result<Vec<(u64, u64)>, QueueError> {
    for (writable, count) in [
        (false, chain.readable().count()),
        (true, chain.writable().count()),
    ] {
        let wanted = pieces.iter().filter(|piece| piece.2 == writable).count();
        assert_eq!(count, wanted, "{pieces:x?}");
    }
    let readable: Vec<_> = chain.readable().collect::<Result<_, _>>()?;
    let writable: Vec<_> = chain.writable().collect::<Result<_, _>>()?;
    for (slices, flag) in [(&readable, false), (&writable, true)] {
        let wanted: Vec<u64> = pieces
            .iter()
            .filter(|piece| piece.2 == flag)
            .map(|piece| piece.1.into())
            .collect();
        let lengths: Vec<u64> = slices
            .iter()
            .map(|slice| u64::try_from(slice.len()).unwrap())
            .collect();
        assert_eq!(lengths, wanted);
    }
    for (address, length, _) in pieces {
        assert!(*length == 0 || is_memory(*address, u64::from(*length)));
    }
    let sum = |slices: &[vm_memory::VolatileSlice<'_>]| {
        slices
            .iter()
            .map(vm_memory::VolatileSlice::len)
            .sum::<usize>()
    };
    assert_eq!(chain.reader()?.available_bytes(), sum(&readable));
    assert_eq!(chain.writer()?.available_bytes(), sum(&writable));
    let writable = pieces.iter().filter(|piece| piece.2);
    Ok(writable.map(|piece| (piece.0, piece.1.into())).collect())
}

/// Nothing differs from `before` but inside the given places.
fn check_changes(memory: &GuestMemory, before: &[u8], places: &[(u64, u64)]) {
    let mut now = contents(memory);
    for (start, length) in places {
        let start = usize::try_from(*start).unwrap_or(usize::MAX);
        let end = start
            .saturating_add(usize::try_from(*length).unwrap())
            .min(MEMORY_END);
        if let (Some(now), Some(before)) = (now.get_mut(start..end), before.get(start..end)) {
            now.copy_from_slice(before);
        }
    }
    assert!(now == before, "written outside of {places:x?}");
}

/// All of memory, the gap as zeroes.
fn contents(memory: &GuestMemory) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY_END];
    memory
        .read_slice(&mut bytes[..REGION_BYTES], GuestAddress(0))
        .unwrap();
    let second = usize::try_from(SECOND).unwrap();
    memory
        .read_slice(&mut bytes[second..], GuestAddress(SECOND))
        .unwrap();
    bytes
}

fn clear(memory: &GuestMemory) {
    let zeroes = [0; REGION_BYTES];
    memory.write_slice(&zeroes, GuestAddress(0)).unwrap();
    memory.write_slice(&zeroes, GuestAddress(SECOND)).unwrap();
}

fn memory() -> &'static GuestMemory {
    static MEMORY: OnceLock<GuestMemory> = OnceLock::new();
    MEMORY.get_or_init(|| {
        let ranges = [
            (GuestAddress(0), REGION_BYTES),
            (GuestAddress(SECOND), REGION_BYTES),
        ];
        GuestMemory::from_ranges(&ranges).unwrap()
    })
}
