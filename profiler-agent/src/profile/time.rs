//! Lengths of time and moments as people write them.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Parses `30`, `30s`, `500ms`, `5m`, `2h`, `7d`.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let hint = || {
        format!(
            "`{}` is no duration: write 30, 30s, 500ms, 5m, 2h or 7d",
            text.escape_debug()
        )
    };
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| hint())?;
    let seconds = match unit {
        "" | "s" => number,
        "ms" => number / 1e3,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        _ => return Err(hint()),
    };
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| hint())?;
    if duration.is_zero() {
        Err(format!("`{text}`: a duration must be longer than 0"))
    } else {
        Ok(duration)
    }
}

/// Parses `2026-03-01T12:00:00Z` and `2026-03-01T12:00:00+01:00` (RFC 3339).
pub fn parse_time(text: &str) -> Result<SystemTime, String> {
    let time = OffsetDateTime::parse(text, &Rfc3339);
    time.map(SystemTime::from).map_err(|_| {
        format!(
            "`{}` is no time: write 2026-03-01T12:00:00Z or 2026-03-01T12:00:00+01:00",
            text.escape_debug()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed_or_refused_with_examples() {
        assert_eq!(parse_span("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_span("5m"), Ok(Duration::from_mins(5)));
        assert_eq!(parse_span("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_span("2d"), Ok(Duration::from_hours(48)));
        for text in ["0", "-1", "1y", "", "1e400", "NaN", "s"] {
            assert!(parse_span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_have_an_offset() {
        let at = |text| {
            let time = parse_time(text).unwrap();
            time.duration_since(SystemTime::UNIX_EPOCH).unwrap()
        };
        assert_eq!(at("1970-01-01T00:01:00Z"), Duration::from_mins(1));
        assert_eq!(
            at("1970-01-01T01:01:00.5+01:00"),
            Duration::from_millis(60_500)
        );
        for text in [
            "",
            "now",
            "1970-01-01",
            "1970-01-01T00:01:00",
            "1970-13-01T00:01:00Z",
        ] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
