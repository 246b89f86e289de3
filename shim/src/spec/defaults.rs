//! Fields that may be missing (pure).
//!
//! Engines and runc are written in Go, whose JSON reader takes a field that is missing or null for its zero value. The types
//! that are read here demand some of these fields, so they are put in before.

use serde_json::{Map, Value, json};

/// Completes an OCI `process`: without a user it is root's.
pub(super) fn complete_process(process: &mut Value) {
    if let Some(process) = process.as_object_mut() {
        complete(process, "user", || json!({}));
    }
}

/// Completes an OCI configuration: its process, and the arguments of its seccomp rules.
pub(super) fn complete_config(config: &mut Map<String, Value>) {
    if let Some(process) = config.get_mut("process") {
        complete_process(process);
    }
    let rules = config
        .get_mut("linux")
        .and_then(|linux| linux.pointer_mut("/seccomp/syscalls"))
        .and_then(Value::as_array_mut);
    let arguments = rules
        .into_iter()
        .flatten()
        .filter_map(|rule| rule.get_mut("args")?.as_array_mut());
    for argument in arguments.flatten().filter_map(Value::as_object_mut) {
        complete(argument, "index", || 0.into());
        complete(argument, "value", || 0.into());
    }
}

fn complete(object: &mut Map<String, Value>, field: &str, zero: impl FnOnce() -> Value) {
    if object.get(field).is_none_or(Value::is_null) {
        object.insert(field.to_owned(), zero());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_null_are_zero_and_what_is_there_stays() {
        for process in [json!({}), json!({"user": null})] {
            let mut config = Map::from_iter([("process".to_owned(), process)]);
            complete_config(&mut config);
            assert_eq!(config["process"], json!({"user": {}}));
        }
        let mut process = json!({"user": {"uid": 5}});
        complete_process(&mut process);
        assert_eq!(process, json!({"user": {"uid": 5}}));
    }

    #[test]
    fn arguments_of_rules_may_lack_numbers() {
        let rules = json!({"seccomp": {"syscalls": [
            {"names": ["a"], "args": [{"op": "SCMP_CMP_EQ"}, {"index": 1, "value": 2}]},
            {"names": ["b"], "args": null},
        ]}});
        let mut config = Map::from_iter([("linux".to_owned(), rules)]);
        complete_config(&mut config);
        assert_eq!(
            config["linux"]["seccomp"]["syscalls"][0]["args"],
            json!([{"op": "SCMP_CMP_EQ", "index": 0, "value": 0}, {"index": 1, "value": 2}])
        );
    }

    #[test]
    fn what_is_no_object_is_left_to_the_reader() {
        let mut process = json!(7);
        complete_process(&mut process);
        assert_eq!(process, json!(7));
    }
}
