//! What a bundle says of its VM: the configuration's `vm` section and annotations (pure).
//!
//! The section is read apart from the rest of the configuration: its `hwConfig` is newer than most libraries, and a section
//! that only gives sizes has no kernel. Runtime specification 1.3, `config-vm.md`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::SpecError;
use super::refuse::refused;

/// The annotations for memory, MiB: the first that is there counts.
const MEMORY_ANNOTATIONS: [&str; 2] = [
    "io.husk.memory",
    "io.katacontainers.config.hypervisor.default_memory",
];

/// The annotations for the number of vCPUs.
const VCPUS_ANNOTATIONS: [&str; 2] = [
    "io.husk.vcpus",
    "io.katacontainers.config.hypervisor.default_vcpus",
];

/// The annotations for the memory, MiB, that a VM can grow to. Kata's 0 stands for a default.
const MEMORY_MAX_ANNOTATIONS: [&str; 2] = [
    "io.husk.max-memory",
    "io.katacontainers.config.hypervisor.default_maxmemory",
];

/// The same for vCPUs.
const VCPUS_MAX_ANNOTATIONS: [&str; 2] = [
    "io.husk.max-vcpus",
    "io.katacontainers.config.hypervisor.default_maxvcpus",
];

const MIB: u64 = 1024 * 1024;

/// Only to find the section.
#[derive(Deserialize)]
struct Sections {
    vm: Option<Section>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Section {
    hypervisor: Option<Value>,
    kernel: Option<Value>,
    image: Option<Value>,
    hw_config: HwConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HwConfig {
    vcpus: Option<i64>,
    /// Bytes.
    memory: Option<i64>,
    /// Device trees and pieces of the host's hardware.
    #[serde(flatten)]
    hardware: BTreeMap<String, Value>,
}

/// The size that somebody asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) memory_mib: Option<u32>,
    pub(crate) memory_max_mib: Option<u32>,
    pub(crate) vcpus: Option<u8>,
    pub(crate) vcpus_max: Option<u8>,
}

/// The size that the section of `config.json` asks for, and whether there is a section at all.
pub(super) fn section(config: &[u8]) -> Result<Option<Asked>, SpecError> {
    let sections: Sections = serde_json::from_slice(config).map_err(SpecError::Parse)?;
    let Some(section) = sections.vm else {
        return Ok(None);
    };
    let ours = [
        ("vm.hypervisor", section.hypervisor.is_some()),
        ("vm.kernel", section.kernel.is_some()),
        ("vm.image", section.image.is_some()),
    ];
    if let Some((name, _)) = ours.iter().find(|(_, there)| *there) {
        return Err(refused(
            *name,
            "husk's configuration file says what a VM is made of",
        ));
    }
    if let Some(name) = section.hw_config.hardware.keys().next() {
        return Err(refused(
            format!("vm.hwConfig.{name}"),
            "a VM has husk's own devices only",
        ));
    }
    let HwConfig { memory, vcpus, .. } = section.hw_config;
    let mib = |bytes: &i64| u32::try_from(u64::try_from(*bytes).ok()?.div_ceil(MIB)).ok();
    let count = |count: &i64| u8::try_from(*count).ok();
    Ok(Some(Asked {
        memory_mib: number("vm.hwConfig.memory", memory.as_ref(), mib)?,
        vcpus: number("vm.hwConfig.vcpus", vcpus.as_ref(), count)?,
        ..Asked::default()
    }))
}

/// The size that annotations ask for; what they do not say is as in `section`.
pub(super) fn annotated(
    annotations: &BTreeMap<String, String>,
    section: Asked,
) -> Result<Asked, SpecError> {
    let annotation = |key| (key, annotations.get(key).map(String::as_str));
    let [memory, kata_memory] = MEMORY_ANNOTATIONS.map(annotation);
    let [vcpus, kata_vcpus] = VCPUS_ANNOTATIONS.map(annotation);
    let [memory_max, kata_memory_max] = MEMORY_MAX_ANNOTATIONS.map(annotation);
    let [vcpus_max, kata_vcpus_max] = VCPUS_MAX_ANNOTATIONS.map(annotation);
    let given = |text: &&str| *text != "0";
    let mib = |text: &str| text.parse().ok();
    let count = |text: &str| text.parse().ok();
    Ok(Asked {
        memory_mib: number(memory.0, memory.1, mib)?
            .or(section.memory_mib)
            .or(number(kata_memory.0, kata_memory.1, mib)?),
        vcpus: number(vcpus.0, vcpus.1, count)?
            .or(section.vcpus)
            .or(number(kata_vcpus.0, kata_vcpus.1, whole)?),
        memory_max_mib: number(memory_max.0, memory_max.1, mib)?.or(number(
            kata_memory_max.0,
            kata_memory_max.1.filter(given),
            mib,
        )?),
        vcpus_max: number(vcpus_max.0, vcpus_max.1, count)?.or(number(
            kata_vcpus_max.0,
            kata_vcpus_max.1.filter(given),
            count,
        )?),
    })
}

/// Kata's number of vCPUs may have a fraction; a part of one is one.
fn whole(text: &str) -> Option<u8> {
    let (digits, fraction) = text.split_once('.').unwrap_or((text, ""));
    let count: u8 = digits.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part = fraction.bytes().any(|byte| byte != b'0');
    count.checked_add(u8::from(part))
}

/// A positive number, if there is anything under this name.
fn number<T: ToString + ?Sized, N: From<u8> + PartialOrd>(
    name: &str,
    value: Option<&T>,
    parse: impl FnOnce(&T) -> Option<N>,
) -> Result<Option<N>, SpecError> {
    let Some(value) = value else {
        return Ok(None);
    };
    match parse(value) {
        Some(number) if number >= N::from(1) => Ok(Some(number)),
        _ => Err(SpecError::Number {
            name: name.to_owned(),
            value: value.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(vm: &str) -> Result<Option<Asked>, String> {
        let config = format!("{{\"ociVersion\": \"1.3.0\", \"vm\": {vm}}}");
        section(config.as_bytes()).map_err(|error| error.to_string())
    }

    fn annotations(pairs: &[(&str, &str)]) -> Result<Asked, String> {
        let pairs = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let section = Asked {
            memory_mib: Some(300),
            ..Asked::default()
        };
        annotated(&pairs, section).map_err(|error| error.to_string())
    }

    #[test]
    fn section_gives_sizes() {
        let asked = Asked {
            memory_mib: Some(1024),
            vcpus: Some(3),
            ..Asked::default()
        };
        assert_eq!(
            of(r#"{"hwConfig": {"vcpus": 3, "memory": 1073741824}}"#),
            Ok(Some(asked))
        );
        assert_eq!(of("{}"), Ok(Some(Asked::default())));
        assert_eq!(section(b"{}").unwrap(), None);
    }

    #[test]
    fn section_cannot_name_parts() {
        let error = of(r#"{"kernel": {"path": "/k"}}"#).unwrap_err();
        assert!(error.starts_with("vm.kernel cannot be used"), "{error}");
        let error = of(r#"{"hwConfig": {"irqs": [3]}}"#).unwrap_err();
        assert!(
            error.starts_with("vm.hwConfig.irqs cannot be used"),
            "{error}"
        );
    }

    #[test]
    fn annotations_of_husk_win_over_the_section_and_that_over_katas() {
        let kata = "io.katacontainers.config.hypervisor.default_memory";
        let asked = annotations(&[(kata, "700")]).unwrap();
        assert_eq!(asked.memory_mib, Some(300));
        let asked = annotations(&[(kata, "700"), ("io.husk.memory", "900")]).unwrap();
        assert_eq!(asked.memory_mib, Some(900));
    }

    #[test]
    fn a_part_of_a_vcpu_is_one() {
        let kata = "io.katacontainers.config.hypervisor.default_vcpus";
        let vcpus = |text| annotations(&[(kata, text)]).map(|asked| asked.vcpus);
        assert_eq!(vcpus("2"), Ok(Some(2)));
        assert_eq!(vcpus("2.0"), Ok(Some(2)));
        assert_eq!(vcpus("0.5"), Ok(Some(1)));
        assert!(vcpus("0").is_err() && vcpus("-1").is_err() && vcpus("1.x").is_err());
    }

    #[test]
    fn katas_maximum_of_0_is_none() {
        let key = "io.katacontainers.config.hypervisor.default_maxmemory";
        let most = |pairs: &[(&str, &str)]| annotations(pairs).map(|asked| asked.memory_max_mib);
        assert_eq!(most(&[(key, "0")]), Ok(None));
        assert_eq!(most(&[(key, "900")]), Ok(Some(900)));
        assert_eq!(
            most(&[(key, "900"), ("io.husk.max-memory", "800")]),
            Ok(Some(800))
        );
        assert!(most(&[("io.husk.max-memory", "0")]).is_err());
    }

    #[test]
    fn senseless_numbers_are_named() {
        let error = annotations(&[("io.husk.vcpus", "300")]).unwrap_err();
        assert_eq!(
            error,
            "io.husk.vcpus is \"300\", not a number of a possible size"
        );
        assert!(of(r#"{"hwConfig": {"memory": -1}}"#).is_err());
    }
}
