//! What has no safe face: I/O ports, and sockets of the `AF_VSOCK` family (vsock(7)).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Any address of this machine, to listen at.
pub(crate) const CID_ANY: u32 = libc::VMADDR_CID_ANY;

/// Writes a byte to an I/O port. Without access to the port this ends the process by SIGSEGV.
pub(crate) fn out(port: u16, byte: u8) {
    // SAFETY: changes no memory; what the port does to the machine is what is asked for.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack, preserves_flags));
    }
}

/// Asks for access to a port.
pub(crate) fn ioperm(port: u16) -> io::Result<()> {
    // SAFETY: ioperm(2) changes what this thread may do, and touches no memory.
    checked(unsafe { libc::ioperm(port.into(), 1, 1) }).map(drop)
}

/// Asks for access to all ports.
pub(crate) fn iopl() -> io::Result<()> {
    // SAFETY: iopl(2) changes what this thread may do, and touches no memory.
    checked(unsafe { libc::iopl(3) }).map(drop)
}

/// Makes a system call with zeros for its arguments.
pub(crate) fn call(number: libc::c_long) -> io::Result<libc::c_long> {
    // SAFETY: no argument is an address of this process's memory.
    let result = unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// Lets a signal interrupt what this process waits for, in a moment and then again and again: it
/// may not wait yet.
pub(crate) fn alarm_soon() -> io::Result<()> {
    extern "C" fn heard(_: libc::c_int) {}
    let handler = heard as extern "C" fn(libc::c_int);
    // SAFETY: all zeros are a sigaction without flags, so that calls are not taken up again.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    // SAFETY: the handler touches nothing, and `action` is read during the call only.
    checked(unsafe { libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()) })?;
    let moment = libc::timeval {
        tv_sec: 0,
        tv_usec: 200_000,
    };
    let timer = libc::itimerval {
        it_interval: moment,
        it_value: moment,
    };
    set_timer(&timer)
}

/// No more signals.
pub(crate) fn no_alarm() -> io::Result<()> {
    let never = libc::timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    set_timer(&libc::itimerval {
        it_interval: never,
        it_value: never,
    })
}

fn set_timer(timer: &libc::itimerval) -> io::Result<()> {
    // SAFETY: the timer is read during the call only.
    checked(unsafe { libc::setitimer(libc::ITIMER_REAL, timer, std::ptr::null_mut()) }).map(drop)
}

/// Connects to a port of a context.
pub(crate) fn connect(cid: u32, port: u32) -> io::Result<File> {
    let socket = vsock()?;
    let (address, length) = (address(cid, port)?, length()?);
    // SAFETY: `address` is a sockaddr_vm of the length given, read during the call only.
    checked(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket.into())
}

/// Listens at a port.
pub(crate) fn listen(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let socket = vsock()?;
    let (address, length) = (address(cid, port)?, length()?);
    // SAFETY: `address` is a sockaddr_vm of the length given, read during the call only.
    checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // SAFETY: listen(2) touches no memory.
    checked(unsafe { libc::listen(socket.as_raw_fd(), 1) })?;
    Ok(socket)
}

fn length() -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(size_of::<libc::sockaddr_vm>()).map_err(io::Error::other)
}

fn vsock() -> io::Result<OwnedFd> {
    // SAFETY: socket(2) touches no memory.
    let fd = checked(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0) })?;
    // SAFETY: the kernel has opened the descriptor for this process, which has not given it to anybody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> io::Result<libc::sockaddr_vm> {
    Ok(libc::sockaddr_vm {
        svm_family: u16::try_from(libc::AF_VSOCK).map_err(io::Error::other)?,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    })
}

fn checked(result: i32) -> io::Result<i32> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
