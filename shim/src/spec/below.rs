//! Mounts below a recursive bind, which are the host's (pure).
//!
//! The guest's kernel mounts each when it is first looked at, and gives it the attributes of the mount that it is in. On a host it has
//! none of them but those for all mounts. So the agent is told where they are, and has them mounted before the bind gets its own.

use std::path::{Path, PathBuf};

use agent_api::{MOUNT_BELOW, SHARE_DIR};

use super::Split;

/// Places that are told of: a bound on what a start has to mount. What is below others has the attributes of its bind.
const PLACES_MAX: usize = 1024;

impl Split {
    /// Says for each bind of container `id` where in it something is mounted; those outside come first.
    pub(crate) fn add_mounts_below(&mut self, id: &str, below: &[Vec<PathBuf>]) {
        let mounts = Path::new(SHARE_DIR).join(id).join("mounts");
        let mut left = PLACES_MAX;
        for (number, places) in below.iter().enumerate() {
            let source = mounts.join(number.to_string());
            let mut all = self.guest.mounts_mut().iter_mut().flatten();
            let Some(mount) = all.find(|mount| mount.source().as_ref() == Some(&source)) else {
                continue;
            };
            let mut options = mount.options().clone().unwrap_or_default();
            // The specification is text; other names are not told of either.
            for place in places.iter().filter_map(|place| place.to_str()).take(left) {
                options.push(format!("{MOUNT_BELOW}{place}"));
                left -= 1;
            }
            mount.set_options(Some(options));
        }
    }
}
