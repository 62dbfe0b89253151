//! The keyboard controller, as far as it resets the machine.
//!
//! There is no keyboard and no mouse. What is here is what a kernel needs to find that out without
//! waiting (each answer that does not come costs Linux half a second), and the ways to pull the
//! processor's reset line, which is what Linux's `reboot=k` does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::exit_signal::{ExitSignal, GuestExit};
use crate::bus::BusDevice;

/// The first I/O port.
pub const PORT: u64 = 0x60;
/// Number of ports.
pub const WINDOW_SIZE: u64 = 5;

const DATA: u64 = 0;
/// The system's control port B (0x61), which lies among the controller's own.
const PORT_B: u64 = 1;
const COMMAND: u64 = 4;

/// Port B: the output of timer channel 2 is high. A kernel that calibrates its clock by the timer
/// waits for that.
const PORT_B_TIMER_OUT: u8 = 1 << 5;

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_NOT_LOCKED: u8 = 1 << 4;

const CONTROL_SYSTEM: u8 = 1 << 2;
const CONTROL_KEYBOARD_OFF: u8 = 1 << 4;
const CONTROL_MOUSE_OFF: u8 = 1 << 5;

/// Output port: the reset line, active low, and the A20 gate.
const OUTPUT_NOT_RESET: u8 = 1 << 0;
const OUTPUT_A20: u8 = 1 << 1;

/// The controller.
#[derive(Debug)]
pub struct I8042 {
    exit: Arc<ExitSignal>,
    state: Mutex<I8042State>,
}

/// All of the controller's state, which is also what a snapshot keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct I8042State {
    /// The control byte.
    pub control: u8,
    /// What the guest reads next, if there is anything.
    pub output: Option<u8>,
    /// The command whose argument is to come.
    pub pending: Option<u8>,
}

impl I8042 {
    /// A controller whose reset line raises `exit`.
    pub fn new(exit: Arc<ExitSignal>) -> Self {
        I8042 {
            exit,
            state: Mutex::new(I8042State {
                control: CONTROL_SYSTEM | CONTROL_KEYBOARD_OFF | CONTROL_MOUSE_OFF,
                output: None,
                pending: None,
            }),
        }
    }

    /// What the controller is like.
    pub fn save(&self) -> I8042State {
        self.state().clone()
    }

    /// Puts the controller into a state that was saved. Every one is a possible one: a command it does
    /// not know waits for an argument that means nothing.
    pub fn restore(&self, state: &I8042State) {
        *self.state() = state.clone();
    }

    fn state(&self) -> MutexGuard<'_, I8042State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl I8042State {
    fn status(&self) -> u8 {
        let full = if self.output.is_some() {
            STATUS_OUTPUT_FULL
        } else {
            0
        };
        STATUS_SYSTEM | STATUS_NOT_LOCKED | full
    }

    /// `true` if the command pulls the reset line.
    fn command(&mut self, command: u8) -> bool {
        self.pending = None;
        match command {
            0x20 => self.output = Some(self.control),
            // Write the control byte, the output port, either output buffer, or to the mouse.
            0x60 | 0xd1..=0xd4 => self.pending = Some(command),
            0xa7 => self.control |= CONTROL_MOUSE_OFF,
            0xa8 => self.control &= !CONTROL_MOUSE_OFF,
            // Test of the mouse port: its clock line is stuck, so there is no mouse.
            0xa9 => self.output = Some(0x01),
            // Tests of the controller and of the keyboard port: both well.
            0xaa => self.output = Some(0x55),
            0xab => self.output = Some(0x00),
            0xad => self.control |= CONTROL_KEYBOARD_OFF,
            0xae => self.control &= !CONTROL_KEYBOARD_OFF,
            0xd0 => self.output = Some(OUTPUT_NOT_RESET | OUTPUT_A20),
            // Pulse those of the output port's low lines whose bits are 0.
            0xf0..=0xff => return command & OUTPUT_NOT_RESET == 0,
            _ => {}
        }
        false
    }

    /// `true` if the byte pulls the reset line.
    fn data(&mut self, value: u8) -> bool {
        match self.pending.take() {
            Some(0x60) => self.control = value,
            Some(0xd1) => return value & OUTPUT_NOT_RESET == 0,
            // Comes back as if the keyboard had sent it, also where it should be the mouse: that is
            // how a kernel sees that there is no mouse port.
            Some(0xd2 | 0xd3) => self.output = Some(value),
            // To the mouse or the keyboard, which are not there to answer.
            _ => {}
        }
        false
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let [data] = data else {
            return;
        };
        let mut state = self.state();
        *data = match offset {
            DATA => state.output.take().unwrap_or(0),
            PORT_B => PORT_B_TIMER_OUT,
            COMMAND => state.status(),
            _ => 0,
        };
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let [value] = *data else {
            return;
        };
        let mut state = self.state();
        let reset = match offset {
            DATA => state.data(value),
            COMMAND => state.command(value),
            _ => false,
        };
        if reset {
            self.exit.raise(GuestExit::Reset);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn controller() -> (I8042, Arc<ExitSignal>) {
        let exit = Arc::new(ExitSignal::new().unwrap());
        (I8042::new(Arc::clone(&exit)), exit)
    }

    fn read(c: &I8042, offset: u64) -> u8 {
        let mut data = [0xaa];
        c.read(offset, &mut data);
        data[0]
    }

    /// What the controller answers to a command with these arguments.
    fn ask(c: &I8042, command: u8, arguments: &[u8]) -> Option<u8> {
        c.write(COMMAND, &[command]);
        for argument in arguments {
            c.write(DATA, &[*argument]);
        }
        let full = read(c, COMMAND) & STATUS_OUTPUT_FULL != 0;
        full.then(|| read(c, DATA))
    }

    #[test]
    fn reset_line_is_pulled_by_pulse_and_by_output_port() {
        for bytes in [&[(4, 0xfe)][..], &[(4, 0xf0)], &[(4, 0xd1), (0, 0xfe)]] {
            let (c, exit) = controller();
            for (offset, value) in bytes {
                c.write(*offset, &[*value]);
            }
            assert_eq!(exit.reason(), Some(GuestExit::Reset), "{bytes:?}");
        }
    }

    #[test]
    fn reset_line_when_other_things_are_written_stays_up() {
        let (c, exit) = controller();
        for command in (0..0xf0).chain([0xff, 0xf1]) {
            c.write(COMMAND, &[command]);
        }
        c.write(COMMAND, &[0xd1]);
        c.write(DATA, &[0xdf]);
        c.write(DATA, &[0xfe]);
        c.write(COMMAND, &[0xfe, 0xfe]);
        c.write(2, &[0xfe]);
        assert_eq!(exit.reason(), None);
    }

    #[test]
    fn probe_of_linux_gets_every_answer_at_once() {
        let (c, _exit) = controller();
        let status = read(&c, COMMAND);
        assert_eq!(
            status & (STATUS_OUTPUT_FULL | 2),
            0,
            "nothing to flush or wait for"
        );
        assert_eq!(ask(&c, 0xaa, &[]), Some(0x55));
        let control = ask(&c, 0x20, &[]).unwrap();
        assert_eq!(ask(&c, 0x60, &[control | 1]), None);
        assert_eq!(ask(&c, 0x20, &[]), Some(control | 1));
        assert_eq!(ask(&c, 0xd3, &[0x5a]), Some(0x5a));
        assert_eq!(ask(&c, 0xa9, &[]), Some(1), "no mouse");
        assert_eq!(ask(&c, 0xd4, &[0xf2]), None);
        c.write(DATA, &[0xf2]);
        assert_eq!(read(&c, COMMAND) & STATUS_OUTPUT_FULL, 0, "no keyboard");
        assert_eq!(read(&c, PORT_B) & PORT_B_TIMER_OUT, PORT_B_TIMER_OUT);
    }

    #[test]
    fn command_whose_argument_is_to_come_outlives_the_controller() {
        let (c, _exit) = controller();
        c.write(COMMAND, &[0x60]);
        let (other, exit) = controller();
        let text = serde_json::to_string(&c.save()).unwrap();
        other.restore(&serde_json::from_str(&text).unwrap());
        other.write(DATA, &[0x31]);
        assert_eq!(ask(&other, 0x20, &[]), Some(0x31));

        c.write(COMMAND, &[0xaa]);
        other.restore(&c.save());
        assert_eq!(read(&other, DATA), 0x55);
        c.write(COMMAND, &[0xd1]);
        other.restore(&c.save());
        other.write(DATA, &[0]);
        assert_eq!(exit.reason(), Some(GuestExit::Reset));
    }
}
