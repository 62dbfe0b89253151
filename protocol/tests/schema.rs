//! `docs/api.schema.json` says what the types say: every field, its type, and which are required.

use std::collections::BTreeSet;

use bulkhead_protocol::*;
use serde::Serialize;
use serde_json::Value;

fn schema() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.schema.json");
    let text = std::fs::read_to_string(path).expect("schema file");
    serde_json::from_str(&text).expect("schema is JSON")
}

/// Checks `value` against `schema`, and that the schema describes no field that `value`, which has
/// every field set, lacks.
fn check(root: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let name = reference.strip_prefix("#/$defs/").expect("local reference");
        let target = root["$defs"]
            .get(name)
            .unwrap_or_else(|| panic!("{at}: {name}"));
        return check(root, target, value, at);
    }
    if let Some(alternatives) = schema.get("oneOf").and_then(Value::as_array) {
        // Each has one field, and is known by it.
        let fits = |a: &&Value| {
            a["required"]
                .as_array()
                .expect("required")
                .iter()
                .all(|name| value.get(name.as_str().expect("name")).is_some())
        };
        let alternative = alternatives.iter().find(fits);
        let alternative = alternative.unwrap_or_else(|| panic!("{at}: {value}"));
        return check(root, alternative, value, at);
    }
    match schema["type"].as_str() {
        Some("boolean") => assert!(value.is_boolean(), "{at}: {value}"),
        Some("array") => {
            let items = value.as_array().unwrap_or_else(|| panic!("{at}: {value}"));
            assert!(!items.is_empty(), "{at}: an example is needed");
            for item in items {
                check(root, &schema["items"], item, &format!("{at}[]"));
            }
        }
        // A document of somebody else's.
        Some("object") if schema.get("properties").is_none() => {
            assert!(value.is_object(), "{at}: {value}");
        }
        Some("string") => {
            let text = value.as_str().unwrap_or_else(|| panic!("{at}: no string"));
            if let Some(allowed) = schema.get("enum").and_then(Value::as_array) {
                assert!(allowed.iter().any(|a| a == text), "{at}: {text}");
            }
        }
        Some("integer") => assert!(value.is_u64(), "{at}: {value}"),
        Some("object") => {
            let described = schema["properties"].as_object().expect("properties");
            let present = value.as_object().unwrap_or_else(|| panic!("{at}: {value}"));
            let names = |m: &serde_json::Map<String, Value>| m.keys().cloned().collect();
            let (d, p): (BTreeSet<String>, BTreeSet<String>) = (names(described), names(present));
            assert_eq!(
                d, p,
                "{at}: fields of the schema (left) and of the type (right)"
            );
            for required in schema["required"].as_array().expect("required") {
                assert!(
                    d.contains(required.as_str().expect("name")),
                    "{at}: {required}"
                );
            }
            for (name, schema) in described {
                check(root, schema, &present[name], &format!("{at}.{name}"));
            }
        }
        other => panic!("{at}: type {other:?} is not one this test knows"),
    }
}

fn timings() -> BootTimings {
    BootTimings {
        init_start_ns: 1,
        ready_ns: u64::MAX,
    }
}

/// One of each document, with every field set. A new type of the API is added here.
fn documents() -> Vec<(&'static str, Value)> {
    let kernel = Kernel {
        sysname: "Linux".into(),
        release: "6.12.57".into(),
        version: "#1 SMP".into(),
        machine: "x86_64".into(),
    };
    let memory = Memory {
        total_bytes: 2,
        available_bytes: 1,
        free_bytes: 1,
        cached_bytes: 1,
        shared_bytes: 1,
    };
    let cpu = Cpu {
        model: "x".into(),
        ..Cpu::default()
    };
    vec![
        (
            "Ready",
            json(Ready {
                api: API_VERSION,
                agent_version: "0.1.0".into(),
                kernel_release: "6.12.57".into(),
                timings: timings(),
            }),
        ),
        ("BootTimings", json(timings())),
        (
            "Health",
            json(Health {
                status: HealthStatus::Ok,
                api: API_VERSION,
            }),
        ),
        (
            "Info",
            json(Info {
                api: API_VERSION,
                agent_version: "0.1.0".into(),
                kernel: kernel.clone(),
                hostname: "bulkhead".into(),
                cpus_online: 1,
                cpu: Some(cpu.clone()),
                memory,
                uptime_ns: 1,
                timings: timings(),
            }),
        ),
        ("Kernel", json(kernel)),
        ("Cpu", json(cpu)),
        ("Memory", json(memory)),
        ("Shutdown", json(Shutdown { grace_ms: Some(1) })),
        (
            "ApiError",
            json(ApiError {
                code: ErrorCode::NotFound,
                message: "No such path.".into(),
            }),
        ),
        ("Clock", json(Clock { unix_ns: u64::MAX })),
        (
            "Entropy",
            json(Entropy {
                base64: "AA==".into(),
            }),
        ),
        (
            "Restored",
            json(Restored {
                asleep_ns: u64::MAX,
                entropy: "AA==".into(),
                windows: vec![4],
            }),
        ),
    ]
    .into_iter()
    .chain(container_documents())
    .chain(stats_documents())
    .chain(network_documents())
    .collect()
}

fn json(v: impl Serialize) -> Value {
    serde_json::to_value(v).expect("serialise")
}

fn container_documents() -> Vec<(&'static str, Value)> {
    let terminal = TerminalSize {
        rows: 24,
        columns: 80,
    };
    let exit = Exit {
        code: 137,
        signal: Some(9),
        oom_killed: true,
        error: Some("There is no /bin/nothing.".into()),
    };
    let rootfs = Rootfs {
        lower: Lower::Serial("image".into()),
        upper: Upper::Tmpfs {
            size_bytes: Some(1),
        },
        files: vec![NewFile {
            path: "/etc/hostname".into(),
            text: "web\n".into(),
        }],
    };
    let state = ContainerState {
        id: "web".into(),
        status: Status::Stopped,
        pid: 0,
        created_ns: 1,
        started_ns: Some(2),
        finished_ns: Some(3),
        exit: Some(exit.clone()),
    };
    let disk = Upper::Disk {
        serial: "upper".into(),
    };
    let volume = |source| {
        json(Volume {
            name: "data".into(),
            source,
        })
    };
    vec![
        (
            "CreateContainer",
            json(CreateContainer {
                id: "web".into(),
                spec: serde_json::json!({"ociVersion": "1.2.0"}),
                rootfs: rootfs.clone(),
                volumes: vec![Volume {
                    name: "data".into(),
                    source: VolumeSource::Share("host".into()),
                }],
                stdin: true,
                terminal: Some(terminal),
                init: true,
            }),
        ),
        ("NewFile", json(&rootfs.files[0])),
        ("Volume", volume(VolumeSource::Share("host".into()))),
        ("Volume", volume(VolumeSource::Erofs("data".into()))),
        ("Volume", volume(VolumeSource::Ext4("data".into()))),
        ("Lower", json(&rootfs.lower)),
        ("Lower", json(Lower::Directory("/x".into()))),
        ("Lower", json(Lower::File("/x.erofs".into()))),
        ("Upper", json(&rootfs.upper)),
        ("Upper", json(disk)),
        ("Upper", json(Upper::File("/x.ext4".into()))),
        ("Rootfs", json(rootfs)),
        ("TerminalSize", json(terminal)),
        (
            "ContainerList",
            json(ContainerList {
                containers: vec![state.clone()],
            }),
        ),
        ("ContainerState", json(state)),
        (
            "Kill",
            json(Kill {
                signal: 15,
                all: true,
            }),
        ),
        (
            "Exec",
            json(Exec {
                process: serde_json::json!({"args": ["true"]}),
                stdin: true,
                terminal: Some(terminal),
            }),
        ),
        (
            "ExecState",
            json(ExecState {
                exec_id: "1".into(),
                container_id: "web".into(),
                pid: 1,
                exit: Some(exit.clone()),
            }),
        ),
        (
            "Event",
            json(Event {
                event: EventKind::Exited,
                time_ns: 1,
                container_id: Some("web".into()),
                exec_id: Some("1".into()),
                exit: Some(exit.clone()),
            }),
        ),
        ("Exit", json(exit)),
    ]
}

fn stats_documents() -> Vec<(&'static str, Value)> {
    let stats = Stats {
        read_ns: 1,
        cpu: Some(CpuStats::default()),
        memory: Some(MemoryStats {
            peak_bytes: Some(2),
            limit_bytes: Some(3),
            ..MemoryStats::default()
        }),
        pids: Some(PidsStats {
            current: 1,
            limit: Some(2),
        }),
        io: Some(IoStats::default()),
    };
    let process = ProcessInfo {
        pid: 42,
        parent_pid: 1,
        container_pid: 1,
        uid: 0,
        state: "S".into(),
        started_boot_ns: 1,
        cpu_ns: 1,
        resident_bytes: 4096,
        command: vec!["sleep".into(), "1".into()],
    };
    vec![
        ("CpuStats", json(stats.cpu)),
        ("MemoryStats", json(stats.memory)),
        ("PidsStats", json(stats.pids)),
        ("IoStats", json(stats.io)),
        ("Stats", json(stats)),
        (
            "Processes",
            json(Processes {
                processes: vec![process.clone()],
            }),
        ),
        ("ProcessInfo", json(process)),
    ]
}

fn network_documents() -> Vec<(&'static str, Value)> {
    let interface = Interface {
        name: "eth0".into(),
        index: 2,
        mac: "02:00:00:00:00:01".into(),
        mtu: 1500,
        up: true,
        addresses: vec!["10.0.0.2/24".into()],
    };
    let route = Route {
        destination: "0.0.0.0/0".into(),
        gateway: Some("10.0.0.1".into()),
        interface: Some("eth0".into()),
        metric: Some(5),
    };
    vec![
        (
            "Interfaces",
            json(Interfaces {
                interfaces: vec![interface.clone()],
            }),
        ),
        ("Interface", json(interface)),
        (
            "SetInterface",
            json(SetInterface {
                addresses: Some(vec!["10.0.0.2/24".into()]),
                mtu: Some(1400),
                up: Some(true),
            }),
        ),
        (
            "Routes",
            json(Routes {
                routes: vec![route.clone()],
            }),
        ),
        ("Route", json(route)),
    ]
}

#[test]
fn documents_when_serialised_then_match_the_schema_field_by_field() {
    let schema = schema();
    for (name, value) in documents() {
        let reference = serde_json::json!({ "$ref": format!("#/$defs/{name}") });
        check(&schema, &reference, &value, name);
    }
}

#[test]
fn schema_when_it_names_a_document_then_the_types_have_it() {
    let schema = schema();
    let described: BTreeSet<&str> = schema["$defs"]
        .as_object()
        .expect("$defs")
        .keys()
        .map(String::as_str)
        .collect();
    let known: BTreeSet<&str> = documents().into_iter().map(|(name, _)| name).collect();
    assert_eq!(described, known);
}

#[test]
fn required_fields_when_one_is_missing_then_the_document_is_refused() {
    fn read(name: &str, v: Value) -> bool {
        match name {
            "Ready" => serde_json::from_value::<Ready>(v).is_ok(),
            "BootTimings" => serde_json::from_value::<BootTimings>(v).is_ok(),
            "Health" => serde_json::from_value::<Health>(v).is_ok(),
            "Info" => serde_json::from_value::<Info>(v).is_ok(),
            "Kernel" => serde_json::from_value::<Kernel>(v).is_ok(),
            "Memory" => serde_json::from_value::<Memory>(v).is_ok(),
            "Shutdown" => serde_json::from_value::<Shutdown>(v).is_ok(),
            "ApiError" => serde_json::from_value::<ApiError>(v).is_ok(),
            "Cpu" => serde_json::from_value::<Cpu>(v).is_ok(),
            "Clock" => serde_json::from_value::<Clock>(v).is_ok(),
            "Restored" => serde_json::from_value::<Restored<'_>>(v).is_ok(),
            "Entropy" => serde_json::from_value::<Entropy>(v).is_ok(),
            "CreateContainer" => serde_json::from_value::<CreateContainer<Value>>(v).is_ok(),
            "Rootfs" => serde_json::from_value::<Rootfs>(v).is_ok(),
            "NewFile" => serde_json::from_value::<NewFile>(v).is_ok(),
            "Volume" => serde_json::from_value::<Volume>(v).is_ok(),
            "Lower" => serde_json::from_value::<Lower>(v).is_ok(),
            "Upper" => serde_json::from_value::<Upper>(v).is_ok(),
            "TerminalSize" => serde_json::from_value::<TerminalSize>(v).is_ok(),
            "ContainerState" => serde_json::from_value::<ContainerState>(v).is_ok(),
            "ContainerList" => serde_json::from_value::<ContainerList>(v).is_ok(),
            "Exit" => serde_json::from_value::<Exit>(v).is_ok(),
            "Kill" => serde_json::from_value::<Kill>(v).is_ok(),
            "Exec" => serde_json::from_value::<Exec<Value>>(v).is_ok(),
            "ExecState" => serde_json::from_value::<ExecState>(v).is_ok(),
            "Stats" => serde_json::from_value::<Stats>(v).is_ok(),
            "CpuStats" => serde_json::from_value::<CpuStats>(v).is_ok(),
            "MemoryStats" => serde_json::from_value::<MemoryStats>(v).is_ok(),
            "PidsStats" => serde_json::from_value::<PidsStats>(v).is_ok(),
            "IoStats" => serde_json::from_value::<IoStats>(v).is_ok(),
            "Processes" => serde_json::from_value::<Processes>(v).is_ok(),
            "ProcessInfo" => serde_json::from_value::<ProcessInfo>(v).is_ok(),
            "Event" => serde_json::from_value::<Event>(v).is_ok(),
            "Interfaces" => serde_json::from_value::<Interfaces>(v).is_ok(),
            "Interface" => serde_json::from_value::<Interface>(v).is_ok(),
            "SetInterface" => serde_json::from_value::<SetInterface>(v).is_ok(),
            "Routes" => serde_json::from_value::<Routes>(v).is_ok(),
            "Route" => serde_json::from_value::<Route>(v).is_ok(),
            other => panic!("{other}"),
        }
    }
    let schema = schema();
    for (name, value) in documents() {
        assert!(read(name, value.clone()), "{name}");
        if schema["$defs"][name].get("oneOf").is_some() {
            continue;
        }
        let required = schema["$defs"][name]["required"]
            .as_array()
            .expect("required");
        for field in value.as_object().expect("object").keys() {
            let mut without = value.clone();
            without.as_object_mut().expect("object").remove(field);
            let is_required = required.iter().any(|r| r == field);
            assert_eq!(read(name, without), !is_required, "{name} without {field}");
        }
    }
}

#[test]
fn names_when_serialised_then_are_those_of_the_schema() {
    let codes = [
        ErrorCode::BadRequest,
        ErrorCode::NotFound,
        ErrorCode::MethodNotAllowed,
        ErrorCode::Conflict,
        ErrorCode::PayloadTooLarge,
        ErrorCode::Unprocessable,
        ErrorCode::HeadersTooLarge,
        ErrorCode::NotSupported,
        ErrorCode::Internal,
        ErrorCode::Unavailable,
    ];
    let json = serde_json::to_value(codes).expect("serialise");
    assert_eq!(
        json,
        schema()["$defs"]["ApiError"]["properties"]["code"]["enum"]
    );
    let statuses = serde_json::to_value([HealthStatus::Ok, HealthStatus::ShuttingDown]);
    let health = &schema()["$defs"]["Health"]["properties"]["status"]["enum"];
    assert_eq!(&statuses.expect("serialise"), health);
    let statuses = serde_json::to_value([
        Status::Created,
        Status::Running,
        Status::Paused,
        Status::Stopped,
    ]);
    let container = &schema()["$defs"]["ContainerState"]["properties"]["status"]["enum"];
    assert_eq!(&statuses.expect("serialise"), container);
    let events = serde_json::to_value([
        EventKind::Listening,
        EventKind::Created,
        EventKind::Started,
        EventKind::Exited,
        EventKind::Paused,
        EventKind::Resumed,
        EventKind::Oom,
        EventKind::Deleted,
        EventKind::ExecStarted,
        EventKind::ExecExited,
        EventKind::Lost,
    ]);
    let event = &schema()["$defs"]["Event"]["properties"]["event"]["enum"];
    assert_eq!(&events.expect("serialise"), event);
}
