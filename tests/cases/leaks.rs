//! Nothing is left behind, however often.

use harness::{Bundle, Runtime};

#[test]
fn a_hundred_runs_leave_nothing() {
    let runtime = Runtime::from_environment();
    let bundle = Bundle::busybox().args(&["true"]);
    for _ in 0..100 {
        runtime.run(&bundle).assert_status(0);
    }
    let state = std::fs::read_dir(runtime.root()).unwrap().count();
    assert_eq!(state, 0);
}
