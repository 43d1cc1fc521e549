//! Numbers as `repr` writes them: int, float, complex.

use std::fmt::Write as _;

/// Bits of a digit of an int.
const DIGIT_BITS: u32 = 30;

/// `repr` of a float.
#[must_use]
pub(super) fn float(value: f64) -> String {
    let mut text = short(value);
    if text
        .bytes()
        .all(|byte| byte == b'-' || byte.is_ascii_digit())
    {
        text.push_str(".0");
    }
    text
}

/// `repr` of a complex number.
#[must_use]
pub(super) fn complex(real: f64, imag: f64) -> String {
    let mut imag_text = short(imag);
    imag_text.push('j');
    if real == 0.0 && real.is_sign_positive() {
        return imag_text;
    }
    let sign = if imag_text.starts_with('-') { "" } else { "+" };
    format!("({}{sign}{imag_text})", short(real))
}

/// The fewest digits that mean this number, as `float_repr_style` "short" has them, without `.0`.
fn short(value: f64) -> String {
    // Beyond these, the position of the point is written as an exponent (`format_float_short`, Python/pystrtod.c).
    const FIRST_FIXED: i32 = -3;
    const LAST_FIXED: i32 = 16;
    if value.is_nan() {
        return "nan".to_owned();
    }
    let sign = if value.is_sign_negative() { "-" } else { "" };
    if value.is_infinite() {
        return format!("{sign}inf");
    }
    let scientific = format!("{:e}", value.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let digits = mantissa.replace('.', "");
    let point = exponent + 1;
    if !(FIRST_FIXED..=LAST_FIXED).contains(&point) {
        let (first, rest) = digits.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        let exponent_sign = if exponent < 0 { '-' } else { '+' };
        return format!(
            "{sign}{first}{dot}{rest}e{exponent_sign}{:02}",
            exponent.unsigned_abs()
        );
    }
    match usize::try_from(point) {
        Ok(n @ 1..) if n >= digits.len() => format!("{sign}{digits:0<n$}"),
        Ok(n @ 1..) => format!("{sign}{}.{}", &digits[..n], &digits[n..]),
        _ => format!(
            "{sign}0.{}{digits}",
            "0".repeat(point.unsigned_abs() as usize)
        ),
    }
}

/// `repr` of an int, from its digits of 30 bits, the lowest first.
#[must_use]
pub(super) fn int(digits: &[u32], is_negative: bool) -> String {
    const PART: u64 = 1_000_000_000;
    let mut digits = digits.to_vec();
    let mut parts: Vec<u64> = Vec::new();
    while let Some(top) = digits.last() {
        if *top == 0 {
            digits.pop();
            continue;
        }
        let mut rest = 0_u64;
        for digit in digits.iter_mut().rev() {
            let value = rest << DIGIT_BITS | u64::from(*digit);
            *digit = (value / PART) as u32;
            rest = value % PART;
        }
        parts.push(rest);
    }
    let Some((first, others)) = parts.split_last() else {
        return "0".to_owned();
    };
    let mut text = format!("{}{first}", if is_negative { "-" } else { "" });
    for part in others.iter().rev() {
        // Writing to a String does not fail.
        let _ = write!(text, "{part:09}");
    }
    text
}

/// `str` of a number of the module `decimal`: the flags and the exponent of libmpdec, and its digits by 19, the lowest first.
/// `None`: it makes no sense.
#[must_use]
pub(super) fn decimal(flags: u8, exponent: i64, words: &[u64]) -> Option<String> {
    const NEGATIVE: u8 = 1;
    const INFINITE: u8 = 2;
    const NAN: u8 = 4;
    const SIGNALLING: u8 = 8;
    const WORD: u64 = 10_000_000_000_000_000_000;
    /// From here on down the exponent is written.
    const FIRST_FIXED: i64 = -6;
    if words.iter().any(|word| *word >= WORD) || exponent.unsigned_abs() > 1 << 61 {
        return None;
    }
    let sign = if flags & NEGATIVE != 0 { "-" } else { "" };
    let mut digits = String::new();
    for word in words.iter().rev() {
        // Writing to a String does not fail.
        let _ = write!(digits, "{word:019}");
    }
    let digits = digits.trim_start_matches('0');
    if flags & INFINITE != 0 {
        return Some(format!("{sign}Infinity"));
    }
    if flags & (NAN | SIGNALLING) != 0 {
        let name = if flags & NAN != 0 { "NaN" } else { "sNaN" };
        return Some(format!("{sign}{name}{digits}"));
    }
    let digits = if digits.is_empty() { "0" } else { digits };
    let point = exponent + digits.len() as i64;
    if exponent <= 0 && point > FIRST_FIXED {
        return Some(match usize::try_from(point) {
            Ok(_) if exponent == 0 => format!("{sign}{digits}"),
            Ok(n @ 1..) => format!("{sign}{}.{}", &digits[..n], &digits[n..]),
            _ => format!(
                "{sign}0.{}{digits}",
                "0".repeat(point.unsigned_abs() as usize)
            ),
        });
    }
    let (first, rest) = digits.split_at(1);
    let dot = if rest.is_empty() { "" } else { "." };
    Some(format!("{sign}{first}{dot}{rest}E{:+}", point - 1))
}

/// Bits of an int of so many digits with this highest one.
#[must_use]
pub(super) fn n_bits(n_digits: u64, top: u32) -> u64 {
    n_digits
        .saturating_sub(1)
        .saturating_mul(DIGIT_BITS.into())
        .saturating_add(u64::from(32 - top.leading_zeros()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_does() {
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (123.456, "123.456"),
            (-2.5, "-2.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00012, "0.00012"),
            (0.00001, "1e-05"),
            (5e-324, "5e-324"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float(value), text);
        }
        assert_eq!(complex(0.0, 1.0), "1j");
        assert_eq!(complex(-0.0, 1.0), "(-0+1j)");
        assert_eq!(complex(1.5, -2.0), "(1.5-2j)");
        assert_eq!(complex(1.0, f64::NAN), "(1+nanj)");
    }

    #[test]
    fn decimals_that_make_no_sense_are_none() {
        assert_eq!(decimal(0, -2, &[123]).as_deref(), Some("1.23"));
        assert_eq!(
            decimal(1, 3, &[1, 1]).as_deref(),
            Some("-1.0000000000000000001E+22")
        );
        assert_eq!(decimal(0, i64::MIN, &[1]), None);
        assert_eq!(decimal(0, 0, &[u64::MAX]), None);
        assert_eq!(decimal(0, 0, &[]).as_deref(), Some("0"));
    }

    #[test]
    fn ints_of_any_size_are_written_in_decimal() {
        assert_eq!(int(&[], false), "0");
        assert_eq!(int(&[0, 0], true), "0");
        assert_eq!(int(&[7], true), "-7");
        assert_eq!(int(&[0, 1], false), (1_u64 << 30).to_string());
        assert_eq!(int(&[0, 0, 0, 1], false), (1_u128 << 90).to_string());
        let top = (1 << 30) - 1;
        assert_eq!(int(&[top; 4], false), ((1_u128 << 120) - 1).to_string());
        assert_eq!((n_bits(1, 1), n_bits(2, 1), n_bits(4, top)), (1, 31, 120));
    }
}
