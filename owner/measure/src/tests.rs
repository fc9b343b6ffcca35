//! What changes a measurement, and what is refused, with the smallest kernel and firmware that have all parts.

use super::*;

const PE: usize = 0x40;
const CHECKSUM: usize = PE + 24 + 64;
const CERTIFICATES: usize = PE + 24 + 144;
const HEADERS: usize = 0x400;
const SIGNATURE: usize = 8;

/// A kernel with a PE header, a setup header, one section, some bytes after it and a signature.
fn kernel() -> Vec<u8> {
    let mut file = vec![0; HEADERS];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &(PE as u32).to_le_bytes());
    put(PE, b"PE\0\0");
    put(PE + 6, &1u16.to_le_bytes());
    put(PE + 20, &240u16.to_le_bytes());
    put(PE + 24, &0x20bu16.to_le_bytes());
    put(PE + 24 + 60, &(HEADERS as u32).to_le_bytes());
    put(PE + 24 + 108, &16u32.to_le_bytes());
    put(CERTIFICATES, &0x510u32.to_le_bytes());
    put(CERTIFICATES + 4, &(SIGNATURE as u32).to_le_bytes());
    put(PE + 24 + 240 + 16, &0x100u32.to_le_bytes());
    put(PE + 24 + 240 + 20, &(HEADERS as u32).to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    file.extend_from_slice(&[0x11; 0x100]);
    file.extend_from_slice(&[0x22; 0x10]);
    file.extend_from_slice(&[0x33; SIGNATURE]);
    file
}

fn section(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut section = (content.len() as u32 + 4).to_le_bytes()[..3].to_vec();
    section.push(kind);
    section.extend_from_slice(content);
    section.resize(section.len().next_multiple_of(4), 0);
    section
}

fn volume(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut volume = vec![0; 72];
    volume[40..44].copy_from_slice(b"_FVH");
    volume[48..50].copy_from_slice(&72u16.to_le_bytes());
    let mut header = [0; 24];
    header[18] = kind;
    header[20..23].copy_from_slice(&(content.len() as u32 + 24).to_le_bytes()[..3]);
    volume.extend_from_slice(&header);
    volume.extend_from_slice(content);
    volume.resize(volume.len().next_multiple_of(8) + 64, 0xff);
    let length = volume.len() as u64;
    volume[32..40].copy_from_slice(&length.to_le_bytes());
    volume
}

fn dxe() -> Vec<u8> {
    volume(5, &section(0x10, b"DXE core"))
}

fn firmware_of(images: &[Vec<u8>]) -> Vec<u8> {
    let inner: Vec<u8> = images.iter().flat_map(|image| section(0x17, image)).collect();
    let mut packed = Vec::new();
    let size = lzma_rs::compress::UnpackedSize::WriteToHeader(Some(inner.len() as u64));
    let options = lzma_rs::compress::Options { unpacked_size: size };
    lzma_rs::lzma_compress_with_options(&mut &inner[..], &mut packed, &options).unwrap();
    let mut guided = hex::decode("98584eee143959429d6edc7bd79403cf").unwrap();
    guided.extend_from_slice(&[24, 0, 1, 0]);
    guided.extend_from_slice(&packed);
    let mut firmware = volume(0x0b, &section(2, &guided));
    firmware.extend(volume(3, &section(0x10, b"SEC")));
    firmware
}

fn firmware() -> Vec<u8> {
    firmware_of(&[volume(4, &section(0x10, b"PEI core")), dxe()])
}

/// Measures with one thing changed.
fn measured(
    change: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>, &mut GuestFiles<'_>),
) -> Result<Measurements, Error> {
    let (mut kernel, mut firmware) = (kernel(), firmware());
    let (empty, initrd) = (Vec::new(), [7; 5000]);
    let mut files = GuestFiles {
        firmware: &empty,
        kernel: &empty,
        initrd: &initrd,
        cmdline: "panic=-1",
        low_memory_mib: 256,
    };
    change(&mut kernel, &mut firmware, &mut files);
    measure(&GuestFiles { firmware: &firmware, kernel: &kernel, ..files })
}

fn unchanged() -> Measurements {
    measured(|_, _, _| ()).unwrap()
}

#[test]
fn the_command_line_is_measured_as_ovmf_passes_it() {
    // Taken from the log of a VM booted with this command line.
    let logged = "5e0ce2240f9b711350ba045dc401b962587abaa582b3da0d32585801138bc683";
    let measurements = measured(|_, _, files| files.cmdline = "console=ttyS0 quiet panic=-1").unwrap();
    assert_eq!(measurements.cmdline, logged);
}

#[test]
fn the_firmware_is_its_dxe_volume() {
    assert_eq!(unchanged().firmware, sha256(&dxe()));
}

/// A guest's files, of which bytes can be changed.
struct Guest {
    core: Vec<u8>,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
    cmdline: Vec<u8>,
}

impl Guest {
    fn new() -> Self {
        Self { core: dxe(), kernel: kernel(), initrd: vec![7; 5000], cmdline: b"panic=-1".to_vec() }
    }

    fn measure(self) -> Measurements {
        // The firmware is packed: its bytes are changed before that.
        let firmware = firmware_of(&[volume(4, &section(0x10, b"PEI core")), self.core]);
        let files = GuestFiles {
            firmware: &firmware,
            kernel: &self.kernel,
            initrd: &self.initrd,
            cmdline: str::from_utf8(&self.cmdline).unwrap(),
            low_memory_mib: 256,
        };
        measure(&files).unwrap()
    }

    /// Measures with one bit of one file changed.
    fn measure_changed(at: usize, file: fn(&mut Self) -> &mut Vec<u8>) -> Measurements {
        let mut guest = Self::new();
        file(&mut guest)[at] ^= 1;
        guest.measure()
    }
}

#[test]
fn one_changed_byte_of_each_input_changes_its_own_value_alone() {
    let before = unchanged();
    assert_eq!(Guest::new().measure(), before);
    // Volume header, file header, section header.
    for at in 72 + 24 + 4..72 + 24 + 4 + 8 {
        let after = Guest::measure_changed(at, |guest| &mut guest.core);
        assert_ne!(after.firmware, before.firmware, "{at}");
        assert_eq!(Measurements { firmware: before.firmware.clone(), ..after }, before);
    }
    for at in [HEADERS, HEADERS + 0xff] {
        let after = Guest::measure_changed(at, |guest| &mut guest.kernel);
        assert_ne!(after.kernel, before.kernel, "{at}");
        assert_eq!(Measurements { kernel: before.kernel.clone(), ..after }, before);
    }
    for at in [0, 1, 2500, 4998, 4999] {
        let after = Guest::measure_changed(at, |guest| &mut guest.initrd);
        assert_ne!(after.initrd, before.initrd, "{at}");
        // The kernel's header has the initrd's length, not its content.
        assert_eq!(Measurements { initrd: before.initrd.clone(), ..after }, before);
    }
    for at in 0.."panic=-1".len() {
        let after = Guest::measure_changed(at, |guest| &mut guest.cmdline);
        assert_ne!(after.cmdline, before.cmdline, "{at}");
        assert_eq!(Measurements { cmdline: before.cmdline.clone(), ..after }, before);
    }
}

#[test]
fn each_hashed_part_of_the_kernel_changes_both_digests() {
    let before = unchanged().kernel;
    for at in [2, CERTIFICATES - 1, CERTIFICATES + 8, HEADERS - 1, HEADERS, HEADERS + 0xff, HEADERS + 0x10f] {
        let after = measured(|kernel, _, _| kernel[at] ^= 0x40).unwrap().kernel;
        assert!(after[0] != before[0] && after[1] != before[1], "{at:#x}");
    }
}

#[test]
fn the_checksum_and_the_signature_change_nothing() {
    let before = unchanged().kernel;
    for at in [CHECKSUM, CHECKSUM + 3, CERTIFICATES, HEADERS + 0x110, HEADERS + 0x117] {
        assert_eq!(measured(|kernel, _, _| kernel[at] ^= 0x40).unwrap().kernel, before, "{at:#x}");
    }
}

#[test]
fn what_qemu_writes_changes_the_patched_digest_only() {
    let before = unchanged().kernel;
    let length = measured(|_, _, files| files.initrd = &[7; 5001]).unwrap().kernel;
    let memory = measured(|_, _, files| files.low_memory_mib = 512).unwrap().kernel;
    for after in [length, memory] {
        assert_ne!(after[0], before[0]);
        assert_eq!(after[1], before[1]);
    }
    assert_ne!(before[0], before[1]);
    // The loader type is overwritten.
    let after = measured(|kernel, _, _| kernel[0x210] = 0x21).unwrap().kernel;
    assert_eq!(after[0], before[0]);
    assert_ne!(after[1], before[1]);
}

#[test]
fn kernels_that_qemu_would_load_otherwise_are_refused() {
    let cases: [(usize, &[u8], &str); 6] = [
        (0x202, b"xxxx", "expected a bzImage"),
        (0x206, &[0, 2], "boot protocol 2.03"),
        (0x211, &[0], "loaded high"),
        (PE, b"NE", "a PE header"),
        (PE + 24, &[0x0b, 0x01], "PE32+"),
        (PE + 24 + 240 + 16, &[0xff, 0xff], "ends early"),
    ];
    for (at, bytes, word) in cases {
        let error = measured(|kernel, _, _| kernel[at..at + bytes.len()].copy_from_slice(bytes));
        let message = error.unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn a_video_mode_and_an_initrd_without_room_are_refused() {
    let video = measured(|_, _, files| files.cmdline = "quiet vga=791");
    assert!(matches!(video, Err(Error::VideoMode(_))));
    let room = measured(|_, _, files| files.low_memory_mib = 0);
    assert!(matches!(room, Err(Error::Initrd { .. })));
}

#[test]
fn a_file_cut_anywhere_is_refused_or_measured_but_never_a_panic() {
    for length in 0..kernel().len() {
        let _ = measured(|kernel, _, _| kernel.truncate(length));
    }
    for length in 0..firmware().len() {
        let result = measured(|_, firmware, _| firmware.truncate(length));
        // Without the SEC volume the file is whole again.
        assert!(result.is_err() || length == volume_boundary(), "{length}");
    }
}

fn volume_boundary() -> usize {
    firmware().len() - volume(3, &section(0x10, b"SEC")).len()
}

#[test]
fn firmware_without_exactly_one_dxe_volume_is_refused() {
    for images in [vec![], vec![volume(4, &section(0x10, b"PEI core"))], vec![dxe(), dxe()]] {
        let message = measured(|_, firmware, _| *firmware = firmware_of(&images)).unwrap_err().to_string();
        assert!(message.contains("expected one volume with a DXE core"), "{message}");
    }
}

#[test]
fn a_packed_section_that_claims_to_be_huge_is_refused() {
    let message = measured(|_, firmware, _| {
        // Volume header, file header, section header, GUID and its fields, properties and dictionary.
        let at = 72 + 24 + 4 + 20 + 5;
        firmware[at..at + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    });
    let message = message.unwrap_err().to_string();
    assert!(message.contains("at most 64 MiB"), "{message}");
}

#[test]
fn reference_values_are_lists_by_id() {
    let measurements = unchanged();
    let values = measurements.reference_values();
    assert_eq!(values.keys().collect::<Vec<_>>(), ["cmdline", "firmware", "initrd", "kernel"]);
    assert_eq!(values["kernel"], Value::from(measurements.kernel));
    assert_eq!(values["initrd"], Value::from(vec![measurements.initrd]));
}
