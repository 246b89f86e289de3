//! The socket by which a container's program says that it is ready, where runc has it (pure).

use agent_api::NOTIFY_MOUNT;
use oci_spec::runtime::Mount;

use super::Split;

/// Where the container finds its directory; in it is the socket that the agent makes.
const DIRECTORY: &str = "/run/notify";

impl Split {
    /// Gives the container such a socket.
    pub(crate) fn add_notify_socket(&mut self) {
        let mut mount = Mount::default();
        mount.set_destination(DIRECTORY.into());
        mount.set_typ(Some(NOTIFY_MOUNT.into()));
        mount.set_source(None);
        let options = ["nosuid", "noexec", "nodev", "ro"].map(String::from);
        mount.set_options(Some(options.into()));
        self.guest.mounts_mut().get_or_insert_default().push(mount);
        if let Some(process) = self.guest.process_mut() {
            let variable = format!("NOTIFY_SOCKET={DIRECTORY}/notify.sock");
            process.env_mut().get_or_insert_default().push(variable);
        }
    }
}
