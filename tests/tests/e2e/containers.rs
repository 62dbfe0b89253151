//! Containers in a VM, through the vsock API.

use std::io::{Read, Write};

use bulkhead_tests::container::{Host, Stream, kind};
use bulkhead_tests::lane::Lane;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

#[test]
fn container_when_run_in_a_vm_then_its_streams_its_end_and_what_it_is() {
    let mut host = Host::boot();
    let script = "hostname; id -u; read x; echo got $x; echo err >&2; exit 3";
    let state = host.create("web", &["sh", "-c", script], |wanted| {
        wanted["stdin"] = json!(true)
    });
    assert_eq!(state["status"], "created");
    let mut stream = host.attach("web", "?stdin=true");
    let mut events = host.begin("GET /v1/events", b"");
    host.start("web");
    stream.send(kind::STDIN, b"it\n");
    let said = stream.read_to_end();
    assert_eq!(
        (said.out().as_str(), said.stderr.as_slice()),
        ("web\n0\ngot it\n", &b"err\n"[..])
    );
    assert_eq!(said.exit["code"], 3, "{said:?}");
    assert_eq!(
        host.must("GET", "/v1/containers/web/wait", &Value::Null)["code"],
        3
    );

    host.create("box", &["sleep", "100000"], |_| {});
    host.start("box");
    let state = host.must("GET", "/v1/containers/box", &Value::Null);
    assert_eq!(state["status"], "running");
    for (args, code, error) in [
        (&["true"][..], 0, ""),
        (&["sh", "-c", "exit 7"], 7, ""),
        (&["sh", "-c", "kill -9 $$"], 137, ""),
        (&["/no/such/program"], 127, "/no/such/program"),
        (&["/etc/passwd"], 126, "/etc/passwd"),
    ] {
        let said = host.exec("box", args, false).read_to_end();
        assert_eq!(said.exit["code"], code, "{args:?} {said:?}");
        assert!(said.error.contains(error), "{args:?} {said:?}");
    }
    // Its own namespaces: only its own processes, only its own loopback.
    let said = host.sh("box", "echo $(ls -d /proc/[0-9]* | wc -l); ls /sys /proc/1/root >/dev/null; cat /proc/net/dev | wc -l");
    let lines: Vec<u32> = said
        .out()
        .lines()
        .map(|l| l.parse().expect("a number"))
        .collect();
    assert!(lines[0] <= 6 && lines[1] == 3, "{said:?}");

    let processes = host.must("GET", "/v1/containers/box/processes", &Value::Null);
    let first = &processes["processes"][0];
    assert_eq!(first["command"], json!(["sleep", "100000"]), "{processes}");
    assert_eq!(first["container_pid"], 1, "{processes}");

    let mut tty = host.upgrade(
        "/v1/containers/box/exec",
        &json!({
            "process": {"args": ["sh", "-c", "stty size; read x; stty size"], "cwd": "/",
                        "env": ["PATH=/bin"], "terminal": true},
            "terminal": {"rows": 33, "columns": 111},
        })
        .to_string(),
    );
    assert_eq!(
        tty.read_until(|s| s.out().contains('\n')).out(),
        "33 111\r\n"
    );
    tty.send(kind::RESIZE, br#"{"rows":44,"columns":122}"#);
    tty.send(kind::STDIN, b"\n");
    let said = tty.read_to_end();
    assert!(
        said.out().ends_with("44 122\r\n") && said.exit["code"] == 0,
        "{said:?}"
    );

    host.must("DELETE", "/v1/containers/box?force=true", &Value::Null);
    host.must("DELETE", "/v1/containers/web", &Value::Null);
    host.must("POST", "/v1/shutdown", &json!({"grace_ms": 0}));
    let mut told = String::new();
    events.read_to_string(&mut told).expect("events");
    for event in ["started", "exited", "deleted", "exec_exited"] {
        assert!(told.contains(&format!("\"event\":\"{event}\"")), "{told}");
    }
    host.vm.expect_exit(0);
}

#[test]
fn limits_when_set_then_they_hold_and_are_reported() {
    let host = Host::boot();
    host.create("small", &["sleep", "100000"], |wanted| {
        wanted["spec"]["linux"]["resources"] = json!({
            "memory": {"limit": 12 * MIB, "swap": 12 * MIB},
            "pids": {"limit": 10},
            "cpu": {"quota": 50_000, "period": 100_000},
        });
    });
    host.start("small");
    let said = host.sh(
        "small",
        "dd if=/dev/zero of=/dev/null bs=40M count=1; echo after",
    );
    assert!(said.out().contains("after"), "{said:?}");
    let stats = host.must("GET", "/v1/containers/small/stats", &Value::Null);
    assert_eq!(stats["memory"]["limit_bytes"], 12 * MIB, "{stats}");
    assert!(stats["memory"]["oom_kills"].as_u64() >= Some(1), "{stats}");
    assert_eq!(stats["pids"]["limit"], 10, "{stats}");
    assert!(stats["cpu"]["usage_ns"].as_u64() > Some(0), "{stats}");

    let script = "i=0; while [ $i -lt 20 ]; do sleep 60 & i=$((i+1)); done; echo all";
    let said = host.sh("small", script);
    assert!(
        !said.out().contains("all") && said.exit["code"] != 0,
        "{said:?}"
    );
    assert_eq!(host.ask("GET", "/v1/health", &Value::Null).0, 200);

    let path = |what: &str| format!("/v1/containers/small/{what}");
    host.must("POST", &path("pause"), &Value::Null);
    let state = host.must("GET", "/v1/containers/small", &Value::Null);
    assert_eq!(state["status"], "paused");
    let wanted = json!({"process": {"args": ["true"], "cwd": "/"}});
    assert_eq!(host.ask("POST", &path("exec"), &wanted).0, 409);
    host.must("POST", &path("resume"), &Value::Null);
    host.must("POST", &path("kill"), &json!({"signal": 9, "all": true}));
    let exit = host.must("GET", &path("wait"), &Value::Null);
    assert_eq!(
        (&exit["code"], &exit["oom_killed"]),
        (&json!(137), &json!(true))
    );
    host.must("DELETE", "/v1/containers/small", &Value::Null);
}

#[test]
fn data_when_much_goes_through_a_program_in_a_vm_then_whole() {
    // Guest programs are slow in one lane, the guest's kernel in the other.
    let bytes = Lane::pick(32 * MIB, 1024 * MIB);
    let host = Host::boot();
    host.create("box", &["sleep", "100000"], |_| {});
    host.start("box");
    let mut stream = host.exec("box", &["cat"], true);
    let socket = stream.socket.try_clone().expect("clone");
    let writer = std::thread::spawn(move || {
        let mut stream = Stream { socket };
        let mut sent = 0;
        // The same numbers again and again would hide a piece that is lost.
        let mut data = vec![0; 1 << 20];
        while sent < bytes {
            for (i, word) in data.chunks_exact_mut(8).enumerate() {
                word.copy_from_slice(&(sent + 8 * i as u64).to_le_bytes());
            }
            stream.send(kind::STDIN, &data);
            sent += data.len() as u64;
        }
        stream.send(kind::STDIN, b"");
    });
    let mut received = 0u64;
    let mut rest = Vec::new();
    let mut payload = Vec::new();
    let exit = loop {
        match stream.frame(&mut payload) {
            Some(kind::STDOUT) => {
                rest.extend_from_slice(&payload);
                let whole = rest.len() / 8 * 8;
                for word in rest[..whole].chunks_exact(8) {
                    let number = u64::from_le_bytes(word.try_into().expect("eight"));
                    assert_eq!(number, received, "at {received}");
                    received += 8;
                }
                rest.drain(..whole);
            }
            Some(kind::EXIT) => break String::from_utf8_lossy(&payload).into_owned(),
            other => host.vm.fail(&format!("a frame of type {other:?}")),
        }
    };
    writer.join().expect("writer");
    assert_eq!((received, rest.len()), (bytes, 0));
    assert!(exit.contains("\"code\":0"), "{exit}");
}

#[test]
fn execs_when_fifty_run_at_once_in_a_vm_then_each_has_its_own_output_and_code() {
    let host = Host::boot();
    host.create("box", &["sleep", "100000"], |_| {});
    host.start("box");
    let mut streams: Vec<Stream> = (0..50)
        .map(|n| {
            let script = format!("read x; echo {n}-$x; exit {n}");
            host.exec("box", &["sh", "-c", &script], true)
        })
        .collect();
    for (n, stream) in streams.iter_mut().enumerate() {
        stream.send(kind::STDIN, format!("in{n}\n").as_bytes());
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        let said = stream.read_to_end();
        assert_eq!(
            (said.out(), &said.exit["code"]),
            (format!("{n}-in{n}\n"), &json!(n))
        );
    }
}

#[test]
fn guest_when_told_then_its_clock_entropy_and_network_are_as_told_and_files_go_both_ways() {
    let host = Host::boot();
    let later = 2_000_000_000_000_000_000u64;
    host.must("PUT", "/v1/clock", &json!({"unix_ns": later}));
    let clock = host.must("GET", "/v1/clock", &Value::Null);
    assert!(clock["unix_ns"].as_u64() >= Some(later), "{clock}");
    host.must(
        "POST",
        "/v1/entropy",
        &json!({"base64": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}),
    );
    let info = host.must("GET", "/v1/info", &Value::Null);
    assert!(info["memory"]["free_bytes"].as_u64() > Some(0), "{info}");
    assert!(
        !info["cpu"]["model"].as_str().unwrap_or("").is_empty(),
        "{info}"
    );
    let wanted = json!({"addresses": ["127.0.0.1/8", "10.1.2.3/24"], "up": true});
    let lo = host.must("PUT", "/v1/interfaces/lo", &wanted);
    assert!(
        lo["addresses"]
            .as_array()
            .expect("addresses")
            .contains(&json!("10.1.2.3/24")),
        "{lo}"
    );
    let wanted = json!({"routes": [{"destination": "0.0.0.0/0", "gateway": "10.1.2.1"}]});
    let routes = host.must("PUT", "/v1/routes", &wanted);
    assert_eq!(routes["routes"][0]["interface"], "lo", "{routes}");

    host.create("box", &["sleep", "100000"], |_| {});
    host.start("box");
    let mut made = Vec::new();
    for i in 0..200_000u64 {
        made.extend(i.to_le_bytes());
    }
    let archive = archive_of("data", &made);
    let mut put = host.begin("PUT /v1/containers/box/files?path=/tmp", &archive);
    let mut answer = String::new();
    put.read_to_string(&mut answer).expect("answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let said = host.sh("box", "wc -c </tmp/data; stat -c '%a %u' /tmp/data");
    assert_eq!(said.out(), format!("{}\n640 0\n", made.len()));
    let mut taken = host.begin("GET /v1/containers/box/files?path=/tmp/data", b"");
    let mut answer = Vec::new();
    taken.read_to_end(&mut answer).expect("answer");
    // The data is longer than a chunk, so its parts are looked for.
    assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"\r\n0\r\n\r\n"));
    assert!(answer.len() > made.len() && answer.windows(16).any(|w| w == &made[1600..1616]));
    host.must("DELETE", "/v1/containers/box?force=true", &Value::Null);
}

/// A tar archive of one file.
fn archive_of(name: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000640\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0001750\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = header.to_vec();
    archive.write_all(data).expect("a Vec");
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}
