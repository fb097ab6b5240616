//! Moments as RFC 3339 writes them, in Unix milliseconds.

/// The Unix milliseconds of `2026-01-31T12:00:00.250Z` and the like; nothing where it is none.
pub(super) fn parse(text: &str) -> Option<i64> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let mut date = date.splitn(3, '-');
    let year = digits(date.next()?, 4)?;
    let month = digits(date.next()?, 2).filter(|month| (1..=12).contains(month))?;
    let day = digits(date.next()?, 2).filter(|day| (1..=days_of(year, month)).contains(day))?;
    let zone = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at_checked(zone)?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.splitn(3, ':');
    let hour = digits(clock.next()?, 2).filter(|hour| *hour < 24)?;
    let minute = digits(clock.next()?, 2).filter(|minute| *minute < 60)?;
    let second = digits(clock.next()?, 2).filter(|second| *second < 60)?;
    let ms = milliseconds(fraction)?;
    let local = ((days_before(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    Some((local - offset(zone)?) * 1000 + ms)
}

fn digits(text: &str, count: usize) -> Option<i64> {
    let sound = text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    sound.then(|| text.parse().ok()).flatten()
}

fn milliseconds(fraction: &str) -> Option<i64> {
    let sound = (1..=9).contains(&fraction.len()) && fraction.bytes().all(|b| b.is_ascii_digit());
    let padded: String = fraction
        .chars()
        .chain(std::iter::repeat('0'))
        .take(3)
        .collect();
    sound.then(|| padded.parse().ok()).flatten()
}

/// What to take off a local time, in seconds.
fn offset(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, zone) = zone.split_at_checked(1)?;
    let (hours, minutes) = zone.split_once(':')?;
    let hours = digits(hours, 2).filter(|hours| *hours < 24)?;
    let minutes = digits(minutes, 2).filter(|minutes| *minutes < 60)?;
    let seconds = (hours * 60 + minutes) * 60;
    Some(if sign == "-" { -seconds } else { seconds })
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days between 1970-01-01 and a day.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    let leaps = |year: i64| year / 4 - year / 100 + year / 400;
    let years = 365 * (year - 1970) + leaps(year - 1) - leaps(1969);
    let months: i64 = (1..month).map(|month| days_of(year, month)).sum();
    years + months + day - 1
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn moments_are_what_rfc_3339_says() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59Z", -1000),
            ("2000-02-29T12:34:56.789Z", 951_827_696_789),
            ("2026-11-22T16:42:01Z", 1_795_365_721_000),
            ("2026-11-22T18:42:01+02:00", 1_795_365_721_000),
            ("2026-11-22 11:42:01.5-05:00", 1_795_365_721_500),
            ("0001-01-01T00:00:00Z", -62_135_596_800_000),
        ] {
            assert_eq!(parse(text), Some(ms), "{text}");
        }
        for text in [
            "",
            "2026-11-22",
            "2026-11-22T16:42Z",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00+2",
            "2026-01-01T00:00:00.Z",
            "\u{e4}T\u{e4}Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
