//! The sandboxes of a cycle: containers in VMs of their own, and members of the first one's sandbox.
//!
//! ```text
//!   absent ── create ─► created ── start ─► running ◄── pause, resume ──► paused
//!     ▲                    └──────── kill ────┴─────────► stopped ◄── kill ──┘
//!     └── delete
//! ```
//!
//! A step without a fault, on a container that had none, does what it says, and where it may not be it is
//! refused. What a step with a fault comes to is not known: it ends, and `state` says what there is. What
//! happens in one sandbox changes nothing of another's.

use harness::{Bundle, Runtime};
use serde_json::json;

use crate::chance::Chance;
use crate::fault::Fault;
use crate::ground::Ground;

/// Containers with a VM of their own, and those in the VM of the first.
const ALONE: usize = 3;
const MEMBERS: usize = 2;
/// Steps of a cycle.
const STEPS: usize = 10;
/// How many of them have a fault, of a hundred.
const FAULTS_PERCENT: usize = 30;

/// About how long a call takes, in milliseconds, where all is emulated.
const CREATE_MS: usize = 9000;
const OTHER_MS: usize = 800;

/// What `state` says.
const STATUSES: [&str; 5] = ["creating", "created", "running", "paused", "stopped"];

/// See the module.
#[derive(Debug)]
pub(crate) struct Fleet<'g> {
    ground: &'g Ground,
    containers: Vec<Container>,
    pub(crate) steps: usize,
    pub(crate) faults: usize,
}

#[derive(Debug)]
struct Container {
    id: String,
    bundle: Bundle,
    /// Nothing where it is not there.
    status: Option<String>,
    /// Whether it, or the sandbox it is in, has had a fault in this cycle.
    faulty: bool,
    /// Whether it was told to end, which it may do a little later.
    ending: bool,
    is_member: bool,
}

/// What is done to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Create,
    Start,
    Exec,
    Update,
    Pause,
    Resume,
    Kill,
    Delete,
    DeleteForce,
}

impl<'g> Fleet<'g> {
    pub(crate) fn new(ground: &'g Ground) -> Self {
        let mut containers: Vec<Container> = Vec::new();
        for number in 0..ALONE + MEMBERS {
            let is_member = number >= ALONE;
            let mut bundle = bundle();
            if is_member {
                bundle.config["annotations"] = json!({
                    "io.kubernetes.cri-o.ContainerType": "container",
                    "io.kubernetes.cri-o.SandboxID": containers[0].id,
                });
            }
            bundle.write();
            containers.push(Container {
                id: Runtime::new_id(),
                bundle,
                status: None,
                faulty: false,
                ending: false,
                is_member,
            });
        }
        Self {
            ground,
            containers,
            steps: 0,
            faults: 0,
        }
    }

    /// Some steps.
    pub(crate) fn live(&mut self, chance: &mut Chance) {
        for container in &mut self.containers {
            (container.faulty, container.ending) = (false, false);
        }
        for _ in 0..STEPS {
            let which = chance.below(self.containers.len());
            if self.containers[which].is_member && self.containers[0].status.is_none() {
                continue;
            }
            self.check(which);
            self.step(which, chance);
        }
        for which in 0..self.containers.len() {
            self.check(which);
        }
    }

    /// Nothing has become of it since it was looked at, unless it was told to end.
    fn check(&mut self, which: usize) {
        let container = &mut self.containers[which];
        let now = self.ground.status(&container.id);
        let may_change = container.faulty || container.ending;
        assert!(
            may_change || now == container.status,
            "{which} was {:?} and is {now:?}",
            container.status
        );
        container.status = now;
    }

    fn step(&mut self, which: usize, chance: &mut Chance) {
        let container = &self.containers[which];
        let verb = container.any_verb(chance);
        let boots = verb == Verb::Create;
        let takes_ms = if boots { CREATE_MS } else { OTHER_MS };
        let fault = chance.percent(FAULTS_PERCENT);
        let fault = fault.then(|| Fault::any(chance, takes_ms, boots));
        self.steps += 1;
        let path = container.bundle.path().to_str().unwrap().to_owned();
        let id = container.id.clone();
        let words = verb.words(&id, &path);
        let Some(fault) = fault else {
            let ended = self.ground.call(&words);
            println!("  {which} {verb:?}: {}, {:.1?}", ended.status, ended.took);
            let was = container.status.as_deref();
            // An agent that stands still is waited for, and not obeyed.
            if !container.faulty {
                let allowed = verb.is_allowed(was);
                assert_eq!(ended.status == 0, allowed, "{verb:?}, {was:?}: {ended:?}");
            }
            if matches!(verb, Verb::Kill | Verb::Delete | Verb::DeleteForce) {
                self.in_sandbox(which, |container| container.ending = true);
            }
            return self.look(which);
        };
        self.faults += 1;
        let ended = fault.strike(self.ground, &id, &words);
        println!(
            "  {which} {verb:?} with {fault:?}: {}, {:.1?}",
            ended.status, ended.took
        );
        // A fault of one in a sandbox may be one of all.
        self.in_sandbox(which, |container| container.faulty = true);
        self.look(which);
    }

    /// Each container of the sandbox that this one is in.
    fn in_sandbox(&mut self, which: usize, mut done: impl FnMut(&mut Container)) {
        let in_pod = |number: usize, one: &Container| number == 0 || one.is_member;
        let pod = in_pod(which, &self.containers[which]);
        for (number, container) in self.containers.iter_mut().enumerate() {
            if number == which || (pod && in_pod(number, container)) {
                done(container);
            }
        }
    }

    /// What has come of those in its sandbox.
    fn look(&mut self, which: usize) {
        let ground = self.ground;
        self.in_sandbox(which, |container| {
            container.status = ground.status(&container.id);
            if let Some(status) = &container.status {
                assert!(
                    STATUSES.contains(&status.as_str()),
                    "{}: {status}",
                    container.id
                );
            }
        });
    }

    /// Removes all of them, in any order, with nothing left of any.
    pub(crate) fn remove(&mut self, chance: &mut Chance) {
        let mut order: Vec<usize> = (0..self.containers.len()).collect();
        chance.shuffle(&mut order);
        for which in order {
            let container = &mut self.containers[which];
            let words = ["delete", "--force", &container.id];
            self.ground.call(&words).assert_done();
            container.status = self.ground.status(&container.id);
            assert_eq!(container.status, None, "{} is left", container.id);
        }
    }
}

impl Drop for Fleet<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for container in &self.containers {
                self.ground.put_away(&container.id);
            }
        }
    }
}

impl Container {
    /// One that may be, or now and then one that may not.
    fn any_verb(&self, chance: &mut Chance) -> Verb {
        let all = [
            Verb::Create,
            Verb::Start,
            Verb::Exec,
            Verb::Update,
            Verb::Pause,
            Verb::Resume,
            Verb::Kill,
            Verb::Delete,
            Verb::DeleteForce,
        ];
        let status = self.status.as_deref();
        let allowed = all.iter().copied().filter(|verb| verb.is_allowed(status));
        let mut allowed: Vec<_> = allowed.collect();
        // There is more to be seen of those that live.
        if matches!(status, None | Some("created" | "running")) && chance.percent(80) {
            allowed.retain(|verb| !matches!(verb, Verb::Kill | Verb::Delete | Verb::DeleteForce));
        }
        if chance.percent(10) || allowed.is_empty() {
            return chance.one(&all);
        }
        chance.one(&allowed)
    }
}

impl Verb {
    fn words<'w>(self, id: &'w str, bundle: &'w str) -> Vec<&'w str> {
        match self {
            Self::Create => vec!["create", "--bundle", bundle, id],
            Self::Start => vec!["start", id],
            Self::Exec => vec!["exec", id, "true"],
            Self::Update => vec!["update", "--memory", "100m", "--pids-limit", "50", id],
            Self::Pause => vec!["pause", id],
            Self::Resume => vec!["resume", id],
            Self::Kill => vec!["kill", id, "KILL"],
            Self::Delete => vec!["delete", id],
            Self::DeleteForce => vec!["delete", "--force", id],
        }
    }

    /// Whether it may be, and is then done.
    fn is_allowed(self, status: Option<&str>) -> bool {
        match self {
            Self::Create => status.is_none(),
            Self::Start => status == Some("created"),
            Self::Exec | Self::Update | Self::Pause => {
                matches!(status, Some("created" | "running"))
            }
            Self::Resume => status == Some("paused"),
            Self::Kill => matches!(status, Some("created" | "running" | "paused")),
            Self::Delete => matches!(status, Some("created" | "stopped")),
            Self::DeleteForce => true,
        }
    }
}

fn bundle() -> Bundle {
    let annotations = json!({"io.husk.memory": "128", "io.husk.max-memory": "256"});
    Bundle::busybox()
        .args(&["sleep", "1000000"])
        .with("/annotations", annotations)
}
