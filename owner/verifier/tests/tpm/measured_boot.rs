//! The event log: it replays, and it cannot tell of another boot than the one that happened.

use rstest::rstest;
use sealpod_evidence::event_log::{Event, kind};

use crate::event_log::{encode, event, event_with, genuine_events, position, sha256};
use crate::support::{Guest, assert_refused};

const FIRMWARE_VERSION: u32 = 0x08;
const VARIABLE_AUTHORITY: u32 = 0x8000_00e0;
const CALLING: &[u8] = b"Calling EFI Application from Boot Option";
const LOAD_OPTIONS: &[u8] = b"\xed\x22\x3b\x8f\x1a\0\0\0LOADED_IMAGE::LoadOptions\0";
const INITRD: &[u8] = b"\xec\x22\x3b\x8f\x0d\0\0\0Linux initrd\0";
/// The bytes of a program; its Authenticode hash is the hash of some bytes, too.
const PROGRAM: &[u8] = b"another program";

/// The genuine events, changed.
fn changed(change: impl FnOnce(&mut Vec<Event>)) -> Vec<Event> {
    let mut events = genuine_events();
    change(&mut events);
    events
}

/// Asserts that a log which replays is refused.
#[track_caller]
fn assert_log_refused(events: &[Event], claim: &str, actual: &str) {
    assert_refused(Guest::booted(events).verify(), claim, actual);
}

/// Inserts an event before the first of a register and a type.
fn insert_before(events: &mut Vec<Event>, pcr: u32, kind: u32, event: Event) {
    let place = position(events, pcr, kind);
    events.insert(place, event);
}

fn variable(name: &str, value: &[u8]) -> Vec<u8> {
    let guid = hex::decode("61dfe48bca93d211aa0d00e098032b8c").unwrap();
    let lengths = [name.len() as u64, value.len() as u64].map(u64::to_le_bytes).concat();
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    [guid, lengths, name, value.to_vec()].concat()
}

fn secure_boot(value: &[u8]) -> Event {
    event(7, kind::EFI_VARIABLE_DRIVER_CONFIG, &variable("SecureBoot", value))
}

#[track_caller]
fn assert_secure_boot(events: &[Event], expected: bool) {
    assert_eq!(Guest::booted(events).verify().unwrap().0["secure_boot"], expected);
}

#[test]
fn a_log_built_from_the_genuine_events_is_taken() {
    let genuine = Guest::new();
    let built = Guest::booted(&genuine_events());
    assert_eq!(built.registers, genuine.registers);
    built.verify().unwrap();
}

#[test]
fn evidence_without_a_log_is_refused() {
    let mut guest = Guest::new();
    guest.event_log = None;
    assert_refused(guest.verify(), "event_log", "ends within an event");
}

#[rstest]
#[case::cut(|log: &mut Vec<u8>| log.truncate(log.len() - 1), "ends within an event")]
#[case::without_a_header(|log: &mut Vec<u8>| log[4] = 4, "does not begin with")]
#[case::too_long(|log: &mut Vec<u8>| log.resize((4 << 20) + 1, 0), "at most 4194304")]
fn a_malformed_log_is_refused(#[case] change: fn(&mut Vec<u8>), #[case] actual: &str) {
    let mut guest = Guest::new();
    change(guest.event_log.as_mut().unwrap());
    assert_refused(guest.verify(), "event_log", actual);
}

#[test]
fn an_event_without_a_digest_is_refused() {
    let mut guest = Guest::new();
    guest.event_log = Some(encode(&changed(|events| events[5].digests.clear())));
    assert_refused(guest.verify(), "event_log", "register 7 has no sha256 digest");
}

#[rstest]
#[case::another_firmware(0)]
#[case::another_configuration(1)]
#[case::another_driver(2)]
#[case::another_kernel(4)]
#[case::another_policy(7)]
#[case::another_command_line(9)]
fn a_log_that_does_not_explain_a_register_is_refused(#[case] register: usize) {
    let mut guest = Guest::new();
    guest.registers[register] = vec![7; 32];
    let refusal = guest.verify().unwrap_err();
    assert_eq!(refusal.claim, "event_log");
    assert_eq!(refusal.expected, format!("PCR {register} {}", "07".repeat(32)));
    assert!(refusal.actual.contains(&hex::encode(&Guest::new().registers[register])), "{refusal}");
}

#[test]
fn a_log_without_an_event_or_with_events_in_another_order_is_refused() {
    for change in [
        |events: &mut Vec<Event>| drop(events.remove(1)),
        |events: &mut Vec<Event>| events.swap(1, 2),
        |events: &mut Vec<Event>| events.push(event(5, kind::EFI_ACTION, b"More")),
        |events: &mut Vec<Event>| events.retain(|event| event.pcr != 6),
    ] {
        let mut guest = Guest::new();
        guest.event_log = Some(encode(&changed(change)));
        assert_refused(guest.verify(), "event_log", "a log that gives");
    }
}

#[test]
fn init_data_that_the_log_explains_is_refused() {
    let events = changed(|events| events.push(event(8, kind::IPL, b"init data")));
    let extended = sha256(&[&[0; 32], sha256(b"init data").as_slice()].concat());
    assert_log_refused(&events, "event_log", &hex::encode(extended));
}

#[test]
fn events_of_other_registers_and_those_that_only_inform_do_not_matter() {
    let mut events = genuine_events();
    for pcr in 0..10 {
        events.insert(0, event_with(pcr, kind::NO_ACTION, &[9; 32], b"information"));
        events.push(event_with(pcr, kind::NO_ACTION, &[9; 32], b"information"));
    }
    events.push(event_with(14, kind::EFI_ACTION, &[9; 32], b"of a boot loader"));
    let guest = Guest::booted(&events);
    assert_eq!(guest.registers, Guest::new().registers);
    guest.verify().unwrap();
}

#[rstest]
#[case(4, kind::EFI_ACTION)]
#[case(5, kind::EFI_ACTION)]
#[case(7, kind::EFI_VARIABLE_DRIVER_CONFIG)]
#[case(0, kind::SEPARATOR)]
#[case(2, kind::SEPARATOR)]
#[case(4, kind::SEPARATOR)]
#[case(7, kind::SEPARATOR)]
fn an_event_that_says_something_else_than_was_extended_is_refused(#[case] pcr: u32, #[case] kind: u32) {
    let events = changed(|events| {
        let place = position(events, pcr, kind);
        let data = events[place].data.clone();
        events[place] = event_with(pcr, kind, &sha256(PROGRAM), &data);
    });
    assert_log_refused(&events, "event_log", &hex::encode(sha256(PROGRAM)));
    let refusal = Guest::booted(&events).verify().unwrap_err();
    assert!(refusal.expected.starts_with(&format!("an event in PCR {pcr} with the digest")), "{refusal}");
}

#[rstest]
#[case::firmware(0, "firmware")]
#[case::drivers(2, "firmware")]
#[case::kernel(4, "kernel")]
fn a_separator_whose_data_is_a_program_is_refused(#[case] pcr: u32, #[case] claim: &str) {
    let program = event(pcr, kind::SEPARATOR, PROGRAM);
    let replaced = changed(|events| {
        let place = position(events, pcr, kind::SEPARATOR);
        events[place] = program.clone();
    });
    assert_log_refused(&replaced, claim, "0x4");
    let inserted = changed(|events| insert_before(events, pcr, kind::SEPARATOR, program.clone()));
    assert_log_refused(&inserted, claim, "0x4, 0x4");
    // Another type's digest need not be that of its data.
    let renamed = changed(|events| {
        let place = position(events, pcr, kind::SEPARATOR);
        events[place] = event_with(pcr, kind::IPL, &sha256(PROGRAM), &[0; 4]);
    });
    assert_log_refused(&renamed, claim, "0xd");
}

#[rstest]
#[case::no_volume(|events: &mut Vec<Event>| drop(events.drain(1..3)), "0x8, 0x4")]
#[case::one_volume(|events: &mut Vec<Event>| drop(events.remove(1)), "0x8, 0x80000008, 0x4")]
#[case::no_version(|events: &mut Vec<Event>| drop(events.remove(0)), "0x80000008, 0x80000008, 0x4")]
#[case::another_type_for_the_version(|events: &mut Vec<Event>| events[0].kind = kind::IPL, "0xd, 0x80000008")]
#[case::another_type_for_the_first(|events: &mut Vec<Event>| events[1].kind = kind::IPL, "0x8, 0xd")]
#[case::another_type_for_the_second(|events: &mut Vec<Event>| events[2].kind = kind::IPL, "0x80000008, 0xd")]
#[case::no_separator(|events: &mut Vec<Event>| drop(events.remove(position(events, 0, kind::SEPARATOR))), "0x80000008")]
#[case::a_third_volume(
    |events: &mut Vec<Event>| events.insert(1, event_with(0, kind::EFI_PLATFORM_FIRMWARE_BLOB, &[1; 32], b"")),
    "0x80000008, 0x80000008, 0x80000008"
)]
#[case::an_event_after_the_separator(
    |events: &mut Vec<Event>| events.push(event(0, kind::EFI_PLATFORM_FIRMWARE_BLOB, b"")),
    "0x4, 0x80000008"
)]
fn other_events_of_the_firmware_are_refused(#[case] change: fn(&mut Vec<Event>), #[case] actual: &str) {
    assert_log_refused(&changed(change), "firmware", actual);
}

/// Other drivers extend the genuine digest after their own, and the log gives theirs another type.
#[rstest]
#[case(FIRMWARE_VERSION)]
#[case(kind::IPL)]
#[case(kind::EVENT_TAG)]
#[case(kind::EFI_ACTION)]
#[case(kind::EFI_BOOT_SERVICES_DRIVER)]
fn other_drivers_cannot_hide_before_the_genuine_ones(#[case] kind: u32) {
    for place in [0, 1, 2] {
        let events = changed(|events| events.insert(place, event(0, kind, PROGRAM)));
        assert_log_refused(&events, "firmware", &format!("{kind:#x}"));
    }
}

#[test]
fn either_type_of_a_measured_volume_is_taken() {
    let events = changed(|events| {
        for event in &mut events[1..3] {
            event.kind = kind::EFI_PLATFORM_FIRMWARE_BLOB2;
        }
    });
    Guest::booted(&events).verify().unwrap();
}

#[rstest]
#[case::an_option_rom(event(2, kind::EFI_BOOT_SERVICES_DRIVER, PROGRAM), "0x80000004, 0x4")]
#[case::under_another_type(event(2, kind::EFI_ACTION, PROGRAM), "0x80000007, 0x4")]
fn a_driver_from_outside_the_firmware_is_refused(#[case] driver: Event, #[case] actual: &str) {
    let events = changed(|events| insert_before(events, 2, kind::SEPARATOR, driver));
    assert_log_refused(&events, "firmware", actual);
    let without = changed(|events| events.retain(|event| event.pcr != 2));
    assert_log_refused(&without, "firmware", "no events");
}

#[rstest]
#[case::none(|events: &mut Vec<Event>| drop(events.remove(position(events, 4, kind::EFI_BOOT_SERVICES_APPLICATION))), "0x80000007, 0x4")]
#[case::a_second_one_before(
    |events: &mut Vec<Event>| insert_before(events, 4, kind::EFI_BOOT_SERVICES_APPLICATION, application()),
    "0x80000003, 0x80000003"
)]
#[case::a_second_one_after(|events: &mut Vec<Event>| events.push(application()), "0x4, 0x80000003")]
#[case::one_that_was_loaded_by_a_boot_option(
    |events: &mut Vec<Event>| {
        let kernel = events.remove(position(events, 4, kind::EFI_BOOT_SERVICES_APPLICATION));
        events.push(kernel);
    },
    "0x80000007, 0x4, 0x80000003"
)]
#[case::a_driver_too(
    |events: &mut Vec<Event>| insert_before(events, 4, kind::SEPARATOR, event(4, kind::EFI_BOOT_SERVICES_DRIVER, PROGRAM)),
    "0x80000004"
)]
#[case::a_driver_in_its_place(
    |events: &mut Vec<Event>| {
        let place = position(events, 4, kind::EFI_BOOT_SERVICES_APPLICATION);
        events[place].kind = kind::EFI_BOOT_SERVICES_DRIVER;
    },
    "0x80000004"
)]
#[case::another_action(
    |events: &mut Vec<Event>| {
        let place = position(events, 4, kind::EFI_ACTION);
        events[place] = event(4, kind::EFI_ACTION, PROGRAM);
    },
    "0x80000007"
)]
#[case::another_type_for_the_action(
    |events: &mut Vec<Event>| {
        let place = position(events, 4, kind::EFI_ACTION);
        events[place].kind = kind::IPL;
    },
    "0xd"
)]
#[case::the_action_twice(
    |events: &mut Vec<Event>| insert_before(events, 4, kind::SEPARATOR, event(4, kind::EFI_ACTION, CALLING)),
    "0x80000007, 0x80000007"
)]
#[case::no_separator(|events: &mut Vec<Event>| drop(events.remove(position(events, 4, kind::SEPARATOR))), "0x80000007")]
fn anything_but_one_kernel_is_refused(#[case] change: fn(&mut Vec<Event>), #[case] actual: &str) {
    assert_log_refused(&changed(change), "kernel", actual);
}

fn application() -> Event {
    event(4, kind::EFI_BOOT_SERVICES_APPLICATION, PROGRAM)
}

#[rstest]
#[case::no_command_line(|events: &mut Vec<Event>| drop(events.remove(20)), "cmdline", "0x6 (tag 0x8f3b22ec)")]
#[case::no_initrd(|events: &mut Vec<Event>| drop(events.remove(21)), "initrd", "0x6 (tag 0x8f3b22ed)")]
#[case::neither(|events: &mut Vec<Event>| drop(events.drain(20..22)), "cmdline", "no events")]
#[case::two_command_lines(
    |events: &mut Vec<Event>| events.insert(21, event(9, kind::EVENT_TAG, LOAD_OPTIONS)),
    "initrd",
    "0x6 (tag 0x8f3b22ed), 0x6 (tag 0x8f3b22ed)"
)]
#[case::two_initrds(
    |events: &mut Vec<Event>| events.push(event(9, kind::EVENT_TAG, INITRD)),
    "initrd",
    "0x6 (tag 0x8f3b22ec), 0x6 (tag 0x8f3b22ec)"
)]
#[case::the_one_presented_as_the_other(
    |events: &mut Vec<Event>| {
        let data = std::mem::replace(&mut events[20].data, INITRD.to_vec());
        events[21].data = data;
    },
    "cmdline",
    "0x6 (tag 0x8f3b22ec), 0x6 (tag 0x8f3b22ed)"
)]
#[case::an_unknown_tag(|events: &mut Vec<Event>| events[21].data[0] = 0, "initrd", "0x6 (tag 0x8f3b2200)")]
#[case::no_tag(|events: &mut Vec<Event>| events[20].data.truncate(3), "cmdline", "0x6, 0x6")]
#[case::another_type(|events: &mut Vec<Event>| events[21].kind = kind::IPL, "initrd", "0xd")]
#[case::something_else_too(
    |events: &mut Vec<Event>| events.insert(20, event(9, kind::SEPARATOR, &[0; 4])),
    "cmdline",
    "0x4, 0x6"
)]
fn other_inputs_of_the_kernel_are_refused(
    #[case] change: fn(&mut Vec<Event>),
    #[case] claim: &str,
    #[case] actual: &str,
) {
    assert_log_refused(&changed(change), claim, actual);
}

#[test]
fn secure_boot_is_what_the_firmware_said_first() {
    assert_secure_boot(&changed(|events| events[3] = secure_boot(&[1])), true);
    assert_secure_boot(&changed(|events| events[3] = secure_boot(&[0])), false);
    assert_secure_boot(&changed(|events| events[3] = secure_boot(&[])), false);
    assert_secure_boot(&changed(|events| events.retain(|event| event.pcr != 7)), false);
    // What was booted says so later, and hides what the firmware said.
    assert_secure_boot(&changed(|events| events.push(secure_boot(&[1]))), false);
    for kind in [kind::EFI_ACTION, kind::SEPARATOR, kind::IPL, VARIABLE_AUTHORITY] {
        let hidden = changed(|events| {
            events[3].kind = kind;
            events.insert(4, secure_boot(&[1]));
        });
        assert_secure_boot(&hidden, false);
    }
}

#[rstest]
#[case::another_type(event(7, kind::EFI_ACTION, &variable("SecureBoot", &[1])))]
#[case::another_name(event(7, kind::EFI_VARIABLE_DRIVER_CONFIG, &variable("SecureBoos", &[1])))]
#[case::another_vendor(another_vendor())]
#[case::a_longer_value(secure_boot(&[1, 0]))]
#[case::another_value(secure_boot(&[2]))]
fn what_is_not_exactly_the_variable_does_not_count(#[case] event: Event) {
    assert_secure_boot(&changed(|events| events[3] = event), false);
}

fn another_vendor() -> Event {
    let mut data = variable("SecureBoot", &[1]);
    data[0] ^= 1;
    event(7, kind::EFI_VARIABLE_DRIVER_CONFIG, &data)
}

#[test]
fn a_refusal_names_few_events() {
    let events = changed(|events| events.extend(std::iter::repeat_n(application(), 1000)));
    let refusal = Guest::booted(&events).verify().unwrap_err();
    assert_eq!(refusal.claim, "kernel");
    assert!(refusal.actual.ends_with(", 995 more") && refusal.actual.len() < 200, "{refusal}");
}
