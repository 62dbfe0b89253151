//! The names that configurations are read by, for those who ask what there is (runtime-spec features.md).

use crate::hooks::Point;
use crate::prepare;
use crate::seccomp;
use crate::spec::{NamespaceKind, SeccompAction, SeccompOperator};

/// Of hooks.
pub fn hooks() -> Vec<&'static str> {
    Point::ALL.map(Point::name).to_vec()
}

/// Of mount options, those of single filesystems apart.
pub fn mount_options() -> Vec<String> {
    prepare::mount_options()
}

/// Of namespaces.
pub fn namespaces() -> Vec<&'static str> {
    use NamespaceKind as K;
    let all = [
        K::Cgroup,
        K::Ipc,
        K::Mount,
        K::Network,
        K::Pid,
        K::Time,
        K::User,
        K::Uts,
    ];
    all.map(NamespaceKind::name).to_vec()
}

/// Of what can become of a system call.
pub fn seccomp_actions() -> Vec<SeccompAction> {
    use SeccompAction as A;
    vec![
        A::Allow,
        A::Errno,
        A::KillThread,
        A::KillProcess,
        A::Log,
        A::Notify,
        A::Trace,
        A::Trap,
    ]
}

/// Of comparisons of arguments.
pub fn seccomp_operators() -> Vec<SeccompOperator> {
    use SeccompOperator as O;
    vec![
        O::Equal,
        O::GreaterOrEqual,
        O::Greater,
        O::LessOrEqual,
        O::Less,
        O::MaskedEqual,
        O::NotEqual,
    ]
}

/// Of instruction sets.
pub fn seccomp_architectures() -> Vec<&'static str> {
    seccomp::ARCHITECTURES.to_vec()
}

/// Of what can be asked for besides.
pub fn seccomp_flags() -> Vec<&'static str> {
    seccomp::FLAGS.map(|(name, _)| name).to_vec()
}
