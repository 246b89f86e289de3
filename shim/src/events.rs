//! What happens in a sandbox: told to everybody who subscribed, in containerd's words.
//!
//! A process is told of in the order of its life: added, started, exited, deleted. A subscriber that does not keep up loses the oldest events and is told how many; nobody waits for it.

use std::path::{Path, PathBuf};

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::topics;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{MessageField, MessageFull};
use tokio::sync::broadcast;

use crate::process::{Exit, ProcessKey};
use crate::state::now_ns;
use crate::stdio::Stdio;

/// Events a subscriber may be behind: a guest can make as many as it likes.
const BEHIND_MAX: usize = 256;

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
#[derive(Clone, Debug)]
pub(crate) struct Events {
    subscribers: broadcast::Sender<Event>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self {
            subscribers: broadcast::Sender::new(BEHIND_MAX),
        }
    }

    /// Tells all subscribers; none is no error.
    pub(crate) fn publish(&self, event: Event) {
        tracing::debug!(?event, "published");
        // Fails without a subscriber only.
        let _ = self.subscribers.send(event);
    }

    /// All events from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.subscribers.subscribe()
    }
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

    #[tokio::test]
    async fn a_subscriber_that_is_slow_loses_the_oldest() {
        let events = Events::new();
        let mut subscriber = events.subscribe();
        for _ in 0..=BEHIND_MAX {
            events.publish(Event::Oom {
                container: "web".into(),
            });
        }
        let lagged = subscriber.recv().await.unwrap_err();
        assert_eq!(lagged, broadcast::error::RecvError::Lagged(1));
        assert!(subscriber.recv().await.is_ok());
    }
}
