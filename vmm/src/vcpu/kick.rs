//! Making a thread leave `KVM_RUN`: a signal whose handler sets `immediate_exit` in the thread's own `kvm_run`.
//!
//! A signal alone would be lost when it comes just before the call; with the flag set, the call returns at once. Since the handler runs on the
//! thread itself, one order covers both cases: the caller changes what it wants, then kicks.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr;

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU this thread runs, null in all other threads.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// Installs the handler for the whole process.
pub fn install() -> Result<(), errno::Error> {
    register_signal_handler(signal(), on_kick)
}

/// The signal that kicks.
#[must_use]
pub fn signal() -> c_int {
    SIGRTMIN()
}

/// A vCPU that a kick to the thread that has it makes leave the guest.
#[derive(Debug)]
pub struct Kickable {
    vcpu: VcpuFd,
    /// It stays on its thread.
    _thread: PhantomData<*const ()>,
}

impl Kickable {
    /// Makes the calling thread, which alone runs `vcpu`, kickable.
    pub fn new(mut vcpu: VcpuFd) -> Self {
        let flag = ptr::addr_of_mut!(vcpu.get_kvm_run().immediate_exit);
        IMMEDIATE_EXIT.set(flag);
        Self {
            vcpu,
            _thread: PhantomData,
        }
    }

    /// `KVM_RUN`.
    pub fn run(&mut self) -> Result<VcpuExit<'_>, errno::Error> {
        self.vcpu.run()
    }

    /// Forgets kicks; after `run` was interrupted by one.
    pub fn clear(&mut self) {
        self.vcpu.set_kvm_immediate_exit(0);
    }
}

impl Drop for Kickable {
    /// Before the vCPU goes, and the mapping in which the flag lies.
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

extern "C" fn on_kick(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the flag lies in the mapping of the vCPU that this thread's `Kickable` owns,
        // which nulls the pointer before that goes; the kernel and this thread alone access it, and
        // one byte cannot tear.
        unsafe { flag.write_volatile(1) };
    }
}
