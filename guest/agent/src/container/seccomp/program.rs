//! The filter as the kernel takes it: a program of classic BPF (seccomp(2)).

use std::fs::{self, File};
use std::io::{self, Read, Seek};

use libcontainer::oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator,
};
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use rustix::fs::{MemfdFlags, memfd_create};

/// Where the program is kept: making it takes an emulated machine a tenth of an exec.
const FILE: &str = "/run/sealpod/seccomp.bpf";
/// Of an instruction, in bytes.
const INSTRUCTION: usize = size_of::<libc::sock_filter>();

/// A filter that can be put on this thread.
#[derive(Clone)]
pub(in crate::container) struct Program(Vec<libc::sock_filter>);

impl Program {
    /// The one of all containers; made by the first who asks.
    pub(in crate::container) fn load() -> io::Result<Self> {
        match fs::read(FILE) {
            Ok(program) => Self::parse(&program),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let program = compile(&super::profile().map_err(io::Error::other)?)?;
                // Who finds none makes one, so it does not matter if there is no room.
                let _ = keep(&program);
                Self::parse(&program)
            }
            Err(error) => Err(error),
        }
    }

    fn parse(program: &[u8]) -> io::Result<Self> {
        let (instructions, rest) = program.as_chunks::<INSTRUCTION>();
        if instructions.is_empty() || !rest.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the filter of system calls is cut short",
            ));
        }
        let instruction = |[a, b, jt, jf, k @ ..]: [u8; INSTRUCTION]| libc::sock_filter {
            code: u16::from_ne_bytes([a, b]),
            jt,
            jf,
            k: u32::from_ne_bytes(k),
        };
        Ok(Self(instructions.iter().copied().map(instruction).collect()))
    }

    /// Puts it on this thread, for good. It must have given up gaining privileges before ("no new privileges").
    pub(in crate::container) fn install(&self) -> io::Result<()> {
        let mut instructions = self.0.clone();
        let program = libc::sock_fprog {
            len: instructions.len().try_into().map_err(io::Error::other)?,
            filter: instructions.as_mut_ptr(),
        };
        let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
        // SAFETY: the kernel copies the program, which is there for the call and as long as it says.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Keeps a program for others; it is there whole or not at all.
fn keep(program: &[u8]) -> io::Result<()> {
    // Its own name for each: several may be the first at the same time.
    let file = format!("{FILE}.{}", std::process::id());
    let kept = fs::write(&file, program).and_then(|()| fs::rename(&file, FILE));
    if kept.is_err() {
        let _ = fs::remove_file(&file);
    }
    kept
}

/// Compiles a profile.
fn compile(profile: &LinuxSeccomp) -> io::Result<Vec<u8>> {
    let filter = filter(profile).map_err(io::Error::other)?;
    let mut file = File::from(memfd_create(c"seccomp", MemfdFlags::CLOEXEC)?);
    filter.export_bpf(&file).map_err(io::Error::other)?;
    file.rewind()?;
    let mut program = Vec::new();
    file.read_to_end(&mut program)?;
    Ok(program)
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
                ("vsock, with more", libc::SYS_socket, 1 << 32 | i64::from(libc::AF_VSOCK), 1),
                ("the kernel's ciphers", libc::SYS_socket, i64::from(libc::AF_ALG), 5),
                ("netlink", libc::SYS_socket, i64::from(libc::AF_NETLINK), i64::from(libc::SOCK_RAW)),
                ("a personality", libc::SYS_personality, 0xFFFF_FFFF, 0),
                ("another personality", libc::SYS_personality, 0x4_0000, 0),
            ]
            .map(|(name, number, first, second)| (name, call(number, first, second)))
        };
        let under = move || [under().as_slice(), &[("socketcall of 32 bits", socketcall())]].concat();
        std::thread::spawn(under).join().unwrap()
    }

    /// The error of `socketcall(SYS_SOCKET, NULL)`, as a program of 32 bits calls it, or 0.
    fn socketcall() -> i32 {
        let result: i64;
        // SAFETY: the kernel reads from address 0 at most, and changes no register but rax and, of the upper ones, r8 to
        // r11. rbx belongs to the compiler, so it is put back.
        unsafe {
            std::arch::asm!(
                "xchg rbx, {one}",
                "int 0x80",
                "xchg rbx, {one}",
                one = inout(reg) 1_i64 => _,
                inlateout("rax") 102_i64 => result,
                in("rcx") 0,
                lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
            );
        }
        i32::try_from(-result).unwrap_or_default()
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
    const EXPECTED: [(&str, i32); 14] = [
        ("clone", 0),
        ("clone of a user namespace", libc::EPERM),
        ("clone of a network", libc::EPERM),
        ("clone3", libc::ENOSYS),
        ("unshare", libc::EPERM),
        ("mount", libc::EPERM),
        ("a socket", 0),
        ("vsock", libc::EPERM),
        ("vsock, with more", libc::EPERM),
        ("the kernel's ciphers", libc::EPERM),
        ("netlink", 0),
        ("a personality", 0),
        ("another personality", libc::EPERM),
        ("socketcall of 32 bits", libc::ENOSYS),
    ];

    #[test]
    fn the_program_filters() {
        let program = Program::parse(&compile(&profile().unwrap()).unwrap()).unwrap();
        assert_eq!(answers(move || program.install().unwrap()), EXPECTED);
    }

    #[test]
    fn a_program_that_was_cut_short_is_none() {
        let program = compile(&profile().unwrap()).unwrap();
        for length in [0, 1, program.len() - 1] {
            assert!(Program::parse(&program[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn the_runtime_filters_alike() {
        let profile = profile().unwrap();
        assert_eq!(answers(move || assert_eq!(initialize_seccomp(&profile).unwrap(), None)), EXPECTED);
    }
}
