//! What happens in a sandbox: told to everybody who subscribed, in containerd's words.
//!
//! A process is told of in the order of its life: added, started, exited, deleted. No exit is ever left out.
//! Nobody waits for a subscriber: one that is [`BEHIND_MAX`] events behind is told those, and that it has been given up.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::topics;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{MessageField, MessageFull};
use tokio::sync::Notify;

use crate::process::{Exit, ProcessKey};
use crate::state::now_ns;
use crate::stdio::Stdio;

/// Events a subscriber may be behind. All but those about memory are of what somebody asked the sandbox for; so many are those of a
/// thousand execs.
const BEHIND_MAX: usize = 4096;

/// Events about memory among them: a guest can make as many as it likes. More tell nothing new, and are left out.
const OOMS_BEHIND_MAX: usize = 64;

const NS_PER_S: u64 = 1_000_000_000;

/// One event. `pid` is the one that was reported for the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A container was made.
    Created {
        container: String,
        pid: i32,
        bundle: PathBuf,
        stdio: Stdio,
    },
    /// An exec was made.
    ExecAdded { key: ProcessKey },
    /// A process runs its program.
    Started { key: ProcessKey, pid: i32 },
    /// A process ended.
    Exit {
        key: ProcessKey,
        pid: i32,
        exit: Exit,
    },
    /// A process was removed; with a container's init, the container.
    Deleted {
        key: ProcessKey,
        pid: i32,
        exit: Exit,
    },
    /// The guest's kernel killed a process of the container for memory.
    Oom { container: String },
    /// The container is paused.
    Paused { container: String },
    /// The container goes on.
    Resumed { container: String },
}

/// Where events are published; clones are the same place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events {
    subscribers: Arc<Mutex<Vec<Weak<Queue>>>>,
}

/// The events that one subscriber is to be told.
#[derive(Debug)]
pub(crate) struct Subscription(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    behind: Mutex<Behind>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Behind {
    events: VecDeque<Arc<Event>>,
    /// How many of them are about memory.
    ooms: usize,
    overrun: bool,
}

/// Why a subscription has ended: all events before have been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the subscriber of events is more than {BEHIND_MAX} of them behind")]
pub(crate) struct Overrun;

impl Events {
    /// Tells all subscribers; none is no error.
    pub(crate) fn publish(&self, event: Event) {
        tracing::debug!(?event, "published");
        let event = Arc::new(event);
        let mut subscribers = lock(&self.subscribers);
        subscribers.retain(|queue| match queue.upgrade() {
            Some(queue) => {
                queue.push(event.clone());
                true
            }
            None => false,
        });
    }

    /// All events from now on.
    pub(crate) fn subscribe(&self) -> Subscription {
        let queue = Arc::new(Queue::default());
        lock(&self.subscribers).push(Arc::downgrade(&queue));
        Subscription(queue)
    }
}

impl Queue {
    fn push(&self, event: Arc<Event>) {
        let mut behind = lock(&self.behind);
        let is_oom = matches!(*event, Event::Oom { .. });
        // Those that a guest makes at will must not cost those of its life.
        if behind.overrun || is_oom && behind.ooms >= OOMS_BEHIND_MAX {
            return;
        }
        if behind.events.len() >= BEHIND_MAX {
            behind.overrun = true;
        } else {
            behind.ooms += usize::from(is_oom);
            behind.events.push_back(event);
        }
        drop(behind);
        self.arrived.notify_one();
    }
}

impl Subscription {
    /// The next event.
    pub(crate) async fn recv(&mut self) -> Result<Event, Overrun> {
        loop {
            let arrived = self.0.arrived.notified();
            if let Some(next) = self.next_now() {
                return next;
            }
            arrived.await;
        }
    }

    /// The same, if it is there.
    pub(crate) fn next_now(&self) -> Option<Result<Event, Overrun>> {
        let mut behind = lock(&self.0.behind);
        match behind.events.pop_front() {
            Some(event) => {
                behind.ooms -= usize::from(matches!(*event, Event::Oom { .. }));
                Some(Ok(Arc::unwrap_or_clone(event)))
            }
            None => behind.overrun.then_some(Err(Overrun)),
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Event {
    /// The event as containerd has it.
    pub(crate) fn envelope(self) -> protobuf::Result<Envelope> {
        let (topic, event) = self.topic_and_event()?;
        Ok(Envelope {
            timestamp: MessageField::some(timestamp(now_ns())),
            topic: topic.to_owned(),
            event: MessageField::some(event),
            ..Default::default()
        })
    }

    fn topic_and_event(self) -> protobuf::Result<(&'static str, Any)> {
        match self {
            Self::Created {
                container,
                pid,
                bundle,
                stdio,
            } => {
                let event = created(container, pid, &bundle, stdio);
                Ok((topics::TASK_CREATE_EVENT_TOPIC, packed(&event)?))
            }
            Self::ExecAdded { key } => {
                let event = TaskExecAdded {
                    container_id: key.container,
                    exec_id: key.exec,
                    ..Default::default()
                };
                Ok((topics::TASK_EXEC_ADDED_EVENT_TOPIC, packed(&event)?))
            }
            Self::Started { key, pid } => started(key, pid),
            Self::Exit { key, pid, exit } => {
                let event = exited(key, pid, exit);
                Ok((topics::TASK_EXIT_EVENT_TOPIC, packed(&event)?))
            }
            Self::Deleted { key, pid, exit } => {
                let event = deleted(key, pid, exit);
                Ok((topics::TASK_DELETE_EVENT_TOPIC, packed(&event)?))
            }
            Self::Oom { container } => {
                let event = TaskOOM {
                    container_id: container,
                    ..Default::default()
                };
                Ok((topics::TASK_OOM_EVENT_TOPIC, packed(&event)?))
            }
            Self::Paused { container } => {
                let event = TaskPaused {
                    container_id: container,
                    ..Default::default()
                };
                Ok((topics::TASK_PAUSED_EVENT_TOPIC, packed(&event)?))
            }
            Self::Resumed { container } => {
                let event = TaskResumed {
                    container_id: container,
                    ..Default::default()
                };
                Ok((topics::TASK_RESUMED_EVENT_TOPIC, packed(&event)?))
            }
        }
    }
}

fn created(container: String, pid: i32, bundle: &Path, stdio: Stdio) -> TaskCreate {
    let io = TaskIO {
        stdin: stdio.stdin,
        stdout: stdio.stdout,
        stderr: stdio.stderr,
        terminal: stdio.terminal,
        ..Default::default()
    };
    TaskCreate {
        container_id: container,
        bundle: bundle.to_string_lossy().into_owned(),
        io: MessageField::some(io),
        pid: pid.unsigned_abs(),
        ..Default::default()
    }
}

/// An init process and an exec have events of their own kinds.
fn started(key: ProcessKey, pid: i32) -> protobuf::Result<(&'static str, Any)> {
    if key.is_init() {
        let event = TaskStart {
            container_id: key.container,
            pid: pid.unsigned_abs(),
            ..Default::default()
        };
        return Ok((topics::TASK_START_EVENT_TOPIC, packed(&event)?));
    }
    let event = TaskExecStarted {
        container_id: key.container,
        exec_id: key.exec,
        pid: pid.unsigned_abs(),
        ..Default::default()
    };
    Ok((topics::TASK_EXEC_STARTED_EVENT_TOPIC, packed(&event)?))
}

/// Here an init process has its container's id.
fn exited(key: ProcessKey, pid: i32, exit: Exit) -> TaskExit {
    let id = if key.is_init() {
        key.container.clone()
    } else {
        key.exec
    };
    TaskExit {
        container_id: key.container,
        id,
        pid: pid.unsigned_abs(),
        exit_status: exit.status,
        exited_at: MessageField::some(timestamp(exit.at_ns)),
        ..Default::default()
    }
}

/// And here it has none.
fn deleted(key: ProcessKey, pid: i32, exit: Exit) -> TaskDelete {
    TaskDelete {
        container_id: key.container,
        id: key.exec,
        pid: pid.unsigned_abs(),
        exit_status: exit.status,
        exited_at: MessageField::some(timestamp(exit.at_ns)),
        ..Default::default()
    }
}

/// containerd's way to name a type: its full name, without a host before it.
pub(crate) fn packed<M: MessageFull>(message: &M) -> protobuf::Result<Any> {
    Ok(Any {
        type_url: M::descriptor().full_name().to_owned(),
        value: message.write_to_bytes()?,
        ..Default::default()
    })
}

/// A time in nanoseconds since 1970.
pub(crate) fn timestamp(ns: u64) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(ns / NS_PER_S).unwrap_or(i64::MAX),
        nanos: i32::try_from(ns % NS_PER_S).unwrap_or_default(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_containerds_topic_and_type() {
        let container = "web".to_owned();
        let envelope = Event::Oom { container }.envelope().unwrap();
        assert_eq!(envelope.topic, "/tasks/oom");
        assert_eq!(envelope.event.type_url, "containerd.events.TaskOOM");
        let key = ProcessKey {
            container: "web".into(),
            exec: "sh".into(),
        };
        let exit = Exit {
            status: 3,
            at_ns: 1_500_000_000,
        };
        let envelope = Event::Exit { key, pid: 7, exit }.envelope().unwrap();
        let event: TaskExit = protobuf::Message::parse_from_bytes(&envelope.event.value).unwrap();
        assert_eq!(
            (event.id.as_str(), event.pid, event.exit_status),
            ("sh", 7, 3)
        );
        assert_eq!(event.exited_at.nanos, 500_000_000);
        let key = ProcessKey::init("web");
        let init = Event::Started { key, pid: 7 }.envelope().unwrap();
        let key = ProcessKey {
            container: "web".into(),
            exec: "sh".into(),
        };
        let exec = Event::Started { key, pid: 7 }.envelope().unwrap();
        assert_eq!(
            [init.topic, exec.topic],
            ["/tasks/start", "/tasks/exec-started"]
        );
    }

    fn exit_of(number: usize) -> Event {
        let status = u32::try_from(number).unwrap();
        Event::Exit {
            key: ProcessKey::init("web"),
            pid: 7,
            exit: Exit { status, at_ns: 0 },
        }
    }

    fn oom() -> Event {
        Event::Oom {
            container: "web".into(),
        }
    }

    #[tokio::test]
    async fn a_flood_about_memory_does_not_cost_an_exit() {
        let events = Events::default();
        let mut subscriber = events.subscribe();
        for number in 0..1000 {
            for _ in 0..100 {
                events.publish(oom());
            }
            events.publish(exit_of(number));
        }
        let (mut exits, mut ooms) = (0, 0);
        while let Some(event) = subscriber.next_now() {
            match event.unwrap() {
                event @ Event::Exit { .. } => {
                    assert_eq!(event, exit_of(exits));
                    exits += 1;
                }
                _ => ooms += 1,
            }
        }
        assert_eq!((exits, ooms), (1000, OOMS_BEHIND_MAX));
        events.publish(oom());
        assert_eq!(subscriber.recv().await, Ok(oom()));
    }

    #[tokio::test]
    async fn a_subscriber_that_is_far_behind_is_told_so_after_what_it_missed_nothing_of() {
        let events = Events::default();
        let mut subscriber = events.subscribe();
        for number in 0..=BEHIND_MAX {
            events.publish(exit_of(number));
        }
        for number in 0..BEHIND_MAX {
            assert_eq!(subscriber.recv().await, Ok(exit_of(number)));
        }
        assert_eq!(subscriber.recv().await, Err(Overrun));
        events.publish(exit_of(0));
        assert_eq!(subscriber.recv().await, Err(Overrun));
        drop(subscriber);
        events.publish(exit_of(0));
        assert!(lock(&events.subscribers).is_empty());
    }
}
