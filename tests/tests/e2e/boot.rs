//! Booting: to the agent, with an initramfs, from every form of kernel.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use bulkhead_test_guest::{REBOOT_PARAMETER, UP};
use bulkhead_tests::lane::Lane;
use bulkhead_tests::vm::Setup;
use bulkhead_tests::{artifacts, http};
use serde_json::Value;

/// The agent's port.
const API_PORT: u32 = 1024;

#[test]
fn agent_when_booted_then_is_ready_and_answers() {
    let mut vm = Setup::agent().start();
    let (ready, _) = vm.wait_ready();
    assert_eq!(ready["api"], 1, "{ready}");
    let init = ready["timings"]["init_start_ns"].as_u64().expect("init");
    let done = ready["timings"]["ready_ns"].as_u64().expect("ready");
    assert!(init > 0 && init <= done, "{ready}");

    let (status, health) =
        http::request(vm.connect(API_PORT), "GET", "/v1/health", None).expect("health");
    assert_eq!((status, &health["status"]), (200, &Value::from("ok")));
    let (status, info) =
        http::request(vm.connect(API_PORT), "GET", "/v1/info", None).expect("info");
    assert_eq!(status, 200, "{info}");
    assert_eq!(info["cpus_online"], 1, "{info}");
    assert_eq!(info["kernel"]["sysname"], "Linux", "{info}");
    let (status, _) = http::request(vm.connect(API_PORT), "GET", "/nothing", None).expect("404");
    assert_eq!(status, 404);

    let stop = http::request(vm.connect(API_PORT), "POST", "/v1/shutdown", None);
    // The guest may be gone before its answer is.
    assert!(stop.is_err() || stop.is_ok_and(|(status, _)| status < 300));
    vm.expect_exit(0);
    assert_eq!(vm.stderr(), "");
}

/// Boots from an initramfs to a program that says it is up and resets the VM.
fn one_program(setup: Setup) -> Setup {
    setup
        .initrd(&artifacts::test_initramfs())
        .cmdline(REBOOT_PARAMETER)
}

#[test]
fn guest_when_its_root_is_an_initramfs_then_boots() {
    let setup = Setup::bare();
    let mut vm = one_program(setup).start();
    vm.wait_console(UP);
    vm.expect_exit(10);
}

#[test]
fn guest_when_its_console_is_a_serial_port_then_it_shows_there() {
    let setup = Setup::bare()
        .with("serial", true.into())
        .with("console", "none".into())
        .cmdline("console=ttyS0");
    let mut vm = one_program(setup).start();
    vm.wait_console(UP);
    vm.expect_exit(10);
}

#[test]
fn bzimage_when_packed_by_any_packer_then_boots() {
    if Lane::is_not(
        Lane::Own,
        "the packers are not carried into the outer machine",
    ) {
        return;
    }
    let vmlinux = fs::read(artifacts::kernel()).expect("read the kernel");
    for packer in [
        &["gzip", "-1"][..],
        &["zstd", "-1"],
        &["lz4", "-l", "-1"],
        &["xz", "-1", "--check=crc32"],
    ] {
        let setup = Setup::bare();
        let image = setup.path("bzImage");
        fs::write(&image, bzimage(&pack(packer, &vmlinux), &vmlinux)).expect("write a bzImage");
        let mut vm = one_program(setup.kernel(&image)).start();
        vm.wait_console(UP);
        vm.expect_exit(10);
    }
}

/// Debian's kernel as it comes from the archive knows nothing of us: no virtio-mmio on its command
/// line, no exit port, no system calls by fault.
#[test]
fn distribution_kernel_when_unmodified_then_reaches_user_space_over_serial() {
    if Lane::is_not(
        Lane::Faithful,
        "only a KVM like hardware's boots an unmodified kernel",
    ) {
        return;
    }
    let setup = Setup::bare()
        .with("serial", true.into())
        .with("console", "none".into())
        .with("memory_mib", 256.into())
        .kernel(&artifacts::cloud_kernel())
        // Enough for the line that says which kernel it is.
        .cmdline("console=ttyS0 loglevel=6");
    let mut vm = one_program(setup).start();
    vm.wait_console(UP);
    vm.expect_exit(10);
    assert!(vm.console().contains("cloud-amd64"), "{}", vm.console());
}

fn pack(packer: &[&str], data: &[u8]) -> Vec<u8> {
    let mut child = Command::new(packer[0])
        .args(&packer[1..])
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("start {}: {e}; `make setup` installs it", packer[0]));
    let mut stdin = child.stdin.take().expect("stdin");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(data).expect("feed the packer"));
        child.wait_with_output().expect("pack")
    });
    assert!(output.status.success(), "{packer:?}: {}", output.status);
    output.stdout
}

/// A bzImage as the kernel's build lays it out (Documentation/arch/x86/boot.rst), with its real-mode
/// code left out: whoever boots it by the 64-bit protocol never runs that.
fn bzimage(payload: &[u8], vmlinux: &[u8]) -> Vec<u8> {
    const SETUP_SECTORS: usize = 4;
    const PAYLOAD_OFFSET: usize = 0x200;
    // The build appends the unpacked size to the payload, for the decompressor's use.
    let mut protected = vec![0; PAYLOAD_OFFSET];
    protected.extend_from_slice(payload);
    protected.extend_from_slice(&(vmlinux.len() as u32).to_le_bytes());
    protected.resize(protected.len().next_multiple_of(16), 0);

    let mut image = vec![0; (SETUP_SECTORS + 1) * 512];
    let mut put = |offset: usize, bytes: &[u8]| {
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0x1f1, &[SETUP_SECTORS as u8]);
    put(0x1f4, &(protected.len() as u32 / 16).to_le_bytes()); // syssize
    put(0x1fe, &0xaa55u16.to_le_bytes()); // boot_flag
    put(0x200, &[0xeb, 0x6a]); // jump over the header
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes()); // version 2.15
    put(0x211, &[1]); // loadflags: loaded high
    put(0x214, &0x10_0000u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
    put(0x234, &[1, 21]); // relocatable_kernel, min_alignment
    put(0x236, &0x3fu16.to_le_bytes()); // xloadflags: 64-bit entry, above 4 GiB
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x248, &(PAYLOAD_OFFSET as u32).to_le_bytes());
    put(0x24c, &(payload.len() as u32 + 4).to_le_bytes()); // payload_length
    put(0x258, &0x100_0000u64.to_le_bytes()); // pref_address
    put(0x260, &(64u32 << 20).to_le_bytes()); // init_size
    image.extend_from_slice(&protected);
    image
}
