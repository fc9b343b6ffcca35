//! Who a container's process runs as, looked up in the image's own `/etc/passwd` and `/etc/group`.
//!
//! The grammar is that of the image config's `User`: `user[:group]`, each a name or a number. The other groups are those
//! that list the user. Where a request names a group, they stay, as Kubernetes has it (`supplementalGroupsPolicy: Merge`);
//! where the image itself does, it is the only one (OCI image specification, `config.User`).

use std::io::Read;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

/// The most that is read of a passwd or group file: an image may hold anything.
const LIMIT: u64 = 1 << 20;

/// Numbers, and where home is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) additional_gids: Vec<u32>,
    pub(super) home: String,
}

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("user {0:?} is not in the image's /etc/passwd")]
    NoUser(String),
    #[error("group {0:?} is not in the image's /etc/group")]
    NoGroup(String),
}

impl User {
    /// Looks the image's own user up below `root`. An empty `spec` is root.
    pub(super) fn of_image(root: &Path, spec: &str) -> Result<Self, Error> {
        let user = Self::look_up(root, spec)?;
        let names_a_group = spec.split_once(':').is_some_and(|(_, group)| !group.is_empty());
        let additional_gids = if names_a_group { Vec::new() } else { user.additional_gids };
        Ok(Self { additional_gids, ..user })
    }

    /// Looks a user that a request names up below `root`. An empty `spec` is root.
    pub(super) fn look_up(root: &Path, spec: &str) -> Result<Self, Error> {
        Self::find(spec, &read(root, "etc/passwd"), &read(root, "etc/group"))
    }

    fn find(spec: &str, passwd: &str, group: &str) -> Result<Self, Error> {
        let (user, group_wanted) = match spec.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (spec, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let entry = passwd.lines().filter_map(PasswdEntry::parse).find(|entry| entry.is(user));
        let number = user.parse().ok();
        let (uid, gid, home) = match (&entry, number) {
            (Some(entry), _) => (entry.uid, entry.gid, entry.home),
            // A number needs no entry; it then belongs to root's group, as everywhere.
            (None, Some(uid)) => (uid, 0, "/"),
            (None, None) => return Err(Error::NoUser(user.into())),
        };
        let groups: Vec<_> = group.lines().filter_map(GroupEntry::parse).collect();
        let gid = match group_wanted {
            Some(wanted) => find_group(&groups, wanted)?,
            None => gid,
        };
        let name = entry.as_ref().map(|entry| entry.name).unwrap_or_default();
        let additional_gids =
            groups.iter().filter(|group| group.lists(name)).map(|group| group.gid).collect();
        let home = if home.is_empty() { "/" } else { home };
        Ok(Self { uid, gid, additional_gids, home: home.into() })
    }
}

fn find_group(groups: &[GroupEntry<'_>], wanted: &str) -> Result<u32, Error> {
    let number: Option<u32> = wanted.parse().ok();
    groups
        .iter()
        .find(|group| group.name == wanted || number == Some(group.gid))
        .map(|group| group.gid)
        .or(number)
        .ok_or_else(|| Error::NoGroup(wanted.into()))
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdEntry<'a> {
    /// `name:password:uid:gid:comment:home:shell`
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Self { name, uid, gid, home })
    }

    fn is(&self, user: &str) -> bool {
        self.name == user || user.parse() == Ok(self.uid)
    }
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupEntry<'a> {
    /// `name:password:gid:member,member`
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Self { name, gid, members: fields.next().unwrap_or_default() })
    }

    /// Whether a user is a member, and the group is not the user's own, which a process has as its first or not at all.
    fn lists(&self, user: &str) -> bool {
        !user.is_empty() && self.name != user && self.members.split(',').any(|member| member == user)
    }
}

/// A file of the image, or nothing: images need not have these. Links are followed inside the image only.
fn read(root: &Path, path: &str) -> String {
    let open = || {
        let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    };
    let mut bytes = Vec::new();
    let Ok(file) = open() else { return String::new() };
    match std::fs::File::from(file).take(LIMIT).read_to_end(&mut bytes) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1001:App:/home/app:/bin/sh\n\
                          nohome:x:7:7::\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\naudio:x:29:app,other\nvideo:x:44:other\nwheel:x:10:app\n";

    fn find(spec: &str) -> User {
        User::find(spec, PASSWD, GROUP).unwrap()
    }

    fn user(uid: u32, gid: u32, additional_gids: &[u32], home: &str) -> User {
        User { uid, gid, additional_gids: additional_gids.to_vec(), home: home.into() }
    }

    #[test]
    fn nobody_in_particular_is_root() {
        assert_eq!(find(""), user(0, 0, &[], "/root"));
        assert_eq!(User::find("", "", "").unwrap(), user(0, 0, &[], "/"));
    }

    #[test]
    fn a_name_brings_its_groups_and_home() {
        assert_eq!(find("app"), user(1000, 1001, &[29, 10], "/home/app"));
        assert_eq!(find("1000"), user(1000, 1001, &[29, 10], "/home/app"));
        assert_eq!(find("nohome"), user(7, 7, &[], "/"));
    }

    #[test]
    fn a_given_group_takes_the_place_of_the_users_own_only() {
        for spec in ["app:video", "app:44", "1000:44", "1000:video"] {
            assert_eq!(find(spec), user(1000, 44, &[29, 10], "/home/app"), "{spec}");
        }
        assert_eq!(find("app:4242"), user(1000, 4242, &[29, 10], "/home/app"));
        assert_eq!(find("app:audio"), user(1000, 29, &[29, 10], "/home/app"));
        assert_eq!(find(":video"), user(0, 44, &[], "/root"));
    }

    #[test]
    fn a_group_that_the_image_names_is_the_only_one() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), PASSWD).unwrap();
        std::fs::write(root.path().join("etc/group"), GROUP).unwrap();
        for (spec, gid, more) in [
            ("app:video", 44, &[][..]),
            ("1000:44", 44, &[]),
            ("app", 1001, &[29, 10]),
            ("app:", 1001, &[29, 10]),
        ] {
            let found = User::of_image(root.path(), spec).unwrap();
            assert_eq!(found, user(1000, gid, more, "/home/app"), "{spec}");
        }
    }

    #[test]
    fn a_group_of_the_users_name_is_not_one_of_the_others() {
        let listed = "app:x:1001:app\naudio:x:29:app\n";
        assert_eq!(User::find("1000:44", PASSWD, listed).unwrap(), user(1000, 44, &[29], "/home/app"));
    }

    #[test]
    fn a_user_without_a_name_is_in_no_group() {
        assert_eq!(User::find("4242", PASSWD, "odd:x:5:,4242\n").unwrap(), user(4242, 0, &[], "/"));
    }

    #[test]
    fn a_number_needs_no_entry() {
        assert_eq!(find("4242"), user(4242, 0, &[], "/"));
        assert_eq!(find("4242:4343"), user(4242, 4343, &[], "/"));
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert!(matches!(User::find("ghost", PASSWD, GROUP), Err(Error::NoUser(_))));
        assert!(matches!(User::find("app:ghosts", PASSWD, GROUP), Err(Error::NoGroup(_))));
        assert!(matches!(User::find("-1", PASSWD, GROUP), Err(Error::NoUser(_))));
        assert!(matches!(User::find("4294967296", PASSWD, GROUP), Err(Error::NoUser(_))));
    }

    #[test]
    fn links_do_not_lead_out_of_the_image() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("passwd"), "evil:x:66:66::/:\n").unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("passwd"), root.path().join("etc/passwd")).unwrap();
        assert!(User::look_up(root.path(), "evil").is_err());
        std::fs::write(root.path().join("etc/real"), PASSWD).unwrap();
        std::fs::remove_file(root.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/etc/real", root.path().join("etc/passwd")).unwrap();
        assert_eq!(User::look_up(root.path(), "app").unwrap().uid, 1000);
    }
}
