//! Profiles as `docker run --security-opt seccomp=FILE` takes them: a filter for all machines and containers, in which rules
//! say for which they are.

use serde::Deserialize;

use crate::spec::{Seccomp, SeccompAction, SeccompArgument, SeccompRule};

/// A profile.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    default_action: SeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<Architecture>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    /// The older form, of one name.
    name: Option<String>,
    action: SeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<SeccompArgument>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// The oldest kernel there is anything for here.
const OLDEST_KERNEL: (u32, u32) = (5, 14);

impl Profile {
    /// Reads a profile from JSON.
    pub fn parse(json: &[u8]) -> Result<Profile, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// The filter of a container that has these capabilities in its bounding set.
    pub fn filter(&self, capabilities: &[String]) -> Seccomp {
        let of_this_machine = self
            .arch_map
            .iter()
            .find(|map| map.architecture == "SCMP_ARCH_X86_64");
        let architectures = match of_this_machine {
            None => self.architectures.clone(),
            Some(map) => {
                let others = map.sub_architectures.iter().flatten();
                [&map.architecture]
                    .into_iter()
                    .chain(others)
                    .cloned()
                    .collect()
            }
        };
        let applies = |rule: &&Rule| {
            rule.includes.holds(capabilities) && !rule.excludes.names_any(capabilities)
        };
        let rule = |rule: &Rule| SeccompRule {
            names: rule.names.iter().chain(&rule.name).cloned().collect(),
            action: rule.action,
            errno_ret: rule.errno_ret,
            args: rule.args.clone().unwrap_or_default(),
        };
        Seccomp {
            default_action: self.default_action,
            default_errno_ret: self.default_errno_ret,
            architectures,
            flags: self.flags.clone(),
            listener_path: None,
            listener_metadata: None,
            syscalls: self.syscalls.iter().filter(applies).map(rule).collect(),
        }
    }
}

impl Condition {
    /// All that it asks for is there.
    fn holds(&self, capabilities: &[String]) -> bool {
        let has_all = self
            .caps
            .iter()
            .flatten()
            .all(|cap| capabilities.contains(cap));
        let machine = self
            .arches
            .as_ref()
            .is_none_or(|arches| arches.iter().any(|arch| arch == "amd64"));
        let kernel = self
            .min_kernel
            .as_deref()
            .is_none_or(|version| is_old(version).unwrap_or(false));
        has_all && machine && kernel
    }

    /// Something that it names is there.
    fn names_any(&self, capabilities: &[String]) -> bool {
        let has = self
            .caps
            .iter()
            .flatten()
            .any(|cap| capabilities.contains(cap));
        let machine = self.arches.iter().flatten().any(|arch| arch == "amd64");
        let kernel = self
            .min_kernel
            .as_deref()
            .is_some_and(|version| is_old(version).unwrap_or(false));
        has || machine || kernel
    }
}

/// Whether every kernel is at least this version.
fn is_old(version: &str) -> Option<bool> {
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let version = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(version <= OLDEST_KERNEL)
}

/// What Docker allows a container unless it is told otherwise.
pub fn docker_default() -> Profile {
    // Checked by a test; if it could not be read, nothing would be allowed.
    Profile::parse(include_bytes!("default.json")).unwrap_or(Profile {
        default_action: SeccompAction::Errno,
        default_errno_ret: None,
        architectures: Vec::new(),
        arch_map: Vec::new(),
        flags: Vec::new(),
        syscalls: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{compile, syscalls};
    use super::*;

    fn rules(filter: &Seccomp, name: &str) -> Vec<(SeccompAction, usize)> {
        let of = filter
            .syscalls
            .iter()
            .filter(|rule| rule.names.iter().any(|n| n == name));
        of.map(|rule| (rule.action, rule.args.len())).collect()
    }

    #[test]
    fn default_profile_when_read_then_every_name_is_a_system_call() {
        let profile = Profile::parse(include_bytes!("default.json")).expect("valid");
        let known = |name: &str| {
            let tables = [syscalls::X86_64, syscalls::I386];
            tables
                .into_iter()
                .flat_map(syscalls::each)
                .any(|(_, known)| known == name)
        };
        for name in profile.syscalls.iter().flat_map(|rule| &rule.names) {
            assert!(known(name), "{name}");
        }
        let filter = compile(&profile.filter(&[])).expect("compiles");
        println!(
            "the default profile is {} instructions",
            filter.program.len()
        );
        assert!(filter.program.len() < 600);
    }

    #[test]
    fn default_profile_when_for_capabilities_then_their_calls_are_allowed() {
        let profile = docker_default();
        let (plain, admin) = (
            profile.filter(&[]),
            profile.filter(&["CAP_SYS_ADMIN".to_owned()]),
        );
        assert_eq!(rules(&plain, "mount"), []);
        assert_eq!(rules(&admin, "mount"), [(SeccompAction::Allow, 0)]);
        assert_eq!(rules(&plain, "clone"), [(SeccompAction::Allow, 1)]);
        assert_eq!(rules(&admin, "clone"), [(SeccompAction::Allow, 0)]);
        assert_eq!(rules(&plain, "clone3"), [(SeccompAction::Errno, 0)]);
        assert_eq!(rules(&plain, "keyctl"), []);
    }

    #[test]
    fn profile_when_for_other_machines_then_their_rules_are_left_out() {
        let json = br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["a"], "action": "SCMP_ACT_ERRNO", "includes": {"arches": ["s390x"]}},
            {"names": ["b"], "action": "SCMP_ACT_ERRNO", "excludes": {"arches": ["amd64"]}},
            {"names": ["c"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "4.8"}},
            {"names": ["d"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "99.0"}},
            {"name": "e", "action": "SCMP_ACT_ERRNO", "args": null}]}"#;
        let filter = Profile::parse(json).expect("valid").filter(&[]);
        let names: Vec<&String> = filter
            .syscalls
            .iter()
            .flat_map(|rule| &rule.names)
            .collect();
        assert_eq!(names, ["c", "e"]);
    }
}
