//! `husk check`: is this host fit, and is everything installed? One line per finding, each with what to do about it.

use std::process::ExitCode;

use serde::Serialize;

use super::Failure;
use crate::assets::Asset;
use crate::config::{Config, Options};
use crate::kvm;

/// Check that this host can run guests and that everything is installed
///
/// Exits with 0 if all is well, with 1 otherwise.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Check KVM only
    #[arg(long)]
    kvm: bool,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    name: &'static str,
    ok: bool,
    /// What was found; when it is not well, also what to do.
    text: String,
}

/// The answer of `--json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions_per_second: Option<u64>,
    findings: &'a [Finding],
}

/// Looks and prints; the exit status says whether all is well.
pub(super) fn run(options: &Options, args: &CheckArgs) -> Result<ExitCode, Failure> {
    let config = Config::load(options)?;
    let mut findings = Vec::new();
    if !args.kvm {
        findings.extend(Asset::ALL.map(|asset| asset_finding(asset, &config)));
    }
    let probed = kvm::probe(&config.vmm);
    let speed = probed
        .as_ref()
        .ok()
        .and_then(|probe| probe.instructions_per_second);
    // Last, since callers that want one line take the last one.
    findings.push(match probed {
        Ok(probe) => finding("kvm", kvm::judge(&probe)),
        Err(error) => finding("kvm", Err(format!("{:#}", anyhow::Error::from(error)))),
    });
    let ok = findings.iter().all(|finding| finding.ok);
    if args.json {
        let report = Report {
            ok,
            instructions_per_second: speed,
            findings: &findings,
        };
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", text(&findings));
    }
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn asset_finding(asset: Asset, config: &Config) -> Finding {
    let result = match asset.check(config) {
        Ok(()) => Ok(asset.path(config).display().to_string()),
        Err(error) => Err(format!("{:#}", anyhow::Error::from(error))),
    };
    finding(asset.name(), result)
}

fn finding(name: &'static str, result: Result<String, String>) -> Finding {
    let ok = result.is_ok();
    let (Ok(text) | Err(text)) = result;
    Finding { name, ok, text }
}

/// `name  ok|NOT OK  text`, a line each.
fn text(findings: &[Finding]) -> String {
    findings
        .iter()
        .map(|Finding { name, ok, text }| {
            let word = if *ok { "ok" } else { "NOT OK" };
            format!("{name:<8}{word:<8}{text}\n")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_a_line_per_finding() {
        let findings = [
            finding("kernel", Ok("/k".into())),
            finding("kvm", Err("none".into())),
        ];
        assert_eq!(
            text(&findings),
            "kernel  ok      /k\nkvm     NOT OK  none\n"
        );
    }
}
