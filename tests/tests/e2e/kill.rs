//! `kill -9` of any of our processes leaves nothing behind that matters.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bulkhead_tests::lane::patience;
use bulkhead_tests::vm::Setup;
use bulkhead_tests::{net, process};
use serde_json::json;

#[test]
fn vmm_when_killed_then_its_tap_is_gone_and_its_paths_can_be_used_again() {
    net::in_new_namespace(|| {
        let kept = net::Tap::new("kept0", Ipv4Addr::new(10, 7, 1, 1), 24).expect("make a tap");
        let mut vm = Setup::agent()
            .net(json!({"tap": "made0"}))
            .net(json!({"tap": kept.name()}))
            .start();
        vm.wait_ready();
        assert!(net::exists("made0"));
        let pid = vm.pid();
        let folder = vm.path("").display().to_string();

        vm.kill();
        assert!(!process::is_alive(pid));
        // The kernel takes the tap down after the process is gone, in its own time.
        let deadline = Instant::now() + patience();
        while net::exists("made0") && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(!net::exists("made0"), "the VMM's tap was left behind");
        assert!(net::exists("kept0"), "a tap that was not the VMM's is gone");
        assert_eq!(
            process::naming(&folder),
            [0u32; 0],
            "a child was left behind"
        );

        // What cannot be removed by a killed process are the files of its sockets; they must not
        // stand in the way of the next.
        vm.kill_and_start_again();
        vm.wait_ready();
    });
}
