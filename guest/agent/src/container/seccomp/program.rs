//! The filter as the kernel takes it: a program of classic BPF (seccomp(2)).

use std::fs::{self, File};
use std::io;
use std::path::Path;

use libcontainer::oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator,
};
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};

/// Where the program is kept. Making it takes an emulated machine as long as all else of an exec.
const FILE: &str = "/run/sealpod/seccomp.bpf";
/// Of an instruction, in bytes.
const INSTRUCTION: usize = size_of::<libc::sock_filter>();

/// A filter that can be put on this thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::container) struct Program(Vec<u8>);

impl Program {
    /// The one of all containers; made by the first who asks.
    pub(in crate::container) fn load() -> io::Result<Self> {
        match fs::read(FILE) {
            Ok(program) => Ok(Self(program)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Its own name for each: several may be the first at the same time.
                let file = format!("{FILE}.{}", std::process::id());
                let program = Self::compile(&super::profile().map_err(io::Error::other)?, Path::new(&file))?;
                fs::rename(file, FILE)?;
                Ok(program)
            }
            Err(error) => Err(error),
        }
    }

    /// Compiles a profile, by way of a file.
    fn compile(profile: &LinuxSeccomp, file: &Path) -> io::Result<Self> {
        let filter = filter(profile).map_err(io::Error::other)?;
        filter.export_bpf(File::create(file)?).map_err(io::Error::other)?;
        fs::read(file).map(Self)
    }

    /// Puts it on this thread, for good. It must have given up gaining privileges before ("no new privileges").
    pub(in crate::container) fn install(&self) -> io::Result<()> {
        let mut instructions: Vec<libc::sock_filter> = Vec::new();
        for instruction in self.0.chunks_exact(INSTRUCTION) {
            let [a, b, jt, jf, k @ ..] = instruction else { continue };
            let k = <[u8; 4]>::try_from(k).map_err(io::Error::other)?;
            instructions.push(libc::sock_filter {
                code: u16::from_ne_bytes([*a, *b]),
                jt: *jt,
                jf: *jf,
                k: u32::from_ne_bytes(k),
            });
        }
        let program = libc::sock_fprog {
            len: instructions.len().try_into().map_err(io::Error::other)?,
            filter: instructions.as_mut_ptr(),
        };
        // SAFETY: the kernel copies the program, which is there for the call and as long as it says.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn filter(profile: &LinuxSeccomp) -> anyhow::Result<ScmpFilterContext> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default)?;
    for architecture in profile.architectures().iter().flatten() {
        // Both libraries call them by the names of libseccomp's own header.
        let name = serde_json::to_value(architecture)?;
        filter.add_arch(name.as_str().unwrap_or_default().parse::<ScmpArch>()?)?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        let conditions = rule.args().iter().flatten().map(condition).collect::<anyhow::Result<Vec<_>>>()?;
        for name in rule.names() {
            // One that this library does not know is not allowed either.
            let Ok(call) = ScmpSyscall::from_name(name) else { continue };
            match conditions.as_slice() {
                [] => filter.add_rule(action, call)?,
                conditions => filter.add_rule_conditional(action, call, conditions)?,
            };
        }
    }
    Ok(filter)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> anyhow::Result<ScmpAction> {
    match action {
        LinuxSeccompAction::ScmpActAllow => Ok(ScmpAction::Allow),
        LinuxSeccompAction::ScmpActErrno => Ok(ScmpAction::Errno(errno.unwrap_or(super::EPERM).try_into()?)),
        other => anyhow::bail!("no rule of ours answers {other:?}"),
    }
}

fn condition(argument: &LinuxSeccompArg) -> anyhow::Result<ScmpArgCompare> {
    let compare = match argument.op() {
        LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
        LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            ScmpCompareOp::MaskedEqual(argument.value_two().unwrap_or_default())
        }
        other => anyhow::bail!("no rule of ours compares by {other:?}"),
    };
    Ok(ScmpArgCompare::new(argument.index().try_into()?, compare, argument.value()))
}

#[cfg(test)]
mod tests {
    use libcontainer::seccomp::initialize_seccomp;

    use super::super::profile;
    use super::*;

    /// What the kernel answers to calls under a filter, on a thread of its own.
    fn answers(install: impl FnOnce() + Send + 'static) -> Vec<(&'static str, i32)> {
        let under = move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            install();
            [
                ("clone", libc::SYS_clone, i64::from(libc::SIGCHLD), 0),
                (
                    "clone of a user namespace",
                    libc::SYS_clone,
                    i64::from(libc::CLONE_NEWUSER | libc::SIGCHLD),
                    0,
                ),
                ("clone of a network", libc::SYS_clone, i64::from(libc::CLONE_NEWNET | libc::SIGCHLD), 0),
                ("clone3", libc::SYS_clone3, 0, 0),
                ("unshare", libc::SYS_unshare, i64::from(libc::CLONE_NEWUTS), 0),
                ("mount", libc::SYS_mount, 0, 0),
                ("a socket", libc::SYS_socket, i64::from(libc::AF_UNIX), i64::from(libc::SOCK_STREAM)),
                ("vsock", libc::SYS_socket, i64::from(libc::AF_VSOCK), i64::from(libc::SOCK_STREAM)),
                ("a personality", libc::SYS_personality, 0xFFFF_FFFF, 0),
                ("another personality", libc::SYS_personality, 0x4_0000, 0),
            ]
            .map(|(name, number, first, second)| (name, call(number, first, second)))
        };
        std::thread::spawn(under).join().unwrap().to_vec()
    }

    /// The error of a system call, or 0.
    fn call(number: i64, first: i64, second: i64) -> i32 {
        // SAFETY: none of the calls above writes to memory or takes an address that is not null; a child of `clone`,
        // which shares nothing with this process, ends at once.
        let result = unsafe { libc::syscall(number, first, second, 0, 0, 0) };
        let error = io::Error::last_os_error().raw_os_error().unwrap_or_default();
        if number == libc::SYS_clone && result == 0 {
            // SAFETY: it ends this process, which is the child.
            unsafe { libc::_exit(0) };
        }
        if result < 0 { error } else { 0 }
    }

    /// What they should be.
    const EXPECTED: [(&str, i32); 10] = [
        ("clone", 0),
        ("clone of a user namespace", libc::EPERM),
        ("clone of a network", libc::EPERM),
        ("clone3", libc::ENOSYS),
        ("unshare", libc::EPERM),
        ("mount", libc::EPERM),
        ("a socket", 0),
        ("vsock", libc::EPERM),
        ("a personality", 0),
        ("another personality", libc::EPERM),
    ];

    #[test]
    fn the_program_filters() {
        let folder = tempfile::tempdir().unwrap();
        let program = Program::compile(&profile().unwrap(), &folder.path().join("program")).unwrap();
        assert_eq!(answers(move || program.install().unwrap()), EXPECTED);
    }

    #[test]
    fn the_runtime_filters_alike() {
        let profile = profile().unwrap();
        assert_eq!(answers(move || assert_eq!(initialize_seccomp(&profile).unwrap(), None)), EXPECTED);
    }
}
