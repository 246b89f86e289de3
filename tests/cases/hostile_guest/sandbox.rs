//! The hostile guest in a sandbox of husk's: its supervisor waits for an agent that never comes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use harness::{Bundle, Output, Running, Runtime, initrd_with};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::oracle::{ANSWER, Canary, Files, Scales, Words, until};

/// See the module.
pub(super) struct Sandbox {
    runtime: Runtime,
    running: Running,
    bundle: PathBuf,
    volumes: TempDir,
    files: Files,
    /// Held for as long as the sandbox is there.
    _files: (Bundle, TempDir),
}

impl Sandbox {
    /// Starts one whose guest carries out `attacks`, and is given up after `patience_s`. Its container has a volume, one that is read-only, and one
    /// that is a file.
    pub(super) fn start(attacks: &str, patience_s: u32) -> Self {
        let directory = TempDir::new().unwrap();
        let orders = directory.path().join("orders");
        initrd_with(attacks.as_bytes(), &orders);
        let kernel = env!("HUSK_HOSTILE_GUEST");
        let runtime = Runtime::from_environment().configured(&format!(
            "kernel = {kernel:?}\ninitrd = {orders:?}\nmemory_mib = 64\nagent_timeout_s = {patience_s}\n"
        ));
        let volumes = TempDir::new().unwrap();
        let at = |name: &str| volumes.path().join(name);
        for name in ["open", "closed"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("file"), name).unwrap();
        }
        fs::write(at("single"), "single").unwrap();
        let bundle = Bundle::busybox()
            .bind(&at("open"), "/open", &["rbind"])
            .bind(&at("closed"), "/closed", &["rbind", "ro"])
            .bind(&at("single"), "/single", &["bind"]);
        fs::write(bundle.rootfs().join("marker"), "marker").unwrap();
        fs::create_dir(bundle.path().join("beside")).unwrap();
        fs::write(bundle.path().join("beside/file"), "beside").unwrap();
        let id = Runtime::new_id();
        let running = runtime.start_as(&bundle, &id, Stdio::null());
        // Its guest has yet to boot.
        let files = Files::of(bundle.path(), Some(&bundle.rootfs()));
        Self {
            runtime,
            running,
            bundle: bundle.path().to_owned(),
            volumes,
            files,
            _files: (bundle, directory),
        }
    }

    /// Its name.
    pub(super) fn id(&self) -> String {
        self.running.id.clone()
    }

    /// What its guest has said, as its supervisor has logged it.
    pub(super) fn words(&self) -> Words {
        Words(self.runtime.log())
    }

    /// Waits for the guest to say this.
    #[track_caller]
    pub(super) fn await_words(&mut self, text: &str) {
        until(text, || {
            let has_ended = self.running.has_ended();
            let is_said = self.runtime.log().contains(text);
            assert!(is_said || !has_ended, "{text:?} was not said");
            is_said.then_some(())
        });
    }

    /// Weighs its VMM from now on.
    #[track_caller]
    pub(super) fn weighed(&mut self) -> Scales {
        self.await_words("the VMM is started");
        Scales::under(self.process("vmm"))
    }

    /// A process that its record names.
    #[track_caller]
    fn process(&self, role: &str) -> u32 {
        let record = self.runtime.root().join(self.id()).join("state.json");
        until("the record of the sandbox", || {
            let record: Value = serde_json::from_slice(&fs::read(&record).ok()?).ok()?;
            u32::try_from(record[role]["pid"].as_u64()?).ok()
        })
    }

    /// Its supervisor answers, whatever the guest does.
    #[track_caller]
    pub(super) fn assert_answers(&self) {
        let start = Instant::now();
        let state = self.runtime.state(&self.id());
        assert_eq!(state["status"], json!("creating"), "{state}");
        assert!(start.elapsed() < ANSWER, "after {:?}", start.elapsed());
    }

    /// The names that the supervisor's levels of the share have on them, as its supervisor sees them: nothing but what it put there.
    #[track_caller]
    pub(super) fn assert_levels(&self) {
        let below = self.runtime.root().join(self.id()).join("shared");
        let below = below.strip_prefix("/").unwrap();
        let supervisor = self.process("supervisor");
        let share = Path::new("/proc")
            .join(supervisor.to_string())
            .join("root")
            .join(below);
        let id = self.id();
        for (level, wanted) in [
            (share.clone(), vec![id.as_str()]),
            (share.join(&id), vec!["mounts", "rootfs"]),
            (share.join(&id).join("mounts"), vec!["0", "1", "2"]),
        ] {
            let mut names: Vec<String> = fs::read_dir(&level)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            assert_eq!(names, wanted, "in {}", level.display());
        }
    }

    /// Waits for the command that began it to fail, which it does when the guest ends or is given up.
    #[track_caller]
    pub(super) fn end(self, canary: &Canary<'_>) -> (Output, Words) {
        let id = self.id();
        let output = self.running.wait();
        assert_ne!(output.status, 0, "{output:?}");
        self.files
            .assert_same(&Files::of(&self.bundle, Some(&self.bundle.join("rootfs"))));
        let closed = fs::read(self.volumes.path().join("closed/file")).unwrap();
        assert_eq!(closed, b"closed");
        canary.assert_untouched(&id, &self.runtime.root());
        (output, Words(self.runtime.log()))
    }

    /// Deletes it while it attacks; nothing is left of it.
    #[track_caller]
    pub(super) fn delete(self, canary: &Canary<'_>) -> Output {
        let start = Instant::now();
        let deleted = self.runtime.call(&["delete", "--force", &self.id()]);
        deleted.assert_status(0);
        assert!(start.elapsed() < ANSWER, "after {:?}", start.elapsed());
        self.end(canary).0
    }
}
