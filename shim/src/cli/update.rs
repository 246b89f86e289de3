//! `husk update`: the limits of a container are changed while it lives, from options or from a file of OCI `linux.resources`.
//!
//! What is not said, or said with 0, stays. The VM grows and shrinks with the limits; a memory limit that it cannot give is refused.

use std::io::Read as _;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use serde_json::{Map, Value, json};

use super::Failure;
use super::foreground::block_on;
use super::record::{self, NOT_RUNNING};
use super::tasks::Task;
use crate::config::Options;
use crate::state::Status;

/// Change the limits of a container
///
/// Its VM grows and shrinks with them; more memory than that can have is refused.
#[derive(Debug, clap::Args)]
pub(super) struct UpdateArgs {
    /// Read the limits from FILE, or with - from standard input, as OCI linux.resources; other options are then ignored
    #[arg(short, long, value_name = "FILE")]
    resources: Option<String>,
    #[command(flatten)]
    limits: Limits,
    /// The container
    id: String,
}

#[derive(Debug, Default, clap::Args)]
struct Limits {
    /// Weight of input and output, 10 to 1000
    #[arg(long, value_name = "N")]
    blkio_weight: Option<String>,
    /// CPU period in microseconds
    #[arg(long, value_name = "US")]
    cpu_period: Option<String>,
    /// CPU time in microseconds per period, -1 for no limit
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_quota: Option<String>,
    /// CPU time in microseconds that may be saved up
    #[arg(long, value_name = "US")]
    cpu_burst: Option<String>,
    /// CPU weight relative to other containers, 2 to 262144
    #[arg(long, value_name = "N")]
    cpu_share: Option<String>,
    /// Not there: cgroups of version 2 have no realtime limits
    #[arg(long, value_name = "US")]
    cpu_rt_period: Option<String>,
    /// Not there: cgroups of version 2 have no realtime limits
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_rt_runtime: Option<String>,
    /// CPUs of the VM to use
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes of the VM to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// 1: get CPU time that nobody else wants
    #[arg(long, value_name = "0|1")]
    cpu_idle: Option<String>,
    /// Memory limit in bytes, or with a unit as in 512m, -1 for no limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<String>,
    /// Memory that is taken away last
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_reservation: Option<String>,
    /// Memory and swap together
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Processes the container may have
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pids_limit: Option<String>,
    /// Not there: a guest's CPUs have no cache allocation
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// Not there: a guest's CPUs have no bandwidth allocation
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
}

/// Changes them.
pub(super) fn run(options: &Options, args: &UpdateArgs) -> Result<ExitCode, Failure> {
    record::state(options, &args.id)?.expect_one_of(
        &[Status::Created, Status::Running, Status::Paused],
        NOT_RUNNING,
    )?;
    let resources = match &args.resources {
        Some(source) => read(source)?,
        None => args.limits.resources()?,
    };
    let json = serde_json::to_vec(&resources)?;
    block_on(async {
        let task = Task::connect(options, &args.id).await?;
        task.update(json)
            .await
            .with_context(|| format!("cannot update {}", args.id))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn read(source: &str) -> anyhow::Result<Value> {
    let mut text = String::new();
    if source == "-" {
        std::io::stdin()
            .read_to_string(&mut text)
            .context("cannot read standard input")?;
    } else {
        text = std::fs::read_to_string(source).with_context(|| format!("cannot read {source}"))?;
    }
    let resources: Value =
        serde_json::from_str(&text).with_context(|| format!("{source} is not JSON"))?;
    Ok(given(resources).unwrap_or_else(|| json!({})))
}

/// Without the members that are 0 or empty, which by convention of such a file are not given.
fn given(value: Value) -> Option<Value> {
    match value {
        Value::Object(members) => {
            let members: Map<_, _> = members
                .into_iter()
                .filter_map(|(name, value)| Some((name, given(value)?)))
                .collect();
            (!members.is_empty()).then_some(Value::Object(members))
        }
        Value::Null => None,
        Value::Number(number) if number.as_f64() == Some(0.0) => None,
        Value::String(text) if text.is_empty() => None,
        value => Some(value),
    }
}

impl Limits {
    /// As OCI `linux.resources`.
    fn resources(&self) -> anyhow::Result<Value> {
        if self.cpu_rt_period.is_some() || self.cpu_rt_runtime.is_some() {
            bail!(
                "--cpu-rt-period and --cpu-rt-runtime: cgroups of version 2 have no realtime limits"
            );
        }
        if self.l3_cache_schema.is_some() || self.mem_bw_schema.is_some() {
            bail!("--l3-cache-schema and --mem-bw-schema: a guest's CPUs have no Intel RDT");
        }
        let cpu = members([
            ("period", whole("cpu-period", self.cpu_period.as_ref())?),
            ("quota", number("cpu-quota", self.cpu_quota.as_ref())?),
            ("burst", whole("cpu-burst", self.cpu_burst.as_ref())?),
            ("shares", whole("cpu-share", self.cpu_share.as_ref())?),
            ("idle", number("cpu-idle", self.cpu_idle.as_ref())?),
            ("cpus", self.cpuset_cpus.clone().map(Value::from)),
            ("mems", self.cpuset_mems.clone().map(Value::from)),
        ]);
        let reservation = self.memory_reservation.as_ref();
        let memory = members([
            ("limit", size("memory", self.memory.as_ref())?),
            ("reservation", size("memory-reservation", reservation)?),
            ("swap", size("memory-swap", self.memory_swap.as_ref())?),
        ]);
        let pids = members([("limit", number("pids-limit", self.pids_limit.as_ref())?)]);
        let weight = whole("blkio-weight", self.blkio_weight.as_ref())?;
        let all = members([
            ("cpu", cpu),
            ("memory", memory),
            ("pids", pids),
            ("blockIO", members([("weight", weight)])),
        ]);
        Ok(all.unwrap_or_else(|| json!({})))
    }
}

/// An object of what is there; None when nothing is.
fn members<const N: usize>(members: [(&str, Option<Value>); N]) -> Option<Value> {
    let members: Map<_, _> = members
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect();
    (!members.is_empty()).then_some(Value::Object(members))
}

fn whole(name: &str, text: Option<&String>) -> anyhow::Result<Option<Value>> {
    parsed(name, text, |text| text.parse::<u64>().ok().map(Value::from))
}

fn number(name: &str, text: Option<&String>) -> anyhow::Result<Option<Value>> {
    parsed(name, text, |text| text.parse::<i64>().ok().map(Value::from))
}

fn size(name: &str, text: Option<&String>) -> anyhow::Result<Option<Value>> {
    parsed(name, text, |text| {
        if text == "-1" {
            return Some(Value::from(-1));
        }
        bytes(text).map(Value::from)
    })
}

fn parsed(
    name: &str,
    text: Option<&String>,
    parse: impl FnOnce(&str) -> Option<Value>,
) -> anyhow::Result<Option<Value>> {
    // As when it is not given.
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    match parse(text) {
        Some(value) => Ok(Some(value)),
        None => Err(anyhow!("invalid value for {name}: {text:?}")),
    }
}

/// A size in bytes: a whole number, or one with a fraction and a binary unit: `64m`, `1.5GiB`, `2 kb`.
fn bytes(text: &str) -> Option<i64> {
    let text = text.trim().to_ascii_lowercase();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim_start();
    let shift = match unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(unit)
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: i64 = whole.parse().ok()?;
    let scale = 1_i64 << shift;
    // Thousandths are finer than anybody asks for.
    let thousandths: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    whole
        .checked_mul(scale)?
        .checked_add(thousandths.checked_mul(scale)? / 1000)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: UpdateArgs,
    }

    fn resources(words: &[&str]) -> Result<Value, String> {
        Line::try_parse_from([&["update"], words, &["web"]].concat())
            .map_err(|error| error.to_string())?
            .args
            .limits
            .resources()
            .map_err(|error| error.to_string())
    }

    #[test]
    fn options_become_resources_and_what_is_not_said_is_not_there() {
        let words = [
            "--memory=64m",
            "--cpu-quota",
            "-1",
            "--pids-limit=-1",
            "--cpuset-cpus",
            "0-1",
        ];
        assert_eq!(
            resources(&words),
            Ok(json!({
                "memory": {"limit": 64 << 20}, "cpu": {"quota": -1, "cpus": "0-1"}, "pids": {"limit": -1}
            }))
        );
        assert_eq!(resources(&[]), Ok(json!({})));
    }

    #[test]
    fn wrong_values_are_named_as_runc_does() {
        let error = resources(&["--memory", "foo"]).unwrap_err();
        assert_eq!(error, "invalid value for memory: \"foo\"");
        assert!(resources(&["--cpu-share", "-3"]).is_err());
        let error = resources(&["--cpu-rt-period", "1"]).unwrap_err();
        assert!(error.contains("no realtime limits"), "{error}");
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(bytes("100"), Some(100));
        assert_eq!(bytes("64m"), Some(64 << 20));
        assert_eq!(bytes("1.5GiB"), Some(3 << 29));
        assert_eq!(bytes("2 KB"), Some(2048));
        for wrong in ["", "m", "1x", "1.2.3", "9999999999999g", "-2"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn zeros_of_a_file_are_not_given() {
        let file = json!({"memory": {"limit": 0, "swap": 5}, "cpu": {"cpus": ""}, "blockIO": {"weight": 0}});
        assert_eq!(given(file), Some(json!({"memory": {"swap": 5}})));
    }
}
