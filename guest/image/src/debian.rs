//! Files from Debian packages: downloaded and unpacked as any user, without installing anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::error::{Error, io};

/// The package that always depends on the newest kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";
/// The keys that sign Debian's archive. Ubuntu has this package too.
const KEYRING: (&str, &str) = ("debian-archive-keyring", "/usr/share/keyrings/debian-archive-keyring.gpg");
/// The release whose kernel is taken where the machine's own archive has none.
const RELEASE: [(&str, &str); 2] = [
    ("http://deb.debian.org/debian", "bookworm"),
    ("http://deb.debian.org/debian-security", "bookworm-security"),
];

/// A kernel and its modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// Its modules, as `/lib/modules/VERSION`.
    pub modules: PathBuf,
}

/// Debian's newest kernel for virtual machines, from the cache folder or else downloaded to it. Where the machine's own
/// archive has none, as Ubuntu's, it comes from Debian's, whose signatures are checked.
///
/// # Errors
/// [`Error::Debian`] where apt is not there, or neither archive gives the package, [`Error::Io`] for the cache.
pub fn kernel(cache: &Path) -> Result<Kernel, Error> {
    let machine = Apt::of_this_machine();
    if machine.version(KERNEL)?.is_some() {
        return kernel_of(&machine, cache);
    }
    kernel_of(&Apt::of_debian(Path::new(KEYRING.1))?, cache)
}

/// A file from a package, from the cache folder or else downloaded to it. The path is relative to the root.
///
/// # Errors
/// [`Error::Debian`] where apt is not there or does not know the package, [`Error::Io`] for the cache.
pub fn file(package: &str, path: &str, cache: &Path) -> Result<PathBuf, Error> {
    let tree = unpacked(&Apt::of_this_machine(), package, cache)?;
    let file = find(&tree, path.trim_start_matches('/')).filter(|file| file.is_file());
    file.ok_or_else(|| refuse(package, format!("it has no file {path}")))
}

fn kernel_of(apt: &Apt, cache: &Path) -> Result<Kernel, Error> {
    let listing = run(KERNEL, apt.command("apt-cache").args(["depends", "--important", KERNEL]))?;
    let package = dependency(&listing).ok_or_else(|| refuse(KERNEL, "it depends on no kernel"))?;
    let version = package.trim_start_matches("linux-image-");
    let tree = unpacked(apt, package, cache)?;
    let kernel = Kernel {
        kernel: tree.join(format!("boot/vmlinuz-{version}")),
        modules: find(&tree, &format!("lib/modules/{version}"))
            .ok_or_else(|| refuse(package, "it has no modules"))?,
    };
    if kernel.kernel.is_file() { Ok(kernel) } else { Err(refuse(package, "it has no kernel")) }
}

/// What a package has at a path, or below `/usr`, where newer releases have what was in `/bin` and `/lib`.
fn find(tree: &Path, path: &str) -> Option<PathBuf> {
    [tree.join(path), tree.join("usr").join(path)].into_iter().find(|path| path.exists())
}

/// The folder with the package's newest version.
fn unpacked(apt: &Apt, package: &str, cache: &Path) -> Result<PathBuf, Error> {
    let version = apt
        .version(package)?
        .ok_or_else(|| refuse(package, "apt knows no version of it (try apt-get update)"))?;
    let tree = cache.join(format!("{package}_{}", version.replace([':', '/'], "%")));
    if tree.is_dir() {
        return Ok(tree);
    }
    fs::create_dir_all(cache).map_err(io("create", cache))?;
    let staging =
        tempfile::Builder::new().prefix(".unpacking-").tempdir_in(cache).map_err(io("write", cache))?;
    apt.download(package, &version, staging.path())?;
    let root = staging.path().join("root");
    let archive = archive_in(staging.path())?.ok_or_else(|| refuse(package, "apt-get left no .deb file"))?;
    run(package, Command::new("dpkg-deb").arg("-x").arg(archive).arg(&root))?;
    match fs::rename(&root, &tree) {
        // Someone else unpacked the same version meanwhile.
        Err(_) if tree.is_dir() => Ok(tree),
        renamed => renamed.map(|()| tree.clone()).map_err(io("write", &tree)),
    }
}

/// apt, and the archive that it asks.
struct Apt {
    /// What it knows of an archive that is not the machine's; gone with this.
    state: Option<TempDir>,
}

impl Apt {
    /// The archive that the machine is installed from.
    fn of_this_machine() -> Self {
        Self { state: None }
    }

    /// Debian's own archive, with the keys that may sign it. The machine's apt learns nothing of it.
    fn of_debian(keyring: &Path) -> Result<Self, Error> {
        if !keyring.is_file() {
            let (package, _) = KEYRING;
            let problem = format!("there is no {}: install the package {package}", keyring.display());
            return Err(refuse(KERNEL, problem));
        }
        let state = tempfile::tempdir().map_err(io("write", &std::env::temp_dir()))?;
        let at = |name: &str| state.path().join(name);
        for folder in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(at(folder)).map_err(io("create", &at(folder)))?;
        }
        let sources = RELEASE.map(|(archive, suite)| {
            format!("deb [arch=amd64 signed-by={}] {archive} {suite} main\n", keyring.display())
        });
        // Nothing counts as installed.
        for (name, content) in [("sources.list", sources.concat()), ("status", String::new())] {
            fs::write(at(name), content).map_err(io("write", &at(name)))?;
        }
        let apt = Self { state: Some(state) };
        // Without the last option, a part of the archive that cannot be had is only warned of.
        let update = ["-qq", "update", "-o", "Acquire::Languages=none", "-o", "APT::Update::Error-Mode=any"];
        run(KERNEL, apt.command("apt-get").args(update))?;
        Ok(apt)
    }

    /// One of apt's programs. It has the machine's configuration, which may name a proxy, but not its sources.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // Root would warn that its helper user cannot write here.
        command.args(["-o", "APT::Sandbox::User=root"]);
        if let Some(state) = &self.state {
            for (option, file) in [
                ("Dir::Etc::sourcelist", "sources.list"),
                ("Dir::Etc::sourceparts", "none"),
                ("Dir::Etc::preferences", "none"),
                ("Dir::Etc::preferencesparts", "none"),
                ("Dir::State", "state"),
                ("Dir::State::status", "status"),
                ("Dir::Cache", "cache"),
            ] {
                command.arg("-o").arg(format!("{option}={}", state.path().join(file).display()));
            }
        }
        command
    }

    /// The newest version of a package, where there is one.
    fn version(&self, package: &str) -> Result<Option<String>, Error> {
        let listing = run(package, self.command("apt-cache").args(["policy", package]))?;
        Ok(candidate(&listing).map(str::to_owned))
    }

    fn download(&self, package: &str, version: &str, folder: &Path) -> Result<(), Error> {
        let wanted = format!("{package}={version}");
        run(package, self.command("apt-get").args(["-qq", "download"]).arg(wanted).current_dir(folder))
            .map(drop)
    }
}

fn archive_in(folder: &Path) -> Result<Option<PathBuf>, Error> {
    for entry in fs::read_dir(folder).map_err(io("read", folder))? {
        let path = entry.map_err(io("read", folder))?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The kernel's package in the output of `apt-cache depends`.
fn dependency(listing: &str) -> Option<&str> {
    let depends = listing.lines().filter_map(|line| line.trim().strip_prefix("Depends:"));
    depends.map(str::trim).find(|package| package.starts_with("linux-image-"))
}

/// The version in the output of `apt-cache policy`.
fn candidate(listing: &str) -> Option<&str> {
    let version = listing.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)" && !version.is_empty()).then_some(version)
}

/// The standard output of a program that succeeds.
fn run(what: &str, command: &mut Command) -> Result<String, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|error| refuse(what, format!("cannot run {program}: {error}")))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        let reason = message.lines().rfind(|line| !line.is_empty()).unwrap_or("no message");
        return Err(refuse(what, format!("{program} failed ({}): {reason}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn refuse(what: &str, problem: impl Into<String>) -> Error {
    Error::Debian { what: what.to_owned(), problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_what_the_metapackage_depends_on() {
        let listing = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(dependency(listing), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(dependency("linux-image-cloud-amd64\n"), None);
    }

    #[test]
    fn the_candidate_version_is_read() {
        let listing = "x:\n  Installed: (none)\n  Candidate: 1:2.3-4\n  Version table:\n";
        assert_eq!(candidate(listing), Some("1:2.3-4"));
        assert_eq!(candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(candidate(""), None);
    }

    /// What happens on Ubuntu, whose archive has no such package. It is fetched from the network, as elsewhere.
    #[test]
    fn where_the_machines_archive_has_no_kernel_debians_has() {
        let cache = tempfile::tempdir().unwrap();
        let found = kernel_of(&Apt::of_debian(Path::new(KEYRING.1)).unwrap(), cache.path()).unwrap();
        let name = found.kernel.file_name().unwrap().to_string_lossy();
        assert!(name.starts_with("vmlinuz-6.1.") && name.ends_with("-cloud-amd64"), "{name}");
        assert!(found.modules.join("kernel").is_dir());
    }

    #[test]
    fn a_file_is_found_where_newer_releases_have_it() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("usr/bin")).unwrap();
        fs::write(tree.path().join("usr/bin/busybox"), "x").unwrap();
        assert_eq!(find(tree.path(), "bin/busybox"), Some(tree.path().join("usr/bin/busybox")));
        assert_eq!(find(tree.path(), "bin/sh"), None);
    }

    #[test]
    fn an_archive_that_others_signed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let keyring = folder.path().join("nobody.gpg");
        let missing = Apt::of_debian(&keyring).err().unwrap().to_string();
        assert!(missing.contains("install the package debian-archive-keyring"), "{missing}");
        fs::write(&keyring, "").unwrap();
        let unsigned = Apt::of_debian(&keyring).err().unwrap().to_string();
        assert!(unsigned.contains("apt-get failed") && unsigned.contains("not signed"), "{unsigned}");
    }

    #[test]
    fn a_program_that_is_missing_or_fails_gives_an_error_with_the_way_out() {
        let missing = run("x", &mut Command::new("/nonexistent/apt-get")).unwrap_err().to_string();
        assert!(
            missing.contains("cannot run") && missing.contains("give --kernel and --modules"),
            "{missing}"
        );
        let failed =
            run("x", Command::new("sh").args(["-c", "echo E: broken >&2; exit 7"])).unwrap_err().to_string();
        assert!(failed.contains("exit status: 7") && failed.contains("E: broken"), "{failed}");
    }
}
