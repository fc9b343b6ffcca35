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
    let mounts = snapshots.prepare("writing", parent, Kind::Active, Labels::new()).unwrap();
    let upper = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir="));
    let folder = upper.unwrap_or(&mounts[0].source).to_owned();
    std::fs::write(Path::new(&folder).join(file), file).unwrap();
    snapshots.commit(name, "writing", Labels::new()).unwrap();
}

fn entries(folder: &TempDir) -> usize {
    std::fs::read_dir(folder.path().join("snapshots")).unwrap().count()
}

#[test]
fn a_guests_layers_are_records_without_files() {
    let (folder, snapshots) = new();
    assert!(snapshots.leave_to_guest("one", "", Labels::new(), &[]).unwrap());
    assert!(snapshots.leave_to_guest("two", "one", Labels::new(), &["app".into()]).unwrap());
    assert_eq!(entries(&folder), 0);
    let record = snapshots.stat("two").unwrap();
    assert_eq!((record.kind, record.parent.as_str(), record.guest), (Kind::Committed, "one", true));
    // Again, for another image of the same layers.
    assert!(snapshots.leave_to_guest("two", "one", Labels::new(), &["web".into(), "app".into()]).unwrap());
    assert_eq!(snapshots.stat("two").unwrap().users, ["app", "web"]);
    assert_eq!(snapshots.usage("two").unwrap(), (0, 0));
}

#[test]
fn a_container_on_a_guests_image_sees_a_stand_in_with_its_users() {
    let (_folder, snapshots) = new();
    snapshots.leave_to_guest("image", "", Labels::new(), &["app".into()]).unwrap();
    for (key, kind) in [("container", Kind::Active), ("look", Kind::View)] {
        let mounts = snapshots.prepare(key, "image", kind, Labels::new()).unwrap();
        assert_eq!(mounts.len(), 1);
        assert_eq!(
            (mounts[0].r#type.as_str(), &mounts[0].options[..]),
            ("bind", &["rbind".to_owned(), "ro".to_owned()][..])
        );
        let passwd = std::fs::read_to_string(Path::new(&mounts[0].source).join("etc/passwd")).unwrap();
        assert!(passwd.contains("\napp:x:1397048656:1397048656:"), "{passwd}");
        assert_eq!(snapshots.mounts(key).unwrap(), mounts);
        snapshots.remove(key).unwrap();
    }
}

#[test]
fn other_images_are_unpacked_here_one_layer_over_the_other() {
    let (_folder, snapshots) = new();
    layer(&snapshots, "one", "", "a");
    layer(&snapshots, "two", "one", "b");
    let mounts = snapshots.prepare("container", "two", Kind::Active, Labels::new()).unwrap();
    assert_eq!(mounts[0].r#type, "overlay");
    let lower = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
    let files: Vec<_> = lower.split(':').map(|folder| std::fs::read_dir(folder).unwrap().count()).collect();
    assert_eq!(files, [1, 1]);
    assert!(Path::new(lower.split(':').next().unwrap()).join("b").exists(), "the uppermost comes first");
    let view = snapshots.prepare("view", "two", Kind::View, Labels::new()).unwrap();
    assert!(!view[0].options.iter().any(|option| option.starts_with("upperdir=")));
    let (bytes, inodes) = snapshots.usage("two").unwrap();
    assert!(bytes > 0 && inodes == 2, "{bytes} {inodes}");
}

#[test]
fn an_image_for_the_guest_on_layers_that_lie_here_is_unpacked_here_too() {
    let (_folder, snapshots) = new();
    layer(&snapshots, "here", "", "a");
    assert!(!snapshots.leave_to_guest("above", "here", Labels::new(), &[]).unwrap());
    assert!(matches!(snapshots.stat("above"), Err(Error::NotFound(_))));
}

#[test]
fn an_image_of_the_hosts_on_layers_that_are_not_here_is_refused() {
    let (_folder, snapshots) = new();
    snapshots.leave_to_guest("base", "", Labels::new(), &[]).unwrap();
    let refused = snapshots.prepare("x", "base", Kind::Active, labels(&[(TARGET, "top")])).unwrap_err();
    assert!(matches!(refused, Error::Precondition(_)), "{refused}");
}

#[test]
fn the_patterns_say_which_images_are_the_guests() {
    let config = Config { images: vec!["registry/*".into()] };
    let of = |image: &str| target(&config, &labels(&[(TARGET, "top"), (IMAGE, image)])).map(str::to_owned);
    assert_eq!(of("registry/app"), Some("top".into()));
    assert_eq!(of("docker.io/app"), None);
    assert_eq!(target(&Config::default(), &labels(&[(TARGET, "top")])), Some("top"));
    assert_eq!(target(&Config::default(), &Labels::new()), None);
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let (folder, snapshots) = new();
    layer(&snapshots, "one", "", "a");
    snapshots.prepare("container", "one", Kind::Active, Labels::new()).unwrap();
    let before = entries(&folder);
    let prepare = |key: &str, parent: &str| snapshots.prepare(key, parent, Kind::Active, Labels::new());
    assert!(matches!(prepare("container", "one"), Err(Error::Exists(_))));
    assert!(matches!(prepare("new", "nothing"), Err(Error::NotFound(_))));
    assert!(matches!(prepare("new", "container"), Err(Error::Precondition(_))));
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
    snapshots.prepare("x", "", Kind::Active, before).unwrap();
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
    snapshots.leave_to_guest("image", "", Labels::new(), &["app".into()]).unwrap();
    let mounts = snapshots.prepare("container", "one", Kind::Active, Labels::new()).unwrap();
    let before = snapshots.list(&Filters::parse(&[]).unwrap()).unwrap();
    drop(snapshots);
    std::fs::create_dir_all(folder.path().join("snapshots/4711/fs")).unwrap();
    std::fs::create_dir_all(folder.path().join("snapshots/3.gone")).unwrap();
    let snapshots = open(folder.path());
    assert_eq!(snapshots.list(&Filters::parse(&[]).unwrap()).unwrap(), before);
    assert_eq!(snapshots.mounts("container").unwrap(), mounts);
    assert_eq!(entries(&folder), 2);
    // Numbers are not given twice.
    let again = snapshots.prepare("more", "one", Kind::Active, Labels::new()).unwrap();
    assert_ne!(again, mounts);
}

#[test]
fn a_folder_has_one_process() {
    let (folder, _snapshots) = new();
    assert!(Snapshots::open(folder.path(), Config::default()).is_err());
}
