//! Claims, locks and removals of state directories.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn record() -> Record {
    let this = ProcessRef::of(std::process::id().try_into().unwrap()).unwrap();
    Record {
        vmm: Some(this),
        pid: Some(this.pid),
        created_ns: 1,
        ..Record::new("web", this)
    }
}

#[test]
fn ids_are_runcs() {
    for good in ["a", "A_b+c,d-e.f", "...", &"x".repeat(ID_MAX_BYTES)] {
        assert!(check_id(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        ".",
        "..",
        "a/b",
        "a b",
        "ü",
        &nameless().unwrap(),
        &"x".repeat(ID_MAX_BYTES + 1),
    ] {
        assert!(check_id(bad).is_err(), "{bad}");
    }
}

#[test]
fn second_claim_of_an_id_names_it() {
    let root = tempfile::tempdir().unwrap();
    StateDir::create(root.path(), "web").unwrap();
    let error = StateDir::create(root.path(), "web").unwrap_err();
    assert_eq!(
        error.to_string(),
        "a container with id \"web\" exists already"
    );
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn the_longest_id_can_be_claimed_and_removed() {
    let root = tempfile::tempdir().unwrap();
    let id = "x".repeat(ID_MAX_BYTES);
    StateDir::create(root.path(), &id)
        .unwrap()
        .remove()
        .unwrap();
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn record_survives_writing_and_reading() {
    let root = tempfile::tempdir().unwrap();
    let dir = StateDir::create(root.path(), "web").unwrap();
    assert_eq!(dir.read().unwrap(), None);
    dir.write(&record()).unwrap();
    assert_eq!(dir.read().unwrap(), Some(record()));
}

#[test]
fn a_record_of_an_earlier_boot_names_no_process() {
    let root = tempfile::tempdir().unwrap();
    let dir = StateDir::claim(root.path(), "web", Some(&record())).unwrap();
    let text = fs::read_to_string(dir.record_path()).unwrap();
    let boot = boot_id().unwrap();
    assert!(text.contains(&boot), "{text}");
    fs::write(dir.record_path(), text.replace(&boot, "earlier")).unwrap();
    let read = dir.read().unwrap().unwrap();
    assert!(read.supervisor.open().is_none());
    assert_eq!((read.vmm, read.pid, read.cgroup), (None, None, None));
    assert_eq!((read.id, read.created_ns), ("web".into(), 1));
}

#[test]
fn an_id_is_locked_from_its_claim_to_the_end_of_its_owner() {
    let root = tempfile::tempdir().unwrap();
    let owner = StateDir::create(root.path(), "web").unwrap();
    let cleaner = StateDir::open(root.path(), "web").unwrap();
    assert!(matches!(
        cleaner.lock(Duration::ZERO),
        Err(StateError::Busy(_))
    ));
    let waiting = cleaner.clone();
    let waiter = thread::spawn(move || waiting.lock(Duration::MAX));
    drop(owner);
    waiter.join().unwrap().unwrap();
    cleaner.remove().unwrap();
    assert!(matches!(
        StateDir::open(root.path(), "web"),
        Err(StateError::NotFound(_))
    ));
}

#[test]
fn who_comes_late_does_not_get_the_next_one() {
    let root = tempfile::tempdir().unwrap();
    let first = StateDir::create(root.path(), "web").unwrap();
    let late = StateDir::open(root.path(), "web").unwrap();
    first.remove().unwrap();
    drop(first);
    let second = StateDir::create(root.path(), "web").unwrap();
    assert!(matches!(
        late.lock(Duration::ZERO),
        Err(StateError::NotFound(_))
    ));
    assert!(second.path().exists());
}

#[test]
fn nothing_but_its_own_is_removed() {
    let root = tempfile::tempdir().unwrap();
    let dir = StateDir::create(root.path(), "web").unwrap();
    let folder = dir.shared().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "kept").unwrap();
    let error = dir.remove().unwrap_err();
    let StateError::Left { path, name, .. } = error else {
        panic!("{error}");
    };
    let file = path.join("shared/folder/file");
    assert_eq!(
        (name, fs::read_to_string(file).unwrap()),
        ("shared", "kept".into())
    );
    // The id is free, and the rest is collected when it can be.
    StateDir::create(root.path(), "web").unwrap();
    drop(dir);
    let names = StateDir::nameless(root.path()).unwrap();
    let collect = || StateDir::collect_nameless(root.path(), &names[0]);
    assert!(collect().is_err() && names.len() == 1);
    fs::remove_dir_all(path.join("shared/folder")).unwrap();
    assert_eq!(collect().unwrap(), Some(path));
    assert_eq!(StateDir::list(root.path()).unwrap(), ["web"]);
}

#[test]
fn one_root_by_two_names_is_one_root() {
    let root = tempfile::tempdir().unwrap();
    let link = root.path().join("link");
    let real = root.path().join("real");
    fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let dir = StateDir::create(&link, "web").unwrap();
    let other = StateDir::open(&real, "web").unwrap();
    assert_eq!((dir.path(), dir.root()), (other.path(), other.root()));
    assert!(dir.path().ends_with("real/web"));
}

#[test]
fn ids_are_listed_sorted() {
    let root = tempfile::tempdir().unwrap();
    assert!(
        StateDir::list(&root.path().join("none"))
            .unwrap()
            .is_empty()
    );
    for id in ["b", "a"] {
        StateDir::create(root.path(), id).unwrap();
    }
    fs::write(root.path().join("file"), "").unwrap();
    fs::create_dir(root.path().join(nameless().unwrap())).unwrap();
    assert_eq!(StateDir::list(root.path()).unwrap(), ["a", "b"]);
}

/// Owners claim an id, see that it stays theirs, and end as if killed; cleaners and collections remove what is left, all at once.
#[test]
fn a_living_claim_is_never_removed() {
    const CLAIMS: usize = 300;
    let root = tempfile::tempdir().unwrap();
    let over = AtomicBool::new(false);
    let clean = || {
        while !over.load(Ordering::Relaxed) {
            let Ok(dir) = StateDir::open(root.path(), "web") else {
                continue;
            };
            match dir.lock(Duration::ZERO) {
                Ok(()) => dir.remove().unwrap(),
                Err(StateError::Busy(_) | StateError::NotFound(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let collect = || {
        while !over.load(Ordering::Relaxed) {
            for name in StateDir::nameless(root.path()).unwrap() {
                StateDir::collect_nameless(root.path(), &name).unwrap();
            }
        }
    };
    let own = || {
        let mut claims = 0;
        while claims < CLAIMS {
            match StateDir::claim(root.path(), "web", Some(&record())) {
                Ok(dir) => {
                    assert!(dir.read().unwrap().is_some());
                    dir.write(&record()).unwrap();
                    let named = fs::symlink_metadata(dir.path()).unwrap();
                    let own = rustix::fs::fstat(&*dir.fd).unwrap();
                    assert_eq!(std::os::unix::fs::MetadataExt::ino(&named), own.st_ino);
                    claims += 1;
                }
                Err(StateError::Exists(_) | StateError::Busy(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    thread::scope(|scope| {
        let owners = [scope.spawn(own), scope.spawn(own)];
        for _ in 0..2 {
            scope.spawn(clean);
        }
        scope.spawn(collect);
        let ended: Vec<_> = owners.into_iter().map(|owner| owner.join()).collect();
        over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    });
    let _ = StateDir::open(root.path(), "web").map(|dir| {
        dir.lock(Duration::ZERO).unwrap();
        dir.remove().unwrap();
    });
    for name in StateDir::nameless(root.path()).unwrap() {
        StateDir::collect_nameless(root.path(), &name).unwrap();
    }
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}
