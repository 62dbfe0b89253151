//! The kernel's own files, its mounts and its namespaces: what of them a container could change or enter.

use bulkhead_container::Create;

use super::*;

/// Opens each file for writing, and says how that went. Nothing is written.
fn writes(paths: &[&str]) -> String {
    let list = paths.join(" ");
    format!(
        "for f in {list}; do ( : >> $f ) 2>&1 | sed 's/.*: //' | grep . || echo written $f; done"
    )
}

#[test]
fn files_of_the_kernel_when_written_then_refused() {
    let paths = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/power/state",
        "/sys/module/kernel/parameters/panic",
    ];
    let existing: Vec<&str> = paths
        .into_iter()
        .filter(|p| Path::new(p).exists())
        .collect();
    assert!(existing.len() > 5, "{existing:?}");
    let root = rootfs();
    let mut spec = spec(&writes(&existing));
    confine(&mut spec);
    spec.linux.as_mut().unwrap().seccomp = None;
    let text = succeed(&spec, overlay(root.path()));
    assert_eq!(text.lines().count(), existing.len(), "{text}");
    for (path, answer) in existing.iter().zip(text.lines()) {
        assert_eq!(answer, "Read-only file system", "{path}");
    }
    // With nothing hidden, opening is allowed.
    let free = crate::spec(&writes(&["/proc/sys/kernel/core_pattern"]));
    let text = succeed(&free, overlay(root.path()));
    assert_eq!(text, "written /proc/sys/kernel/core_pattern\n");
}

/// The image's link brings a volume to be mounted where the runtime sets a parameter: what is there then is not the kernel's, and
/// might lead to where it is not meant to write.
#[test]
fn parameter_when_a_volume_lies_over_it_then_the_volume_is_not_written() {
    let volume = tempfile::tempdir().unwrap();
    for link in [None, Some("/volume/other")] {
        let root = rootfs();
        symlink("/proc/sys/net/ipv4", root.path().join("data")).unwrap();
        let file = volume.path().join("ip_forward");
        let _ = std::fs::remove_file(&file);
        match link {
            Some(link) => symlink(link, &file).unwrap(),
            None => std::fs::write(&file, "").unwrap(),
        }
        std::fs::write(volume.path().join("other"), "").unwrap();
        let mut spec = spec("true");
        spec.mounts.push(bind(volume.path(), "/volume", "bind"));
        spec.mounts.push(bind(volume.path(), "/data", "bind"));
        let sysctl = &mut spec.linux.as_mut().unwrap().sysctl;
        sysctl.insert("net.ipv4.ip_forward".into(), "1".into());
        let error = run(&spec, overlay(root.path())).unwrap_err().to_string();
        assert!(error.starts_with("cannot set kernel parameter"), "{error}");
        let name = link.map_or("ip_forward", |_| "other");
        assert_eq!(std::fs::read(volume.path().join(name)).unwrap(), b"");
    }
}

#[test]
fn files_of_the_kernel_when_secret_then_empty() {
    let root = rootfs();
    let mut spec = spec(
        "for f in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; do [ ! -e $f ] || head -c 1 $f | wc -c; done; \
         ls /sys/firmware /proc/scsi /proc/acpi 2>/dev/null | grep -v ':$' | grep .; dmesg -c | head -c 1",
    );
    confine(&mut spec);
    process(&mut spec).env.push("PATH=/bin:/usr/bin".into());
    let output = run(&spec, overlay(root.path())).unwrap();
    assert!(output.stdout.lines().all(|l| l == "0"), "{output:?}");
    assert!(output.stdout.lines().count() >= 2, "{output:?}");
}

/// The classic one: a hierarchy of version 1 whose release agent is run by the host as soon as a group is empty.
#[test]
fn release_agent_when_looked_for_then_out_of_reach() {
    let attack = r#"
        find / -xdev -name release_agent 2>/dev/null; find /sys /proc -name release_agent 2>/dev/null
        for controller in rdma memory pids misc cpu; do mount -t cgroup -o $controller none /tmp && echo mounted $controller; done
        mount -t cgroup2 none /tmp && echo mounted 2
        mount -o remount,rw /sys/fs/cgroup && echo remounted
        mkdir /sys/fs/cgroup/made && echo made
        true"#;
    let root = rootfs();
    let mut spec = spec(attack);
    confine(&mut spec);
    for filtered in [true, false] {
        if !filtered {
            spec.linux.as_mut().unwrap().seccomp = None;
        }
        let output = run(&spec, overlay(root.path())).unwrap();
        assert_eq!(output.stdout, "", "filtered: {filtered}, {output:?}");
    }
    // In a user namespace of its own it may mount, where the filter lets it; but write no agent.
    let root = armed_rootfs();
    let inner = "mkdir -p /tmp/v1; for c in rdma memory pids misc; do mount -t cgroup -o $c none /tmp/v1 || continue; \
        echo /x > /tmp/v1/release_agent && echo written $c; umount /tmp/v1; done; true";
    let mut spec = armed(&format!("unshare -UrmC sh -c '{inner}'; true"));
    confine(&mut spec);
    spec.linux.as_mut().unwrap().seccomp = None;
    let output = run(&spec, overlay(root.path())).unwrap();
    assert_eq!(output.stdout, "", "{output:?}");
    // The way in is there for who has all capabilities.
    let mut free = crate::spec("mount -t cgroup2 none /tmp && echo mounted");
    give_all_capabilities(&mut free);
    assert_eq!(succeed(&free, overlay(root.path())), "mounted\n");
}

#[test]
fn mounts_when_changed_from_inside_then_refused() {
    let volume = tempfile::tempdir().unwrap();
    let attack = "mount -o remount,rw /sys; mount -o remount,rw /proc/sys; mount -o remount,bind,rw /volume; \
        umount /proc/kcore; umount /proc/sys; umount /volume; mount -t proc proc /proc; mount -t proc proc /tmp; \
        mount -t sysfs sysfs /tmp; mount -t tmpfs none /proc; mount --bind / /tmp; mount --make-rshared /; \
        mount -t debugfs none /tmp; mount -t devtmpfs none /tmp; : > /volume/file";
    let root = rootfs();
    let mut spec = spec(&attack.replace(';', " && echo done;"));
    confine(&mut spec);
    spec.mounts.push(bind(volume.path(), "/volume", "bind,ro"));
    for filtered in [true, false] {
        if !filtered {
            spec.linux.as_mut().unwrap().seccomp = None;
        }
        let output = run(&spec, overlay(root.path())).unwrap();
        assert_eq!(output.stdout, "", "filtered: {filtered}");
    }
    assert_eq!(std::fs::read_dir(volume.path()).unwrap().count(), 0);
}

/// Whoever makes a user namespace has all capabilities in it. The kernel keeps together what was mounted together, and shows no
/// more of /proc and /sys than is seen already.
#[test]
fn mounts_when_changed_in_a_user_namespace_then_nothing_hidden_appears() {
    let unshared = |command: &str| format!("unshare -Urmpf sh -c '{command}'; true");
    let proc = unshared("mount -t proc proc /tmp && echo mounted");
    let attack = unshared(
        "echo in; mount -t proc proc /tmp && echo proc; umount /proc/kcore && echo kcore; umount /proc/sys && echo sys; \
         mount -o remount,bind,rw /proc/sys && echo rw; mount -o remount,bind,rw /volume && echo volume; \
         umount -l /proc && echo all; mount --bind /proc /tmp && echo alone; \
         mount -t overlay -o lowerdir=/volume,upperdir=/dev/shm,workdir=/tmp none /tmp && : > /volume/x && echo over",
    );
    let volume = tempfile::tempdir().unwrap();
    let root = armed_rootfs();
    let mut spec = armed(&attack);
    confine(&mut spec);
    spec.mounts.push(bind(volume.path(), "/volume", "bind,ro"));
    // By default there is no way to make one.
    let output = run(&spec, overlay(root.path())).unwrap();
    assert!(
        output
            .stderr
            .contains("unshare failed: Operation not permitted"),
        "{output:?}"
    );
    spec.linux.as_mut().unwrap().seccomp = None;
    let output = run(&spec, overlay(root.path())).unwrap();
    assert_eq!(
        output.stdout,
        "in
",
        "{output:?}"
    );
    assert_eq!(std::fs::read_dir(volume.path()).unwrap().count(), 0);
    // With nothing hidden a new /proc is nothing new.
    let mut free = armed(&proc);
    confine(&mut free);
    let linux = free.linux.as_mut().unwrap();
    (linux.masked_paths, linux.readonly_paths, linux.seccomp) = (vec![], vec![], None);
    let output = run(&free, overlay(root.path())).unwrap();
    assert_eq!(
        output.stdout,
        "mounted
",
        "{output:?}"
    );
}

#[test]
fn namespaces_of_the_host_when_looked_for_then_out_of_reach() {
    let ours = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    let net = std::fs::read_link("/proc/self/ns/net").unwrap();
    let attack = "for p in /proc/[0-9]*/ns/*; do readlink $p; done; nsenter -t 1 -m -p -n -i true && echo entered; \
        ls /proc | grep -c '^[0-9]'; kill -0 -1 2>&1 | grep -v such; true";
    let root = armed_rootfs();
    let mut spec = armed(attack);
    confine(&mut spec);
    let output = run(&spec, overlay(root.path())).unwrap();
    for name in [&ours, &net] {
        assert!(
            !output.stdout.contains(name.to_str().unwrap()),
            "{output:?}"
        );
    }
    assert!(!output.stdout.contains("entered"), "{output:?}");
    assert!(output.stdout.contains("pid:["), "{output:?}");
}

/// The first process of another container in the same process namespace: its parent is the runtime.
#[test]
fn runtime_when_traced_or_signalled_from_inside_then_it_is_not_there() {
    let attack = r#"
        my $parent = getppid(); print "parent $parent\n";
        for my $p (1 .. 400) { next if $p == $$; print "traced $p\n" if syscall(101, 16, $p + 0, 0, 0) == 0; }
        print "told\n" if kill(0, MAIN);"#
        .replace("MAIN", &std::process::id().to_string());
    for init in [false, true] {
        let root = armed_rootfs();
        let mut spec = armed("");
        confine(&mut spec);
        spec.linux.as_mut().unwrap().seccomp = None;
        perl(&mut spec, &attack);
        let (stdio, pipes) = Stdio::pipes().unwrap();
        let mut container = bulkhead_container::Container::create(Create {
            id: "trace",
            spec: &spec,
            rootfs: overlay(root.path()),
            cgroup: None,
            stdio,
            init,
            borrows: false,
            dies_with_parent: false,
            bundle: None,
            gate: None,
            spare: None,
            preserved: Vec::new(),
        })
        .unwrap();
        container.start().unwrap();
        let parent = if init { 1 } else { 0 };
        assert_eq!(
            finish(container.pid(), pipes).stdout,
            format!("parent {parent}\n")
        );
    }
}
