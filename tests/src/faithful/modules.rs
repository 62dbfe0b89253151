//! Kernel modules and what they need, read from an unpacked kernel package.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The modules below one `lib/modules/<release>`.
#[derive(Debug)]
pub struct Modules {
    by_name: HashMap<String, PathBuf>,
}

impl Modules {
    /// Finds every module below `dir`.
    pub fn scan(dir: &Path) -> io::Result<Self> {
        let mut by_name = HashMap::new();
        let mut todo = vec![dir.to_path_buf()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir)? {
                let entry = entry?;
                let path = entry.path();
                if entry.file_type()?.is_dir() {
                    todo.push(path);
                } else if let Some(name) = module_name(&path) {
                    by_name.insert(name, path);
                }
            }
        }
        Ok(Modules { by_name })
    }

    /// The bytes of `name` and of everything it depends on, dependencies first, without those
    /// already in `loaded`, to which it adds. A module the kernel does not have is an error.
    pub fn resolve(&self, name: &str, loaded: &mut Vec<String>) -> io::Result<Vec<Vec<u8>>> {
        let name = name.replace('-', "_");
        if loaded.contains(&name) {
            return Ok(Vec::new());
        }
        let path = self.by_name.get(&name).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("the outer kernel has no module {name}"),
            )
        })?;
        loaded.push(name);
        let module = read_module(path)?;
        let mut chain = Vec::new();
        for dependency in dependencies(&module) {
            chain.extend(self.resolve(&dependency, loaded)?);
        }
        chain.push(module);
        Ok(chain)
    }

    /// Whether the kernel has `name` as a module.
    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(&name.replace('-', "_"))
    }
}

/// `kvm-amd.ko.xz` is the module `kvm_amd`.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stem = [".ko", ".ko.xz", ".ko.zst"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))?;
    Some(stem.replace('-', "_"))
}

fn read_module(path: &Path) -> io::Result<Vec<u8>> {
    let unpacker = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path),
    };
    let output = Command::new(unpacker).arg("-dc").arg(path).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!(
            "{unpacker} cannot unpack {}",
            path.display()
        )));
    }
    Ok(output.stdout)
}

/// The `depends=` line of a module's `.modinfo`. Looked for by its bytes, not through the section
/// table: the string occurs nowhere else in a module.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|w| w == KEY) else {
        return Vec::new();
    };
    let value = &module[at + KEY.len()..];
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_when_listed_then_all_are_found() {
        let module = b"\x7fELF\0license=GPL\0depends=kvm,irqbypass\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["kvm", "irqbypass"]);
        assert!(dependencies(b"\0license=GPL\0depends=\0").is_empty());
    }

    #[test]
    fn resolve_when_modules_share_a_dependency_then_it_comes_once_and_first() {
        let dir = tempfile::tempdir().expect("tempdir");
        for (name, depends) in [("a-b", "base"), ("c", "base,a-b"), ("base", "")] {
            let body = format!("{name}\0depends={depends}\0");
            fs::write(dir.path().join(format!("{name}.ko")), body).expect("write");
        }
        let modules = Modules::scan(dir.path()).expect("scan");
        let mut loaded = Vec::new();
        let mut chain = modules.resolve("c", &mut loaded).expect("resolve");
        chain.extend(modules.resolve("a_b", &mut loaded).expect("resolve"));
        let names: Vec<_> = chain
            .iter()
            .map(|m| {
                String::from_utf8_lossy(m.split(|&b| b == 0).next().expect("name")).into_owned()
            })
            .collect();
        assert_eq!(names, ["base", "a-b", "c"]);
        assert!(modules.resolve("absent", &mut loaded).is_err());
    }
}
