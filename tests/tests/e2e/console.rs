//! The virtio console: both ways, through the guest's terminal.

use bulkhead_tests::guest::Guest;
use bulkhead_tests::vm::Setup;
use serde_json::json;

#[test]
fn console_when_the_guest_writes_then_it_is_shown() {
    let guest = Guest::boot(Setup::test_guest());
    let line = "a line of some length. ".repeat(40);
    for i in 0..10 {
        let text = format!("{i}: {line}\n");
        guest.ask(json!({"op": "console_write", "text": text}));
    }
    guest.vm.wait_console(&format!("9: {line}"));
    let shown = guest.vm.console();
    for i in 0..10 {
        assert!(
            shown.contains(&format!("{i}: {line}\r\n")),
            "line {i}: {shown}"
        );
    }
}

#[test]
fn console_when_typed_on_then_the_guest_echoes_and_reads_it() {
    let mut guest = Guest::boot(Setup::test_guest());
    let request = json!({"op": "read_file", "path": "/dev/hvc0"});
    let asked = guest.open(&request);
    // A terminal's line discipline: the line is echoed, read whole, and Ctrl-D ends the file.
    guest.vm.type_in("typed by the test\n\x04");
    guest.vm.wait_console("typed by the test");
    assert_eq!(guest.reply(asked, &request).text, "typed by the test\n");
}
