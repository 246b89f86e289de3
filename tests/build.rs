//! Compiles the hostile guest (`hostile/`) with the compiler that compiles the cases: a program without an operating system below it, which no
//! package of Cargo's can be beside programs of the host. Its path is in `HUSK_HOSTILE_GUEST` when the cases are compiled.

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::Command;

const SOURCE: &str = "hostile";

/// A kernel: at a fixed address, with nothing of the C library, and small enough not to matter.
const OPTIONS: &[&str] = &[
    "--edition=2024",
    "--crate-type=bin",
    "--crate-name=hostile",
    "--target=x86_64-unknown-linux-gnu",
    "-Dwarnings",
    "-Wunreachable_pub",
    "-Cpanic=abort",
    "-Copt-level=2",
    "-Ccodegen-units=1",
    "-Cstrip=symbols",
    "-Crelocation-model=static",
    "-Ctarget-feature=+crt-static",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-static",
    "-Clink-arg=-no-pie",
    "-Clink-arg=-Wl,--build-id=none",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SOURCE}");
    let program = Path::new(&env::var("OUT_DIR")?).join("hostile-guest");
    let status = Command::new(env::var("RUSTC")?)
        .args(OPTIONS)
        .arg(format!("-Clink-arg=-Wl,-T,{SOURCE}/link.ld"))
        .arg("-o")
        .arg(&program)
        .arg(format!("{SOURCE}/main.rs"))
        .status()?;
    if !status.success() {
        return Err(format!("the hostile guest does not compile: {status}").into());
    }
    println!("cargo::rustc-env=HUSK_HOSTILE_GUEST={}", program.display());
    Ok(())
}
