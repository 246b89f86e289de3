//! Nothing is left behind, however often. The soak (`tests/soak`) also counts what has no name.

use harness::{Bundle, Runtime};

const RUNS: usize = 3;

#[test]
fn run_after_run_leaves_nothing() {
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox().args(&["true"]);
    for _ in 0..RUNS {
        runtime.run(&bundle).assert_status(0);
    }
    let state = std::fs::read_dir(runtime.root()).unwrap().count();
    assert_eq!(state, 0);
}
