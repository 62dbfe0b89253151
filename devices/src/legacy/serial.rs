//! A 16550 serial port on two of the host's streams. The registers are `vm-superio`'s.
//!
//! Bytes the guest prints are written where they come up, on the vCPU's thread: a real port is slow
//! as well, and nothing has to be kept. A reader who stops reading holds the guest up once, for
//! [`PATIENCE_MS`], and is then taken to be away: until the output moves again, bytes are dropped.

use std::convert::Infallible;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::stream::{Direction, Stream};
use crate::virtio::EventSource;
use crate::virtio::wakeup::Wakeup;

/// The first I/O port of a PC's first serial port.
pub const PORT: u64 = 0x3f8;
/// Number of ports.
pub const WINDOW_SIZE: u64 = 8;
/// Its interrupt.
pub const IRQ: u32 = 4;

/// How long the guest waits for an output that was well until now.
const PATIENCE_MS: i32 = 250;

const MODEM_CONTROL: u8 = 4;
const MODEM_CONTROL_LOOP: u8 = 1 << 4;

const INPUT: u32 = 0;
const WAKEUP: u32 = 1;

/// The serial port.
pub struct Serial {
    input: Option<Stream>,
    input_ended: AtomicBool,
    interrupt: EventFd,
    room: Arc<Room>,
    counters: Arc<Counters>,
    uart: Mutex<vm_superio::Serial<Line, Arc<Room>, Output>>,
}

#[derive(Debug, Default)]
struct Counters {
    input_bytes: AtomicU64,
    output_bytes: AtomicU64,
    output_dropped_bytes: AtomicU64,
}

/// The port's registers and what is in them, as a snapshot keeps it. For the registers see the 16550's
/// data sheet. What is still in the streams, and whether the input has ended, is the streams'.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialState {
    /// Divisor latch, low byte.
    pub divisor_low: u8,
    /// Divisor latch, high byte.
    pub divisor_high: u8,
    /// IER
    pub interrupt_enable: u8,
    /// IIR, which says what interrupts are pending.
    pub interrupt_identification: u8,
    /// LCR
    pub line_control: u8,
    /// LSR
    pub line_status: u8,
    /// MCR
    pub modem_control: u8,
    /// MSR
    pub modem_status: u8,
    /// SCR
    pub scratch: u8,
    /// What was received and the guest has not read, at most 64 bytes.
    pub received: Vec<u8>,
}

/// Why a serial port cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum SerialStateError {
    /// There are more bytes than the port can hold.
    #[error("the saved state of the serial port is damaged: it has received {0} bytes at once")]
    TooMuchReceived(usize),
    /// The host did not give another descriptor for the interrupt line.
    #[error("cannot restore the serial port: {0}")]
    Host(io::Error),
}

/// The interrupt line.
struct Line(EventFd);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        // Fails only when the counter is full: an interrupt is pending already.
        let _ = self.0.write(1);
        Ok(())
    }
}

/// Tells the event loop that the FIFO has room again, if it waits for that.
struct Room {
    wanted: AtomicBool,
    wakeup: Wakeup,
}

impl Room {
    fn offer(&self) {
        if self.wanted.swap(false, Ordering::AcqRel) {
            self.wakeup.ring();
        }
    }
}

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.offer();
    }
}

#[derive(Clone)]
struct Output {
    stream: Arc<Stream>,
    away: bool,
    counters: Arc<Counters>,
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut result = self.stream.write(data);
        let full = |r: &io::Result<_>| matches!(r, Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        if full(&result) && !self.away && self.stream.wait(PATIENCE_MS).is_ok() {
            result = self.stream.write(data);
        }
        self.away = full(&result);
        match result {
            Ok(n) => {
                self.counters
                    .output_bytes
                    .fetch_add(n as u64, Ordering::Relaxed);
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            // The port has no way to tell the guest.
            Err(_) => {
                self.counters
                    .output_dropped_bytes
                    .fetch_add(data.len() as u64, Ordering::Relaxed);
                Ok(data.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Serial {
    /// A serial port on the given streams.
    pub fn new(input: Option<OwnedFd>, output: OwnedFd) -> io::Result<Self> {
        let interrupt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let room = Arc::new(Room {
            wanted: AtomicBool::new(false),
            wakeup: Wakeup::new()?,
        });
        let counters = Arc::<Counters>::default();
        let output = Output {
            stream: Arc::new(Stream::new(output, Direction::Output)?),
            away: false,
            counters: Arc::clone(&counters),
        };
        let line = Line(interrupt.try_clone()?);
        let serial = Serial {
            input: input
                .map(|fd| Stream::new(fd, Direction::Input))
                .transpose()?,
            input_ended: AtomicBool::new(false),
            interrupt,
            uart: Mutex::new(vm_superio::Serial::with_events(
                line,
                Arc::clone(&room),
                output,
            )),
            room,
            counters,
        };
        // An input that cannot be watched has to be looked at once without being asked.
        serial.room.wakeup.ring();
        Ok(serial)
    }

    /// The eventfd to bind to interrupt [`IRQ`].
    pub fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    /// What the event loop should watch.
    pub fn event_sources(&self) -> Vec<EventSource> {
        let input = self.input.as_ref().and_then(Stream::watch_fd);
        let input = input.map(|fd| EventSource {
            fd,
            token: INPUT,
            edge: true,
            writable: false,
        });
        input
            .into_iter()
            .chain([self.room.wakeup.source(WAKEUP)])
            .collect()
    }

    /// The source with `token` is ready. Called from the event loop only.
    pub fn process_event(&self, token: u32) {
        if token == WAKEUP {
            self.room.wakeup.clear();
        }
        self.process_input();
    }

    /// Moves input into the FIFO as long as there are both input and room. What finds no room stays
    /// where it is.
    fn process_input(&self) {
        let Some(input) = &self.input else {
            return;
        };
        while !self.input_ended.load(Ordering::Relaxed) {
            let mut uart = self.uart();
            let looped = uart.read(MODEM_CONTROL) & MODEM_CONTROL_LOOP != 0;
            let room = if looped { 0 } else { uart.fifo_capacity() };
            if room == 0 {
                self.room.wanted.store(true, Ordering::Release);
                return;
            }
            let mut data = [0; 64];
            let room = room.min(data.len());
            match input.read(&mut data[..room]) {
                Ok(0) => self.input_ended.store(true, Ordering::Relaxed),
                Ok(n) => {
                    self.counters
                        .input_bytes
                        .fetch_add(n as u64, Ordering::Relaxed);
                    // There is room, and the line cannot fail.
                    let _ = uart.enqueue_raw_bytes(&data[..n]);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => {
                    log::info!("serial: input ended: {e}");
                    self.input_ended.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// What the port is like.
    pub fn save(&self) -> SerialState {
        let state = self.uart().state();
        SerialState {
            divisor_low: state.baud_divisor_low,
            divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            received: state.in_buffer,
        }
    }

    /// Puts the port into a state that was saved. Asserts the interrupt if that was pending.
    pub fn restore(&self, state: &SerialState) -> Result<(), SerialStateError> {
        let registers = vm_superio::SerialState {
            baud_divisor_low: state.divisor_low,
            baud_divisor_high: state.divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.received.clone(),
        };
        let line = self.interrupt.try_clone().map_err(SerialStateError::Host)?;
        let mut uart = self.uart();
        let output = uart.writer().clone();
        let restored =
            vm_superio::Serial::from_state(&registers, Line(line), Arc::clone(&self.room), output);
        // The line cannot fail, so it is the only other reason.
        *uart = restored.map_err(|_| SerialStateError::TooMuchReceived(state.received.len()))?;
        drop(uart);
        // There may be input, and the FIFO may have more or less room for it than before.
        self.room.wakeup.ring();
        Ok(())
    }

    /// Interrupts again if that is pending, in a VM that was restored: what came before its interrupt controllers were
    /// as they had been is lost.
    pub fn restart(&self) {
        const PENDING: u8 = 0b110;
        if self.save().interrupt_identification & PENDING != 0 {
            // Fails only when the counter is full: an interrupt is pending already.
            let _ = self.interrupt.write(1);
        }
    }

    /// Reports counters by name, for the metrics endpoint.
    pub fn metrics(&self, report: &mut dyn FnMut(&'static str, u64)) {
        let Counters {
            input_bytes,
            output_bytes,
            output_dropped_bytes,
        } = &*self.counters;
        report("input_bytes", input_bytes.load(Ordering::Relaxed));
        report("output_bytes", output_bytes.load(Ordering::Relaxed));
        report(
            "output_dropped_bytes",
            output_dropped_bytes.load(Ordering::Relaxed),
        );
    }

    fn uart(&self) -> MutexGuard<'_, vm_superio::Serial<Line, Arc<Room>, Output>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let ([data], Ok(offset)) = (data, u8::try_from(offset)) {
            *data = self.uart().read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (&[value], Ok(offset)) = (data, u8::try_from(offset)) else {
            return;
        };
        // Only the output could fail, and ours does not.
        let _ = self.uart().write(offset, value);
        if offset == MODEM_CONTROL {
            // Perhaps out of loop-back mode, in which there is no room.
            self.room.offer();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{PipeReader, PipeWriter, Read, pipe};

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;

    fn serial() -> (Serial, PipeWriter, PipeReader) {
        let (input, keyboard) = pipe().unwrap();
        let (screen, output) = pipe().unwrap();
        let serial = Serial::new(Some(input.into()), output.into()).unwrap();
        (serial, keyboard, screen)
    }

    fn read(serial: &Serial, offset: u64) -> u8 {
        let mut data = [0];
        serial.read(offset, &mut data);
        data[0]
    }

    fn read_all(serial: &Serial) -> Vec<u8> {
        let mut data = Vec::new();
        while read(serial, LINE_STATUS) & 1 != 0 {
            data.push(read(serial, DATA));
        }
        data
    }

    #[test]
    fn output_is_written_byte_by_byte() {
        let (serial, _keyboard, mut screen) = serial();
        for byte in b"boot\n" {
            serial.write(DATA, &[*byte]);
        }
        serial.write(DATA, b"wide");
        let mut text = [0; 5];
        screen.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"boot\n");
    }

    #[test]
    fn input_when_longer_than_the_fifo_loses_nothing() {
        let (serial, mut keyboard, _screen) = serial();
        serial.write(INTERRUPT_ENABLE, &[1]);
        let typed: Vec<u8> = (0..200).collect();
        keyboard.write_all(&typed).unwrap();
        serial.process_event(INPUT);
        assert_eq!(serial.interrupt().read().unwrap(), 1);
        let mut seen = read_all(&serial);
        assert_eq!(seen.len(), 64);
        while seen.len() < typed.len() {
            serial.room.wakeup.ring();
            serial.process_event(WAKEUP);
            seen.extend(read_all(&serial));
        }
        assert_eq!(seen, typed);
        assert!(!serial.room.wanted.load(Ordering::Relaxed));
    }

    #[test]
    fn input_when_looped_back_waits() {
        let (serial, mut keyboard, _screen) = serial();
        serial.write(MODEM_CONTROL.into(), &[MODEM_CONTROL_LOOP]);
        keyboard.write_all(b"k").unwrap();
        serial.process_event(INPUT);
        assert!(read_all(&serial).is_empty());
        serial.write(MODEM_CONTROL.into(), &[0]);
        serial.process_event(WAKEUP);
        assert_eq!(read_all(&serial), b"k");
    }

    #[test]
    fn input_when_ended_or_absent_is_no_trouble() {
        for input in [Some(File::open("/dev/null").unwrap().into()), None] {
            let (_screen, output) = pipe().unwrap();
            let serial = Serial::new(input, output.into()).unwrap();
            assert_eq!(serial.event_sources().len(), 1);
            serial.process_event(WAKEUP);
            serial.process_event(WAKEUP);
            assert!(read_all(&serial).is_empty());
        }
    }

    #[test]
    fn output_that_nobody_reads_is_dropped_after_one_wait() {
        let (serial, _keyboard, mut screen) = serial();
        let start = std::time::Instant::now();
        let mut written = 0u64;
        while serial.counters.output_dropped_bytes.load(Ordering::Relaxed) < 1000 {
            serial.write(DATA, b"x");
            written += 1;
        }
        assert!(start.elapsed() >= std::time::Duration::from_millis(PATIENCE_MS as u64));
        let mut part = vec![0; (written - 1000) as usize];
        screen.read_exact(&mut part).unwrap();
        serial.write(DATA, b"y");
        screen.read_exact(&mut part[..1]).unwrap();
        assert_eq!(part[0], b'y');
    }

    #[test]
    fn registers_and_what_was_received_outlive_the_port() {
        let (first, mut keyboard, _screen) = serial();
        first.write(INTERRUPT_ENABLE, &[1]);
        first.write(7, &[0x5a]);
        keyboard.write_all(b"typed").unwrap();
        first.process_event(INPUT);
        assert_eq!(first.interrupt().read().unwrap(), 1);
        let state = first.save();
        let text = serde_json::to_string(&state).unwrap();

        let (second, mut keyboard, mut screen) = serial();
        second
            .restore(&serde_json::from_str(&text).unwrap())
            .unwrap();
        assert_eq!(second.save(), state);
        assert_eq!(second.interrupt().read().unwrap(), 1);
        keyboard.write_all(b" on").unwrap();
        second.process_event(WAKEUP);
        assert_eq!(read_all(&second), b"typed on");
        assert_eq!(read(&second, 7), 0x5a);
        second.write(DATA, b"z");
        let mut byte = [0];
        screen.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"z");
        assert_eq!(read_all(&first), b"typed");
    }

    #[test]
    fn state_with_more_than_the_fifo_holds_is_refused() {
        let (serial, _keyboard, _screen) = serial();
        let before = serial.save();
        let state = SerialState {
            received: vec![0; 65],
            ..before.clone()
        };
        assert!(serial.restore(&state).is_err());
        assert_eq!(serial.save(), before);
    }
}
