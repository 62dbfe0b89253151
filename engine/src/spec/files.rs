//! What the container's network means for the files in its `/etc`.

use bulkhead_container::spec::Spec;
use bulkhead_protocol::NewFile;

/// What Docker writes for every container, addresses by their names.
const HOSTS: &str = "127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
";

/// The container's name, and by which addresses it is known to itself. There are no servers to ask for
/// others, so that the image's `/etc/resolv.conf` is as good as any.
pub fn files(spec: &Spec) -> Vec<NewFile> {
    let Some(name) = &spec.hostname else {
        return Vec::new();
    };
    let file = |path: &str, text| NewFile {
        path: path.to_owned(),
        text,
    };
    // As Docker has it: whole, and up to the first dot.
    let names = match name.split_once('.') {
        Some((short, _)) => format!("{name} {short}"),
        None => name.clone(),
    };
    vec![
        file("/etc/hostname", format!("{name}\n")),
        file("/etc/hosts", format!("{HOSTS}127.0.0.1\t{names}\n")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_when_given_is_in_the_files_whole_and_short() {
        let spec = Spec {
            hostname: Some("web.example".into()),
            ..Spec::default()
        };
        let [hostname, hosts] = &files(&spec)[..] else {
            panic!("two files");
        };
        assert_eq!(hostname.text, "web.example\n");
        assert!(hosts.text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(hosts.text.ends_with("\n127.0.0.1\tweb.example web\n"));
        assert!(files(&Spec::default()).is_empty());
    }
}
