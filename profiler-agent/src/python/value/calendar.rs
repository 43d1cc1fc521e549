//! Dates, times and spans of the module `datetime`, as `repr` writes them. Where they keep what they are is in
//! `Include/datetime.h`, the same from 3.6 to 3.15.

use std::fmt::Write as _;

use super::types::Calendar;
use super::{Out, Unreadable, Values};
use crate::ids::Address;
use crate::process::memory::ReadMemory;

/// `hastzinfo`, behind the header and the hash; the digits follow it.
const HAS_ZONE: u64 = 8;
/// `PyDateTime_DateTime.tzinfo`.
const ZONE_OF_DATETIME: u64 = 24;
/// `PyDateTime_Time.tzinfo`.
const ZONE_OF_TIME: u64 = 16;

impl<M: ReadMemory> Values<'_, M> {
    /// One of these; `name` is that of its type.
    pub(super) fn calendar(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
        name: &str,
        of: Calendar,
    ) -> Result<(), Unreadable> {
        match of {
            Calendar::Date => {
                let [_, year_high, year_low, month, day] = self.digits(object)?;
                let year = u16::from_be_bytes([year_high, year_low]);
                out.push(&format!("{name}({year}, {month}, {day})"));
                Ok(())
            }
            Calendar::DateTime => {
                let [has_zone, year_high, year_low, rest @ ..] = self.digits::<12>(object)?;
                let [month, day, hour, minute, second, micros @ .., fold] = rest;
                let year = u16::from_be_bytes([year_high, year_low]);
                let text = format!("{name}({year}, {month}, {day}, {hour}, {minute}");
                let time = (text, second, micros, fold);
                let zone = (has_zone != 0).then_some(ZONE_OF_DATETIME);
                self.time(out, path, object, time, zone)
            }
            Calendar::Time => {
                let [has_zone, hour, minute, second, micros @ .., fold] =
                    self.digits::<8>(object)?;
                let text = format!("{name}({hour}, {minute}");
                let time = (text, second, micros, fold);
                let zone = (has_zone != 0).then_some(ZONE_OF_TIME);
                self.time(out, path, object, time, zone)
            }
            Calendar::TimeDelta => {
                let text = self.span(object)?;
                out.push(&format!("{name}({text})"));
                Ok(())
            }
            Calendar::TimeZone => self.zone(out, path, object, name),
        }
    }

    /// The bytes from [`HAS_ZONE`] on.
    fn digits<const N: usize>(&self, object: Address) -> Result<[u8; N], Unreadable> {
        let mut bytes = [0; N];
        let at = object.add(self.layout.header + HAS_ZONE);
        self.memory.read(at, &mut bytes)?;
        Ok(bytes)
    }

    /// A time from its seconds on, and the zone at this offset.
    fn time(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
        (mut text, second, micros, fold): (String, u8, [u8; 3], u8),
        zone: Option<u64>,
    ) -> Result<(), Unreadable> {
        let [high, middle, low] = micros;
        let micros = u32::from_be_bytes([0, high, middle, low]);
        // Writing to a String does not fail.
        if second != 0 || micros != 0 {
            let _ = write!(text, ", {second}");
        }
        if micros != 0 {
            let _ = write!(text, ", {micros}");
        }
        if fold != 0 {
            let _ = write!(text, ", fold={fold}");
        }
        let Some(zone) = zone else {
            text.push(')');
            out.push(&text);
            return Ok(());
        };
        text.push_str(", tzinfo=");
        out.push(&text);
        if !out.is_full {
            let zone = Address(self.field(object, zone)?);
            self.within(out, path, zone)?;
        }
        out.close(")");
        Ok(())
    }

    /// What a span of time was made with, by its fields: days, seconds, microseconds.
    fn span(&self, object: Address) -> Result<String, Unreadable> {
        const DAYS: u64 = 8;
        let word = self.field(object, DAYS)?;
        let days = (word as u32).cast_signed();
        let seconds = ((word >> 32) as u32).cast_signed();
        let micros = (self.field(object, DAYS + 8)? as u32).cast_signed();
        if self.layout.minor < 7 {
            return Ok(match (seconds, micros) {
                (0, 0) => days.to_string(),
                (_, 0) => format!("{days}, {seconds}"),
                _ => format!("{days}, {seconds}, {micros}"),
            });
        }
        let fields = [
            ("days", days),
            ("seconds", seconds),
            ("microseconds", micros),
        ];
        let fields = fields.iter().filter(|(_, value)| *value != 0);
        let fields: Vec<String> = fields
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        Ok(if fields.is_empty() {
            "0".to_owned()
        } else {
            fields.join(", ")
        })
    }

    /// `PyDateTime_TimeZone`: an offset, and a name or none.
    fn zone(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
        name: &str,
    ) -> Result<(), Unreadable> {
        let offset = Address(self.field(object, 0)?);
        let called = Address(self.field(object, 8)?);
        // Its type: a timedelta.
        self.facts(offset)?;
        if called.is_null() && self.span(offset)? == "0" {
            out.push(&format!("{name}.utc"));
            return Ok(());
        }
        out.push(&format!("{name}("));
        if !out.is_full {
            self.within(out, path, offset)?;
        }
        if !called.is_null() && out.goes_on(false) {
            self.within(out, path, called)?;
        }
        out.close(")");
        Ok(())
    }
}
