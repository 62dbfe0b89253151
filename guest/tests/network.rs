//! Interfaces and routes, in a network namespace of the test's own. Needs root.

use bulkhead_agent::api::network;
use bulkhead_agent::connection::Answer;
use bulkhead_protocol::{ApiError, Interface, Interfaces, Routes};
use serde::de::DeserializeOwned;

/// What the API answers.
fn ok<T: DeserializeOwned>(outcome: bulkhead_agent::api::Outcome) -> T {
    match outcome {
        Ok(Answer::Now(response)) if response.status == 200 => {
            serde_json::from_slice(&response.body).expect("JSON")
        }
        Ok(_) => panic!("another answer"),
        Err(response) => panic!("{}", String::from_utf8_lossy(&response.body)),
    }
}

fn refused(outcome: bulkhead_agent::api::Outcome) -> (u16, String) {
    let response = outcome.err().expect("refused");
    let error: ApiError<'_> = serde_json::from_slice(&response.body).expect("JSON");
    (response.status, error.message.into_owned())
}

#[test]
fn interfaces_and_routes_when_set_then_as_the_kernel_has_them() {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root, "making a network namespace takes root");
    // SAFETY: unshare takes a number; only this thread goes elsewhere, and it ends with the test.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);

    let all: Interfaces = ok(network::interfaces());
    let lo = all.interfaces.iter().find(|i| i.name == "lo").expect("lo");
    assert!(!lo.up && lo.addresses.is_empty() && lo.mac.is_empty());

    let body = br#"{"addresses":["127.0.0.1/8","10.9.8.7/24","fd00::7/64"],"mtu":1400,"up":true}"#;
    let lo: Interface = ok(network::set_interface("lo", body));
    assert!(lo.up && lo.mtu == 1400, "{lo:?}");
    for address in ["127.0.0.1/8", "10.9.8.7/24", "fd00::7/64"] {
        assert!(lo.addresses.iter().any(|a| a == address), "{lo:?}");
    }
    let lo: Interface = ok(network::set_interface(
        "lo",
        br#"{"addresses":["10.9.8.7/24"]}"#,
    ));
    assert_eq!(lo.addresses, ["10.9.8.7/24"]);

    let body = br#"{"routes":[
        {"destination":"0.0.0.0/0","gateway":"10.9.8.1"},
        {"destination":"10.20.0.5/16","interface":"lo","metric":7},
        {"destination":"10.30.0.0/16","gateway":"10.20.0.1","metric":3}]}"#;
    let is_there = |routes: &Routes, to: &str| routes.routes.iter().any(|r| r.destination == to);
    for _ in 0..2 {
        let routes: Routes = ok(network::set_routes(body));
        assert_eq!(routes.routes.len(), 3, "{routes:?}");
        for to in ["0.0.0.0/0", "10.20.0.0/16", "10.30.0.0/16"] {
            assert!(is_there(&routes, to), "{routes:?}");
        }
        let named = routes
            .routes
            .iter()
            .all(|r| r.interface.as_deref() == Some("lo"));
        assert!(named, "{routes:?}");
    }
    let routes: Routes = ok(network::set_routes(br#"{"routes":[]}"#));
    assert!(routes.routes.is_empty(), "{routes:?}");

    assert_eq!(refused(network::interface("eth9")).0, 404);
    let (status, message) = refused(network::set_interface("lo", br#"{"addresses":["x/8"]}"#));
    assert!(
        status == 422 && message.starts_with("addresses: "),
        "{message}"
    );
    let body = br#"{"routes":[{"destination":"10.0.0.0/8","gateway":"192.0.2.1"}]}"#;
    let (status, message) = refused(network::set_routes(body));
    assert!(status == 422 && message.contains("10.0.0.0/8"), "{message}");
    let body = br#"{"routes":[{"destination":"10.0.0.0/8"}]}"#;
    assert_eq!(refused(network::set_routes(body)).0, 422);
}
