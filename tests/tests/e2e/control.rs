//! The control socket: what a running VM can be asked and told.

use std::io::{Read, Write};
use std::time::Duration;

use bulkhead_tests::lane::patience;
use bulkhead_tests::vm::Setup;
use serde_json::json;

/// The agent's port.
const API_PORT: u32 = 1024;

#[test]
fn vm_when_paused_then_does_nothing_until_it_is_resumed() {
    let mut vm = Setup::agent().start();
    vm.wait_ready();
    assert_eq!(vm.control("GET", "/v1/vm", None)["state"], "running");
    let mut stream = vm.connect(API_PORT);

    vm.control("PUT", "/v1/pause", None);
    assert_eq!(vm.control("GET", "/v1/vm", None)["state"], "paused");
    stream
        .write_all(b"GET /v1/health HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n")
        .expect("ask");
    stream
        .set_read_timeout(Some(Duration::from_secs(3)))
        .expect("timeout");
    let mut byte = [0];
    let silence = stream.read(&mut byte);
    assert!(silence.is_err(), "a paused guest answered: {silence:?}");

    vm.control("PUT", "/v1/resume", None);
    stream.set_read_timeout(Some(patience())).expect("timeout");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    assert_eq!(vm.control("GET", "/v1/vm", None)["state"], "running");

    // Shut down while paused, so that this way is shown to end too.
    vm.control("PUT", "/v1/pause", None);
    vm.control("PUT", "/v1/shutdown", None);
    vm.expect_exit(0);
    for socket in ["vsock.sock", "control.sock"] {
        assert!(!vm.path(socket).exists(), "{socket} was left behind");
    }
}

#[test]
fn control_when_asked_nonsense_then_answers_and_the_vm_goes_on() {
    let mut vm = Setup::agent()
        .with("balloon", json!({"size_mib": 0}))
        .start();
    vm.wait_ready();
    for (method, path, body, expected) in [
        ("GET", "/v1/nothing", None, 404),
        ("DELETE", "/v1/vm", None, 405),
        (
            "PUT",
            "/v1/balloon",
            Some(json!({"size_mib": 1_000_000})),
            400,
        ),
        ("PUT", "/v1/balloon", Some(json!({"size": 1})), 400),
        ("PUT", "/v1/balloon", Some(json!("all of it")), 400),
    ] {
        let (status, answer) = vm
            .try_control(method, path, body.as_ref())
            .expect("an answer");
        assert_eq!(status, expected, "{method} {path}: {answer}");
        assert!(answer["message"].is_string(), "{method} {path}: {answer}");
    }
    let metrics = vm.control("GET", "/v1/metrics", None);
    assert_eq!(
        metrics["vcpus"].as_array().map(Vec::len),
        Some(1),
        "{metrics}"
    );
    vm.connect(API_PORT);
}
