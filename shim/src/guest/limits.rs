//! How much a guest may say.
//!
//! An honest agent stays far below each of these. Together they bound what one sandbox's guest can make its supervisor hold: one reply for each
//! call that is under way on the host, each of [`REPLY_MAX_BYTES`], and [`EVENTS_AHEAD_MAX`] events.

/// A reply: the largest frame of ttrpc. The list of [`PROCESSES_MAX`] processes with 2 MiB of arguments, where an agent stops, fits.
pub const REPLY_MAX_BYTES: usize = 4 * 1024 * 1024;

/// An event: two ids and four numbers.
pub const EVENT_MAX_BYTES: usize = 1024;

/// Events that are read and not acted on yet. The agent's connection is not read until there are fewer. Less than ttrpc's queue for a stream,
/// which therefore never fills, so that events keep their order.
pub const EVENTS_AHEAD_MAX: usize = 64;

/// The name of a container or an exec; longer ones are refused when they are made.
pub const ID_MAX_BYTES: usize = 255;

/// The agent's words for an error: a path and what is wrong with it.
pub const ERROR_MAX_BYTES: usize = 2 * 1024;

/// Processes of a container: an agent tells of no more.
pub const PROCESSES_MAX: usize = 8 * 1024;

/// Arguments of one process that are passed on, as an agent reads 4 KiB of them; the others are left out.
pub const ARGUMENTS_MAX: usize = 4 * 1024;

/// Arguments of all processes of a reply.
pub const ALL_ARGUMENTS_MAX: usize = 256 * 1024;

/// One argument of a process; the rest of it is left out. `ps` shows a line for each process.
pub const ARGUMENT_MAX_BYTES: usize = 4 * 1024;

/// The name of a program: 15 bytes, of which each may have become a character of 3.
pub const PROGRAM_MAX_BYTES: usize = 45;

/// The name of a terminal, `pts/0`.
pub const TERMINAL_MAX_BYTES: usize = 32;

/// Files of a cgroup: some thirty, and three for each size of huge pages.
pub const FILES_MAX: usize = 128;

/// The name of such a file.
pub const FILE_NAME_MAX_BYTES: usize = 64;

/// The text of such a file, of which an agent reads no more: `memory.stat` has some 2 KiB, `io.stat` a line for each device.
pub const FILE_MAX_BYTES: usize = 64 * 1024;

/// Lines in a log that a guest can cause at will, in [`LOG_PERIOD_S`] and of one kind.
pub const LOG_LINES_MAX: u32 = 10;

/// See [`LOG_LINES_MAX`].
pub const LOG_PERIOD_S: u64 = 60;
