//! Times as RFC 3339 writes them.

/// Seconds since 1970 of `2022-06-28T19:06:39Z` or `...+02:00`; fractions are dropped. `None`: no such time.
pub(super) fn unix_seconds(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !separators.iter().all(|(at, byte)| text.as_bytes().get(*at) == Some(byte)) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        _ => return None,
    };
    if !(1..=last).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let rest = text.get(19..)?;
    let zone =
        rest.strip_prefix('.').map_or(rest, |rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    let offset = match zone.split_at_checked(1)? {
        ("Z", "") => 0,
        (sign @ ("+" | "-"), hhmm) => {
            let (hours, minutes) = hhmm.split_once(':')?;
            let (hours, minutes): (i64, i64) = (hours.parse().ok()?, minutes.parse().ok()?);
            if !(0..24).contains(&hours) || !(0..60).contains(&minutes) {
                return None;
            }
            (hours * 60 + minutes) * if sign == "+" { 60 } else { -60 }
        }
        _ => return None,
    };
    // Days from 1 March of year 0, so that leap days come last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (m * 153 + 2) / 5 + day - 1;
    Some((days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

#[cfg(test)]
mod tests {
    use super::unix_seconds;

    #[test]
    fn times_with_and_without_zone() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2022-06-28T19:06:39Z", Some(1_656_443_199)),
            ("2022-06-28T21:06:39.123456789+02:00", Some(1_656_443_199)),
            ("2020-02-29T00:00:00Z", Some(1_582_934_400)),
            ("0001-01-01T00:00:00Z", Some(-62_135_596_800)),
            ("2021-02-29T00:00:00Z", None),
            ("2022-13-01T00:00:00Z", None),
            ("2022-06-28 19:06:39Z", None),
            ("2022-06-28T19:06:39", None),
            ("2022-06-28T19:06:39Zx", None),
            ("2022-06-28T19:06:39+é0:00", None),
            ("-022-06-28T19:06:39Z", None),
            ("", None),
        ] {
            assert_eq!(unix_seconds(text), expected, "{text}");
        }
    }
}
