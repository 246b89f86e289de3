//! Capabilities by name (pure).
//!
//! One that no kernel knows cannot be granted: the specification asks for a warning, not for an error, so that it is left out of the
//! JSON before that is read.

use oci_spec::runtime::Capability;
use serde::Deserialize as _;
use serde_json::Value;

/// Removes unknown names from the capability sets of an OCI `process`; returns them.
pub(super) fn drop_unknown(process: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let sets = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()) {
        let Some(names) = set.as_array_mut() else {
            continue;
        };
        names.retain(|name| {
            let known = !name.is_string() || Capability::deserialize(name).is_ok();
            if let (false, Some(name)) = (known, name.as_str()) {
                unknown.push(name.to_owned());
            }
            known
        });
    }
    unknown.sort();
    unknown.dedup();
    unknown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_nobody_knows_is_left_out() {
        let mut process = json!({"capabilities": {
            "bounding": ["CAP_KILL", "CAP_HUSK"], "effective": ["CAP_HUSK"], "ambient": [7]
        }});
        assert_eq!(drop_unknown(&mut process), ["CAP_HUSK"]);
        assert_eq!(
            process,
            json!({"capabilities": {"bounding": ["CAP_KILL"], "effective": [], "ambient": [7]}})
        );
    }
}
