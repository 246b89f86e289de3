//! `hooks.startContainer`: programs of the container that run before its own (pure).
//!
//! The other hooks are the host's. See the OCI runtime specification, "POSIX-platform Hooks".

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::PlanError;

/// The annotation that says where the bundle is on the host; hooks are told.
const BUNDLE: &str = "husk.bundle";

/// What is run before the program, and what it is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StartHooks {
    pub(crate) hooks: Vec<Hook>,
    version: String,
    id: String,
    annotations: HashMap<String, String>,
}

/// One hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hook {
    /// Absolute, in the container.
    pub(crate) path: PathBuf,
    /// The program's own name first; empty: the path.
    pub(crate) args: Vec<String>,
    /// `NAME=value`; there are no others. None: those of the container's process.
    pub(crate) env: Option<Vec<String>>,
    pub(crate) timeout_s: Option<u32>,
}

impl StartHooks {
    /// The container's state as JSON, for a hook's standard input. `pid` is the process's id in the container.
    pub(crate) fn state(&self, pid: i32) -> String {
        let bundle = self.annotations.get(BUNDLE).map_or("", String::as_str);
        let mut state = json!({
            "ociVersion": self.version,
            "id": self.id,
            "status": "created",
            "pid": pid,
            "bundle": bundle,
        });
        if !self.annotations.is_empty() {
            state["annotations"] = json!(self.annotations);
        }
        state.to_string()
    }
}

/// The hooks of container `id`; none where there are none.
pub(super) fn read(spec: &Spec, id: &str) -> Result<Option<StartHooks>, PlanError> {
    let given = spec.hooks().as_ref();
    let given = given.and_then(|hooks| hooks.start_container().as_deref());
    let hooks = given
        .unwrap_or_default()
        .iter()
        .map(hook)
        .collect::<Result<Vec<_>, _>>()?;
    Ok((!hooks.is_empty()).then(|| StartHooks {
        hooks,
        version: spec.version().clone(),
        id: id.to_owned(),
        annotations: spec.annotations().clone().unwrap_or_default(),
    }))
}

fn hook(given: &oci_spec::runtime::Hook) -> Result<Hook, PlanError> {
    let invalid = |what, value: String| Err(PlanError::Invalid { what, value });
    if !given.path().is_absolute() {
        return invalid(
            "hooks.startContainer.path",
            given.path().display().to_string(),
        );
    }
    let timeout_s = match given.timeout() {
        None => None,
        Some(timeout) => match u32::try_from(timeout) {
            Ok(timeout @ 1..) => Some(timeout),
            _ => return invalid("hooks.startContainer.timeout", timeout.to_string()),
        },
    };
    let (args, env) = (
        given.args().clone().unwrap_or_default(),
        given.env().clone(),
    );
    let mut texts = args.iter().chain(env.iter().flatten());
    if let Some(text) = texts.find(|text| text.contains('\0')) {
        return invalid("hooks.startContainer", text.clone());
    }
    Ok(Hook {
        path: given.path().clone(),
        args,
        env,
        timeout_s,
    })
}
