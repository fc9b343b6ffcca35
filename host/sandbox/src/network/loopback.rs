//! The loopback of a pod's namespace on this machine: container engines connect to it for `kubectl port-forward`, but
//! the pod's services are in the VM.
//!
//! One socket hears the connections to every port of it: a program of a few instructions, attached to the namespace,
//! leads them there (BPF_PROG_TYPE_SK_LOOKUP, Linux 5.9). It is gone when its descriptors are closed, however that
//! happens.

use std::io;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use tokio::net::{TcpListener, TcpStream};

/// Hears every TCP connection to `127.0.0.0/8` in a namespace.
#[derive(Debug)]
pub struct Loopback {
    listener: TcpListener,
    _attached: OwnedFd,
}

impl Loopback {
    /// Must be called in a tokio runtime's context.
    pub(super) fn new(heard: Heard) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::from_std(heard.listener)?, _attached: heard.attached })
    }

    /// The next connection, and the port that it was meant for.
    ///
    /// # Errors
    /// If this machine has no descriptors left, or the like; later ones may come all the same.
    pub async fn accept(&self) -> io::Result<(TcpStream, u16)> {
        let (connection, _) = self.listener.accept().await?;
        let port = connection.local_addr()?.port();
        Ok((connection, port))
    }
}

/// A listener to which a namespace leads all connections.
pub(super) struct Heard {
    listener: StdListener,
    attached: OwnedFd,
}

impl Heard {
    /// For the thread that is in it.
    pub(super) fn in_namespace(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let sockets = bpf::map_of(listener.as_fd())?;
        let program = bpf::load(&program(sockets.as_raw_fd()))?;
        let attached = bpf::attach(program.as_fd(), namespace)?;
        Ok(Self { listener, attached })
    }
}

/// Looks the one socket of a map up and hands it the connection, if that is TCP to `127.0.0.0/8`.
fn program(map: i32) -> Vec<u64> {
    use bpf::{Op, R0, R1, R2, R3, R6, R7, R10};
    // Offsets in `struct bpf_sk_lookup`.
    const FAMILY: i16 = 8;
    const PROTOCOL: i16 = 12;
    const LOCAL_IP4: i16 = 40;
    bpf::encode(&[
        Op::Move(R6, R1),
        Op::Load(R2, R6, FAMILY),
        Op::EndUnless(R2, libc::AF_INET),
        Op::Load(R2, R6, PROTOCOL),
        Op::EndUnless(R2, libc::IPPROTO_TCP),
        Op::Load(R2, R6, LOCAL_IP4),
        Op::FromBigEndian(R2),
        Op::ShiftRight(R2, 24),
        Op::EndUnless(R2, 127),
        Op::StoreZero(R10, -4),
        Op::LoadMap(R1, map),
        Op::Move(R2, R10),
        Op::Add(R2, -4),
        Op::Call(bpf::MAP_LOOKUP),
        Op::EndIf(R0, 0),
        Op::Move(R7, R0),
        Op::Move(R1, R6),
        Op::Move(R2, R7),
        Op::Set(R3, 0),
        Op::Call(bpf::SK_ASSIGN),
        Op::Move(R1, R7),
        Op::Call(bpf::SK_RELEASE),
    ])
}

/// The little of bpf(2) that this takes.
mod bpf {
    use super::*;

    const MAP_CREATE: libc::c_int = 0;
    const MAP_UPDATE: libc::c_int = 2;
    const PROG_LOAD: libc::c_int = 5;
    const LINK_CREATE: libc::c_int = 28;
    const SOCKMAP: u32 = 15;
    const SK_LOOKUP: u32 = 30;
    const SK_LOOKUP_ATTACH: u32 = 36;
    const LICENCE: &std::ffi::CStr = c"Apache-2.0";

    pub(super) const MAP_LOOKUP: i32 = 1;
    pub(super) const SK_RELEASE: i32 = 86;
    pub(super) const SK_ASSIGN: i32 = 124;
    const SK_PASS: i32 = 1;

    pub(super) const R0: u8 = 0;
    pub(super) const R1: u8 = 1;
    pub(super) const R2: u8 = 2;
    pub(super) const R3: u8 = 3;
    pub(super) const R6: u8 = 6;
    pub(super) const R7: u8 = 7;
    pub(super) const R10: u8 = 10;

    /// An instruction (Documentation/bpf/standardization/instruction-set.rst).
    #[derive(Clone, Copy)]
    pub(super) enum Op {
        Move(u8, u8),
        Set(u8, i32),
        Add(u8, i32),
        ShiftRight(u8, i32),
        /// From the network's order of bytes, 32 bits.
        FromBigEndian(u8),
        /// 32 bits from a register's address and an offset.
        Load(u8, u8, i16),
        /// 32 bits.
        StoreZero(u8, i16),
        LoadMap(u8, i32),
        Call(i32),
        EndIf(u8, i32),
        EndUnless(u8, i32),
    }

    /// The instructions, and those with which a program ends: whatever happened, the kernel goes on.
    pub(super) fn encode(code: &[Op]) -> Vec<u64> {
        let mut left: i16 = code.iter().map(|op| op.count()).sum();
        let mut all = Vec::new();
        for op in code {
            left -= op.count();
            all.extend(op.encode(left));
        }
        all.extend([instruction(0xb7, R0, 0, 0, SK_PASS), instruction(0x95, 0, 0, 0, 0)]);
        all
    }

    impl Op {
        fn count(self) -> i16 {
            if let Self::LoadMap(..) = self { 2 } else { 1 }
        }

        /// `left` instructions lie between this one and the end.
        fn encode(self, left: i16) -> Vec<u64> {
            match self {
                Self::Move(to, from) => vec![instruction(0xbf, to, from, 0, 0)],
                Self::Set(to, value) => vec![instruction(0xb7, to, 0, 0, value)],
                Self::Add(to, value) => vec![instruction(0x07, to, 0, 0, value)],
                Self::ShiftRight(to, bits) => vec![instruction(0x77, to, 0, 0, bits)],
                Self::FromBigEndian(of) => vec![instruction(0xdc, of, 0, 0, 32)],
                Self::Load(to, from, offset) => vec![instruction(0x61, to, from, offset, 0)],
                Self::StoreZero(to, offset) => vec![instruction(0x62, to, 0, offset, 0)],
                Self::LoadMap(to, map) => vec![instruction(0x18, to, 1, 0, map), 0],
                Self::Call(function) => vec![instruction(0x85, 0, 0, 0, function)],
                Self::EndIf(of, value) => vec![instruction(0x15, of, 0, left, value)],
                Self::EndUnless(of, value) => vec![instruction(0x55, of, 0, left, value)],
            }
        }
    }

    fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
        let registers = if cfg!(target_endian = "little") { to | from << 4 } else { from | to << 4 };
        let [low, high] = offset.to_ne_bytes();
        let [a, b, c, d] = value.to_ne_bytes();
        u64::from_ne_bytes([code, registers, low, high, a, b, c, d])
    }

    /// A map with one socket in it.
    pub(super) fn map_of(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        #[repr(C)]
        struct Create {
            kind: u32,
            key_bytes: u32,
            value_bytes: u32,
            entries: u32,
        }
        #[repr(C)]
        struct Update {
            map: u32,
            padding: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        // SAFETY: the kernel reads the structure, which has no pointers.
        let map = descriptor(unsafe {
            call(MAP_CREATE, &Create { kind: SOCKMAP, key_bytes: 4, value_bytes: 8, entries: 1 })
        }?);
        let (key, value) = (0_u32, u64::from(number(socket)));
        let update = Update {
            map: number(map.as_fd()),
            padding: 0,
            key: address(&raw const key),
            value: address(&raw const value),
            flags: 0,
        };
        // SAFETY: the kernel reads the structure and, at the addresses in it, as many bytes as the map's keys and
        // values have; both live until the call returns.
        unsafe { call(MAP_UPDATE, &update) }.map(|_| map)
    }

    pub(super) fn load(program: &[u64]) -> io::Result<OwnedFd> {
        #[repr(C)]
        struct Load {
            kind: u32,
            count: u32,
            instructions: u64,
            licence: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
            kernel_version: u32,
            flags: u32,
            name: [u8; 16],
            interface: u32,
            attach_type: u32,
        }
        let load = Load {
            kind: SK_LOOKUP,
            count: u32::try_from(program.len()).map_err(io::Error::other)?,
            instructions: address(program.as_ptr()),
            licence: address(LICENCE.as_ptr()),
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name: *b"sealpod\0\0\0\0\0\0\0\0\0",
            interface: 0,
            attach_type: SK_LOOKUP_ATTACH,
        };
        // SAFETY: the kernel reads the structure and, at the addresses in it, `count` instructions and a C string; both
        // live until the call returns.
        unsafe { call(PROG_LOAD, &load) }.map(descriptor)
    }

    /// Attaches a program to a network namespace for as long as what it gives is open.
    pub(super) fn attach(program: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        #[repr(C)]
        struct Attach {
            program: u32,
            target: u32,
            attach_type: u32,
            flags: u32,
        }
        let attach = Attach {
            program: number(program),
            target: number(namespace),
            attach_type: SK_LOOKUP_ATTACH,
            flags: 0,
        };
        // SAFETY: the kernel reads the structure, which has no pointers.
        unsafe { call(LINK_CREATE, &attach) }.map(descriptor)
    }

    /// # Safety
    /// The attributes must be those of the command: the kernel reads them, and what the addresses in them lead to.
    unsafe fn call<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
        // SAFETY: the kernel reads as many bytes as the structure has; the rest is the caller's promise.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            i32::try_from(result).map_err(io::Error::other)
        }
    }

    fn descriptor(number: i32) -> OwnedFd {
        // SAFETY: the kernel has just made it for this process, and nobody else knows of it.
        unsafe { OwnedFd::from_raw_fd(number) }
    }

    fn number(descriptor: BorrowedFd<'_>) -> u32 {
        // The numbers of open descriptors are not negative.
        descriptor.as_raw_fd().unsigned_abs()
    }

    fn address<T>(pointer: *const T) -> u64 {
        pointer as usize as u64
    }
}
