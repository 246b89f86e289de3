//! What a thread does that its system call filter stops: it says which call it was, and dies of
//! `SIGSYS`.
//!
//! The kernel sends the signal in place of the call and takes its handler away as it does so. The
//! handler writes one line and steps back to the call, which is stopped again, and then the signal
//! has its default effect: also for the first process of a PID namespace, which no signal of its
//! own making would end.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::ptr;

thread_local! {
    /// The filter that the thread has taken last.
    static FILTER: Cell<&'static str> = const { Cell::new("none") };
}

/// Bytes of the instruction that makes a system call.
const CALL_BYTES: i64 = 2;

/// Installs the handler for the whole process.
pub fn install() -> io::Result<()> {
    // SAFETY: all zeroes is a valid sigaction: no handler, an empty mask, no flags.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = (on_violation as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void))
        as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_NODEFER | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and makes only calls that are
    // safe in one.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Remembers which filter the calling thread is about to take.
pub(crate) fn confined_as(filter: &'static str) {
    FILTER.set(filter);
}

extern "C" fn on_violation(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    const SYS_SECCOMP: c_int = 1;
    // SAFETY: for a handler with SA_SIGINFO the kernel passes what it says about the signal.
    let info = unsafe { &*info };
    if info.si_code != SYS_SECCOMP {
        return;
    }
    // SAFETY: for a handler with SA_SIGINFO the kernel passes the interrupted thread's context,
    // which nobody else has.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    // As it was when the call was made: the number is in rax again, rip is behind the instruction.
    let [Some(number), Some(instruction)] =
        [libc::REG_RAX, libc::REG_RIP].map(|name| usize::try_from(name).ok())
    else {
        return;
    };
    let mut line = Line::default();
    line.push(b"husk-vmm: a thread with the filter ");
    line.push(FILTER.get().as_bytes());
    line.push(b" made system call ");
    line.push_number(registers[number].unsigned_abs());
    line.push(b"\n");
    let stderr = io::stderr();
    // There is nobody else to tell.
    let _written = rustix::io::write(stderr.as_fd(), line.bytes());
    registers[instruction] -= CALL_BYTES;
}

/// A line of text, put together without memory of the heap's. What is too much is cut.
#[derive(Debug)]
struct Line {
    text: [u8; 96],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            text: [0; 96],
            length: 0,
        }
    }
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for (to, from) in self.text.iter_mut().skip(self.length).zip(text) {
            *to = *from;
            self.length += 1;
        }
    }

    fn push_number(&mut self, number: u64) {
        if number >= 10 {
            self.push_number(number / 10);
        }
        // Less than ten.
        let digit = u8::try_from(number % 10).unwrap_or_default();
        self.push(&[b'0' + digit]);
    }

    fn bytes(&self) -> &[u8] {
        self.text.get(..self.length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_numbers_and_an_end() {
        let mut line = Line::default();
        for number in [0, 9, 10, 435, u64::MAX] {
            line.push_number(number);
            line.push(b" ");
        }
        assert_eq!(line.bytes(), b"0 9 10 435 18446744073709551615 ");
        line.push(&[b'x'; 200]);
        assert_eq!(line.bytes().len(), 96);
    }
}
