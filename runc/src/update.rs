//! `update`: other limits for a container that is there.

use std::fs;
use std::io::Read;

use bulkhead_container::Opened;
use bulkhead_container::spec::{BlockIo, Cpu, LinuxPids, Memory, Resources};

use crate::Globals;
use crate::arguments::Arguments;
use crate::failure::{Outcome, cannot};
use crate::lifecycle::refuse;
use crate::place::{Place, Status};

pub fn update(globals: &Globals, arguments: &Arguments, id: &str) -> Outcome<u8> {
    let place = Place::new(&globals.root, id)?;
    let _locked = place.lock()?;
    let kept = place.whole()?;
    let resources = match arguments.value("resources") {
        Some(file) => read(file)?,
        None => from_options(arguments)?,
    };
    match place.open(&kept, false)?.0 {
        Opened::Alive(container) => {
            if let Some(scope) = &kept.scope {
                scope.update(&resources)?;
            }
            container.update(&resources)?;
        }
        Opened::Ended(_) => return Err(refuse(id, "update", "it is", Status::Stopped)),
    }
    Ok(0)
}

fn read(file: &str) -> Outcome<Resources> {
    let failed = || format!("read {file}");
    let mut text = Vec::new();
    match file {
        "-" => std::io::stdin()
            .read_to_end(&mut text)
            .map(drop)
            .map_err(cannot("read standard input"))?,
        _ => text = fs::read(file).map_err(cannot(failed()))?,
    }
    serde_json::from_slice(&text).map_err(cannot(failed()))
}

fn from_options(arguments: &Arguments) -> Outcome<Resources> {
    let text = |name: &str| arguments.value(name).map(str::to_owned);
    let bytes = |name: &str| {
        arguments
            .value(name)
            .map(|text| size(name, text))
            .transpose()
    };
    let memory = Memory {
        limit: bytes("memory")?,
        reservation: bytes("memory-reservation")?,
        swap: bytes("memory-swap")?,
        ..Memory::default()
    };
    let cpu = Cpu {
        shares: arguments.number("cpu-share")?,
        quota: arguments.number("cpu-quota")?,
        burst: arguments.number("cpu-burst")?,
        period: arguments.number("cpu-period")?,
        idle: arguments.number("cpu-idle")?,
        cpus: text("cpuset-cpus"),
        mems: text("cpuset-mems"),
        realtime_runtime: arguments.number("cpu-rt-runtime")?,
        realtime_period: arguments.number("cpu-rt-period")?,
    };
    let weight = arguments.number("blkio-weight")?;
    let limit = arguments.number("pids-limit")?;
    Ok(Resources {
        memory: (memory != Memory::default()).then_some(memory),
        cpu: (cpu != Cpu::default()).then_some(cpu),
        pids: limit.map(|limit| LinuxPids { limit }),
        block_io: weight.map(|weight| BlockIo {
            weight: Some(weight),
            ..BlockIo::default()
        }),
        ..Resources::default()
    })
}

/// Bytes, or with a letter after them multiples of 1024.
fn size(name: &str, text: &str) -> Result<i64, String> {
    let wrong = || format!("--{name} is bytes, as in 64M, and not {text:?}");
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches('b');
    let units = [("k", 10), ("m", 20), ("g", 30), ("t", 40)];
    let unit = units
        .into_iter()
        .find_map(|(letter, shift)| number.strip_suffix(letter).map(|number| (number, shift)));
    let (number, shift) = unit.unwrap_or((number, 0));
    let number: i64 = number.parse().map_err(|_| wrong())?;
    match number {
        -1 => Ok(-1),
        0.. => number.checked_mul(1 << shift).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_when_with_a_unit_then_bytes() {
        for (text, bytes) in [("-1", -1), ("0", 0), ("64M", 64 << 20), ("1kb", 1024)] {
            assert_eq!(size("memory", text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-2", "9999999999T", "1x"] {
            assert!(size("memory", text).is_err(), "{text}");
        }
    }
}
