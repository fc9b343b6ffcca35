//! Files from Debian packages: downloaded and unpacked as any user, without installing anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, io};

/// The package that always depends on the newest kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";

/// A kernel and its modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// Its modules, as `/lib/modules/VERSION`.
    pub modules: PathBuf,
}

/// Debian's newest kernel for virtual machines, from the cache folder or else downloaded to it.
///
/// # Errors
/// [`Error::Debian`] where apt is not there or does not know the package, [`Error::Io`] for the cache.
pub fn kernel(cache: &Path) -> Result<Kernel, Error> {
    let listing = run(KERNEL, Command::new("apt-cache").args(["depends", "--important", KERNEL]))?;
    let package = dependency(&listing).ok_or_else(|| refuse(KERNEL, "it depends on no kernel"))?;
    let version = package.trim_start_matches("linux-image-");
    let tree = unpacked(package, cache)?;
    let kernel = Kernel {
        kernel: tree.join(format!("boot/vmlinuz-{version}")),
        // Since usr-merge the package has /usr/lib alone.
        modules: [format!("lib/modules/{version}"), format!("usr/lib/modules/{version}")]
            .map(|path| tree.join(path))
            .into_iter()
            .find(|path| path.is_dir())
            .ok_or_else(|| refuse(package, "it has no modules"))?,
    };
    if kernel.kernel.is_file() { Ok(kernel) } else { Err(refuse(package, "it has no kernel")) }
}

/// A file from a package, from the cache folder or else downloaded to it. The path is relative to the root.
///
/// # Errors
/// As for [`kernel`].
pub fn file(package: &str, path: &str, cache: &Path) -> Result<PathBuf, Error> {
    let file = unpacked(package, cache)?.join(path.trim_start_matches('/'));
    if file.is_file() { Ok(file) } else { Err(refuse(package, format!("it has no file {path}"))) }
}

/// The folder with the package's newest version.
fn unpacked(package: &str, cache: &Path) -> Result<PathBuf, Error> {
    let listing = run(package, Command::new("apt-cache").args(["policy", package]))?;
    let version = candidate(&listing)
        .ok_or_else(|| refuse(package, "apt knows no version of it (try apt-get update)"))?;
    let tree = cache.join(format!("{package}_{}", version.replace([':', '/'], "%")));
    if tree.is_dir() {
        return Ok(tree);
    }
    fs::create_dir_all(cache).map_err(io("create", cache))?;
    let staging =
        tempfile::Builder::new().prefix(".unpacking-").tempdir_in(cache).map_err(io("write", cache))?;
    download(package, version, staging.path())?;
    let root = staging.path().join("root");
    let archive = archive_in(staging.path())?.ok_or_else(|| refuse(package, "apt-get left no .deb file"))?;
    run(package, Command::new("dpkg-deb").arg("-x").arg(archive).arg(&root))?;
    match fs::rename(&root, &tree) {
        // Someone else unpacked the same version meanwhile.
        Err(_) if tree.is_dir() => Ok(tree),
        renamed => renamed.map(|()| tree.clone()).map_err(io("write", &tree)),
    }
}

fn download(package: &str, version: &str, folder: &Path) -> Result<(), Error> {
    // Root would warn that its helper user cannot write here.
    let options = ["-o", "APT::Sandbox::User=root", "-qq", "download"];
    let wanted = format!("{package}={version}");
    run(package, Command::new("apt-get").args(options).arg(wanted).current_dir(folder)).map(drop)
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
