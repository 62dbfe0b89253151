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
    match schema["type"].as_str() {
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
    fn json(v: impl Serialize) -> Value {
        serde_json::to_value(v).expect("serialise")
    }
    let kernel = Kernel {
        sysname: "Linux".into(),
        release: "6.12.57".into(),
        version: "#1 SMP".into(),
        machine: "x86_64".into(),
    };
    let memory = Memory {
        total_bytes: 2,
        available_bytes: 1,
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
                memory,
                uptime_ns: 1,
                timings: timings(),
            }),
        ),
        ("Kernel", json(kernel)),
        ("Memory", json(memory)),
        ("Shutdown", json(Shutdown { grace_ms: Some(1) })),
        (
            "ApiError",
            json(ApiError {
                code: ErrorCode::NotFound,
                message: "No such path.".into(),
            }),
        ),
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
            other => panic!("{other}"),
        }
    }
    let schema = schema();
    for (name, value) in documents() {
        assert!(read(name, value.clone()), "{name}");
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
fn error_codes_when_serialised_then_are_those_of_the_schema() {
    let codes = [
        ErrorCode::BadRequest,
        ErrorCode::NotFound,
        ErrorCode::MethodNotAllowed,
        ErrorCode::PayloadTooLarge,
        ErrorCode::HeadersTooLarge,
        ErrorCode::NotSupported,
        ErrorCode::Internal,
    ];
    let json = serde_json::to_value(codes).expect("serialise");
    assert_eq!(
        json,
        schema()["$defs"]["ApiError"]["properties"]["code"]["enum"]
    );
    let statuses = serde_json::to_value([HealthStatus::Ok, HealthStatus::ShuttingDown]);
    let health = &schema()["$defs"]["Health"]["properties"]["status"]["enum"];
    assert_eq!(&statuses.expect("serialise"), health);
}
