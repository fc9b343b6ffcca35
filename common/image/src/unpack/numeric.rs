//! Numbers as tar writes them.

/// A header's number: octal digits, or GNU's base 256 where the first bit is set. Empty is 0.
pub(super) fn header_number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base_256(field),
        _ => octal(field),
    }
}

/// As [`header_number`], but not negative.
pub(super) fn header_size(field: &[u8]) -> Option<u64> {
    u64::try_from(header_number(field)?).ok()
}

/// Decimal digits only: Rust's own parser also takes a sign.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A point in time: whole seconds since the epoch, rounded down, and nanoseconds.
pub(super) type Time = (i64, u32);

/// PAX time: decimal seconds, possibly negative, possibly with a fraction.
pub(super) fn pax_time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let whole = i64::try_from(decimal(parts.next()?).filter(|_| !text.is_empty())?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = (0..9).fold(0, |sum, index| {
        sum * 10 + fraction.get(index).map_or(0, |digit| u32::from(digit.wrapping_sub(b'0')))
    });
    match (negative, nanoseconds) {
        (false, _) => Some((whole, nanoseconds)),
        (true, 0) => Some((-whole, 0)),
        (true, _) => Some(((-whole).checked_sub(1)?, 1_000_000_000 - nanoseconds)),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let end = field.iter().rposition(|byte| !is_padding(byte)).map_or(0, |last| last + 1);
    let start = field.iter().position(|byte| !is_padding(byte)).unwrap_or(0).min(end);
    field.get(start..end)?.iter().try_fold(0_i64, |sum, byte| match byte {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

/// Two's complement, big-endian; the first bit only marks the form, the second is the sign.
fn base_256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    let negative = first & 0x40 != 0;
    let start = i64::from(first & 0x7f) - if negative { 0x80 } else { 0 };
    rest.iter().try_fold(start, |sum, byte| sum.checked_mul(256)?.checked_add(i64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(b"0000644\0", Some(0o644))]
    #[case(b" 644 \0\0\0", Some(0o644))]
    #[case(b"\0\0\0\0\0\0\0\0", Some(0))]
    #[case(b"77777777", Some(0o77777777))]
    #[case(b"0000648\0", None)]
    #[case(b"-000001\0", None)]
    #[case(b"6 4\0\0\0\0\0", None)]
    #[case(b"\x80\0\0\0\0\0\x01\0", Some(256))]
    #[case(b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2))]
    #[case(b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None)]
    fn header_numbers(#[case] field: &[u8], #[case] expected: Option<i64>) {
        assert_eq!(header_number(field), expected);
    }

    #[rstest]
    #[case("1350244992.023960108", Some((1_350_244_992, 23_960_108)))]
    #[case("1", Some((1, 0)))]
    #[case("1.", Some((1, 0)))]
    #[case("1.5", Some((1, 500_000_000)))]
    #[case("1.1234567899", Some((1, 123_456_789)))]
    #[case("-1.5", Some((-2, 500_000_000)))]
    #[case("-1", Some((-1, 0)))]
    #[case("", None)]
    #[case("-", None)]
    #[case("+1", None)]
    #[case("1.x", None)]
    #[case("99999999999999999999", None)]
    fn pax_times(#[case] text: &str, #[case] expected: Option<Time>) {
        assert_eq!(pax_time(text.as_bytes()), expected);
    }

    proptest! {
        #[test]
        fn no_field_makes_a_parser_panic(field in proptest::collection::vec(any::<u8>(), 0..16)) {
            let _ = (header_number(&field), header_size(&field), decimal(&field), pax_time(&field));
        }
    }
}
