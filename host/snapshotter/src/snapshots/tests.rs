use tempfile::TempDir;

use super::*;

fn open(root: &Path) -> Snapshots {
    Snapshots::open(root, Config::default()).unwrap()
}

fn new() -> (TempDir, Snapshots) {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = open(folder.path());
    (folder, snapshots)
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn layer(snapshots: &Snapshots, name: &str, parent: &str, file: &str) {
    let mounts = prepare(snapshots, "writing", parent).unwrap();
    let upper = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir="));
    let folder = upper.unwrap_or(&mounts[0].source).to_owned();
    std::fs::write(Path::new(&folder).join(file), file).unwrap();
    snapshots.commit(name, "writing", Labels::new()).unwrap();
}

fn prepare(snapshots: &Snapshots, key: &str, parent: &str) -> Result<Vec<Mount>, Error> {
    snapshots.prepare(key, parent, Kind::Active, Labels::new(), &[])
}

fn leave(snapshots: &Snapshots, name: &str, parent: &str) {
    snapshots.leave_to_guest(name, parent, &Labels::new()).unwrap();
}

fn entries(folder: &TempDir) -> usize {
    std::fs::read_dir(folder.path().join("snapshots")).unwrap().count()
}

#[test]
fn a_guests_layers_are_records_without_files() {
    let (folder, snapshots) = new();
    leave(&snapshots, "one", "");
    leave(&snapshots, "two", "one");
    assert_eq!(entries(&folder), 0);
    let record = snapshots.stat("two").unwrap();
    assert_eq!((record.kind, record.parent.as_str(), record.place), (Kind::Committed, "one", Place::Guest));
    assert_eq!(snapshots.usage("two").unwrap(), (0, 0));
    // Again, for another of containerd's namespaces: it must find the label, whatever became of it.
    snapshots.update("two", &Labels::new(), &[]).unwrap();
    leave(&snapshots, "two", "one");
    assert_eq!(snapshots.stat("two").unwrap().labels, labels(&[(TARGET, "two")]));
    assert!(matches!(snapshots.leave_to_guest("two", "", &Labels::new()), Err(Error::Precondition(_))));
    assert!(matches!(snapshots.leave_to_guest("", "", &Labels::new()), Err(Error::Invalid(_))));
    assert!(matches!(snapshots.leave_to_guest("x", "nothing", &Labels::new()), Err(Error::NotFound(_))));
}

#[test]
fn a_container_on_a_guests_image_sees_a_stand_in_with_its_users() {
    let (_folder, snapshots) = new();
    leave(&snapshots, "image", "");
    for (key, kind) in [("container", Kind::Active), ("look", Kind::View)] {
        let mounts = snapshots.prepare(key, "image", kind, Labels::new(), &["app".into()]).unwrap();
        assert_eq!(mounts.len(), 1);
        assert_eq!(
            (mounts[0].r#type.as_str(), &mounts[0].options[..]),
            ("bind", &["rbind".to_owned(), "ro".to_owned()][..])
        );
        let passwd = std::fs::read_to_string(Path::new(&mounts[0].source).join("etc/passwd")).unwrap();
        assert!(passwd.contains("\napp:x:1397048656:1397048656:"), "{passwd}");
        assert_eq!(snapshots.mounts(key).unwrap(), mounts);
        assert!(matches!(snapshots.commit("done", key, Labels::new()), Err(Error::Precondition(_))));
        snapshots.remove(key).unwrap();
    }
}

#[test]
fn users_are_asked_for_by_the_chain_id_of_a_guests_layers_only() {
    let (_folder, snapshots) = new();
    leave(&snapshots, "sha256:1", "");
    layer(&snapshots, "k8s.io/7/sha256:2", "", "a");
    assert_eq!(snapshots.guests_chain("sha256:1").unwrap(), Some("sha256:1".into()));
    for other in ["k8s.io/7/sha256:2", "nothing", ""] {
        assert_eq!(snapshots.guests_chain(other).unwrap(), None, "{other:?}");
    }
}

#[test]
fn what_another_snapshotter_pulled_is_unpacked_for_nobody_where_the_guest_has_the_layers_below() {
    let (folder, snapshots) = new();
    leave(&snapshots, "sha256:1", "");
    let mounts = prepare(&snapshots, "k8s.io/3/extract-1-ab sha256:2", "sha256:1").unwrap();
    assert_eq!((mounts[0].r#type.as_str(), mounts[0].options[1].as_str()), ("bind", "rw"));
    std::fs::write(Path::new(&mounts[0].source).join("file"), "of the layer").unwrap();
    snapshots.commit("k8s.io/4/sha256:2", "k8s.io/3/extract-1-ab sha256:2", Labels::new()).unwrap();
    assert_eq!(entries(&folder), 0);
    assert_eq!(snapshots.usage("k8s.io/4/sha256:2").unwrap(), (0, 0));
    assert_eq!(snapshots.guests_chain("k8s.io/4/sha256:2").unwrap(), Some("sha256:2".into()));
    let root = prepare(&snapshots, "k8s.io/5/container", "k8s.io/4/sha256:2").unwrap();
    assert!(Path::new(&root[0].source).join("etc/passwd").exists());
    leave(&snapshots, "sha256:3", "k8s.io/4/sha256:2");
}

#[test]
fn other_images_are_unpacked_here_one_layer_over_the_other() {
    let (_folder, snapshots) = new();
    layer(&snapshots, "one", "", "a");
    layer(&snapshots, "two", "one", "b");
    let mounts = prepare(&snapshots, "container", "two").unwrap();
    assert_eq!(mounts[0].r#type, "overlay");
    let lower = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
    let files: Vec<_> = lower.split(':').map(|folder| std::fs::read_dir(folder).unwrap().count()).collect();
    assert_eq!(files, [1, 1]);
    assert!(Path::new(lower.split(':').next().unwrap()).join("b").exists(), "the uppermost comes first");
    let view = snapshots.prepare("view", "two", Kind::View, Labels::new(), &[]).unwrap();
    assert!(!view[0].options.iter().any(|option| option.starts_with("upperdir=")));
    let (bytes, inodes) = snapshots.usage("two").unwrap();
    assert!(bytes > 0 && inodes == 2, "{bytes} {inodes}");
}

#[test]
fn an_image_for_the_guest_on_layers_that_lie_here_is_left_to_it_all_the_same() {
    let (folder, snapshots) = new();
    layer(&snapshots, "here", "", "a");
    let before = entries(&folder);
    leave(&snapshots, "here", "");
    leave(&snapshots, "above", "here");
    assert_eq!(entries(&folder), before);
    assert_eq!(snapshots.stat("above").unwrap().place, Place::Guest);
    // What lies here is still there, for images of the host's.
    assert_eq!(snapshots.stat("here").unwrap().place, Place::Host);
    assert!(matches!(snapshots.leave_to_guest("above", "", &Labels::new()), Err(Error::Precondition(_))));
}

#[test]
fn an_image_of_the_hosts_on_layers_that_are_not_here_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { images: vec!["registry/*".into()] };
    let snapshots = Snapshots::open(folder.path(), config).unwrap();
    leave(&snapshots, "base", "");
    let asked = labels(&[(TARGET, "top"), (IMAGE, "docker.io/app")]);
    for (key, labels) in [("x", asked), ("k8s.io/3/extract-1-ab sha256:2", Labels::new())] {
        let refused = snapshots.prepare(key, "base", Kind::Active, labels, &[]).unwrap_err();
        assert!(matches!(refused, Error::Precondition(_)), "{refused}");
    }
    assert_eq!(entries(&folder), 0);
}

#[test]
fn the_patterns_say_which_images_are_the_guests() {
    let of = |patterns: &[&str], pairs: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { images: patterns.iter().map(ToString::to_string).collect() };
        Snapshots::open(folder.path(), config).unwrap().target(&labels(pairs)).map(str::to_owned)
    };
    let image = |name| [(TARGET, "top"), (IMAGE, name)];
    assert_eq!(of(&["registry/*"], &image("registry/app")), Some("top".into()));
    assert_eq!(of(&["registry/*"], &image("docker.io/app")), None);
    assert_eq!(of(&["registry/*"], &[(TARGET, "top")]), None);
    assert_eq!(of(&["*"], &[(TARGET, "top")]), Some("top".into()));
    assert_eq!(of(&["*"], &[]), None);
    assert_eq!(of(&[], &image("registry/app")), None);
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let (folder, snapshots) = new();
    layer(&snapshots, "one", "", "a");
    prepare(&snapshots, "container", "one").unwrap();
    let before = entries(&folder);
    let prepare = |key: &str, parent: &str| prepare(&snapshots, key, parent);
    assert!(matches!(prepare("container", "one"), Err(Error::Exists(_))));
    assert!(matches!(prepare("new", "nothing"), Err(Error::NotFound(_))));
    assert!(matches!(prepare("new", "container"), Err(Error::Invalid(_))));
    assert!(matches!(prepare("", "one"), Err(Error::Invalid(_))));
    assert!(matches!(snapshots.remove("one"), Err(Error::Precondition(_))));
    assert!(matches!(snapshots.remove("nothing"), Err(Error::NotFound(_))));
    assert!(matches!(snapshots.commit("one", "container", Labels::new()), Err(Error::Exists(_))));
    assert!(matches!(snapshots.commit("x", "one", Labels::new()), Err(Error::Precondition(_))));
    assert!(matches!(snapshots.mounts("one"), Err(Error::Precondition(_))));
    assert_eq!(entries(&folder), before);
    // Names are no paths.
    let mounts = prepare("../../etc", "one").unwrap();
    assert!(mounts[0].options.iter().all(|option| !option.contains("..")));
}

#[test]
fn labels_are_replaced_as_the_mask_says() {
    let (_folder, snapshots) = new();
    let before = labels(&[("a", "1"), ("b", "2")]);
    snapshots.prepare("x", "", Kind::Active, before, &[]).unwrap();
    let changed =
        snapshots.update("x", &labels(&[("a", "3")]), &["labels.a".into(), "labels.b".into()]).unwrap();
    assert_eq!(changed.labels, labels(&[("a", "3")]));
    assert_eq!(snapshots.update("x", &labels(&[("c", "4")]), &[]).unwrap().labels, labels(&[("c", "4")]));
    assert!(matches!(snapshots.update("x", &Labels::new(), &["parent".into()]), Err(Error::Invalid(_))));
}

#[test]
fn all_is_there_after_a_restart_but_what_nobody_knows() {
    let (folder, snapshots) = new();
    layer(&snapshots, "one", "", "a");
    leave(&snapshots, "image", "");
    let mounts = prepare(&snapshots, "container", "one").unwrap();
    let before = snapshots.list(&Filters::parse(&[]).unwrap(), "").unwrap();
    drop(snapshots);
    std::fs::create_dir_all(folder.path().join("snapshots/4711/fs")).unwrap();
    std::fs::create_dir_all(folder.path().join("snapshots/3.gone")).unwrap();
    let snapshots = open(folder.path());
    assert_eq!(snapshots.list(&Filters::parse(&[]).unwrap(), "").unwrap(), before);
    assert_eq!(snapshots.mounts("container").unwrap(), mounts);
    assert_eq!(entries(&folder), 2);
    // Numbers are not given twice.
    let again = prepare(&snapshots, "more", "one").unwrap();
    assert_ne!(again, mounts);
}

#[test]
fn a_folder_has_one_process() {
    let (folder, _snapshots) = new();
    let refused = Snapshots::open(folder.path(), Config::default()).err().unwrap();
    assert!(matches!(refused, Error::Records(records::Error::InUse)), "{refused}");
}

#[test]
fn a_folder_that_mount_options_cannot_name_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a,b", "a:b", "a\\b"] {
        let refused = Snapshots::open(&folder.path().join(name), Config::default()).err().unwrap();
        assert!(matches!(refused, Error::Io { .. }), "{refused}");
    }
}

#[test]
fn what_a_failed_call_left_is_not_taken_for_the_next_snapshots() {
    let (folder, snapshots) = new();
    std::fs::create_dir_all(folder.path().join("snapshots/1/fs")).unwrap();
    std::fs::write(folder.path().join("snapshots/1/fs/file"), "of another").unwrap();
    let mounts = prepare(&snapshots, "container", "").unwrap();
    assert_eq!(std::fs::read_dir(&mounts[0].source).unwrap().count(), 0);
}

#[test]
fn cleaning_up_takes_no_folder_of_a_snapshot_that_is_being_made() {
    let (_folder, snapshots) = new();
    std::thread::scope(|scope| {
        let making = scope.spawn(|| {
            for number in 0..200 {
                let mounts = prepare(&snapshots, &format!("{number}"), "").unwrap();
                assert!(Path::new(&mounts[0].source).exists(), "the folder of {number} is gone");
            }
        });
        while !making.is_finished() {
            snapshots.clean_up().unwrap();
        }
    });
}
