//! User namespaces: what containers of who is not root need on the host's kernel.

use std::fs;
use std::path::Path;

use super::Finding;

const WHAT: &str = "users";

/// Looks at what there is for containers of users.
pub fn look() -> Vec<Finding> {
    let switch = |path: &str| fs::read_to_string(path).ok();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |program: &str| std::env::split_paths(&path).any(|d| d.join(program).is_file());
    vec![judge(switch, |program| {
        found(program) || Path::new("/usr/bin").join(program).is_file()
    })]
}

fn judge(switch: impl Fn(&str) -> Option<String>, has: impl Fn(&str) -> bool) -> Finding {
    let is = |path: &str, value: &str| switch(path).is_some_and(|found| found.trim() == value);
    let off = [
        ("user.max_user_namespaces", "0", "10000"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ];
    for (name, bad, better) in off {
        if is(&format!("/proc/sys/{}", name.replace('.', "/")), bad) {
            let advice = format!(
                "only root can run containers on the host's kernel: `sysctl {name}={better}`"
            );
            return Finding::warning(WHAT, format!("{name} is {bad}"), advice);
        }
    }
    match has("newuidmap") && has("newgidmap") {
        true => Finding::good(WHAT, "may have user namespaces, mapped by newuidmap"),
        false => Finding::warning(
            WHAT,
            "may have user namespaces, with one user in each",
            "install uidmap, and have ranges in /etc/subuid and /etc/subgid, so that their containers can have more",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn users_when_namespaces_are_switched_off_then_the_switch_is_named() {
        let zero = |wanted: &'static str, value: &'static str| {
            move |path: &str| (path == wanted).then(|| format!("{value}\n"))
        };
        let off = judge(zero("/proc/sys/user/max_user_namespaces", "0"), |_| true);
        assert_eq!(off.verdict, Verdict::Warning);
        assert!(
            off.advice
                .expect("advice")
                .ends_with("`sysctl user.max_user_namespaces=10000`")
        );
        let name = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
        assert_eq!(judge(zero(name, "1"), |_| true).verdict, Verdict::Warning);
        assert_eq!(judge(zero(name, "0"), |_| true).verdict, Verdict::Good);
    }

    #[test]
    fn users_when_nothing_maps_them_then_one_is_all_there_is() {
        let one = judge(|_| None, |program| program == "newuidmap");
        assert_eq!(one.verdict, Verdict::Warning);
        assert_eq!(judge(|_| None, |_| true).verdict, Verdict::Good);
    }
}
