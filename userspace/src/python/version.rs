//! Which release of CPython an ELF file holds.

use super::discover::SymbolSource;

/// The longest read-only data that is searched: that of 3.15 has 6 MB.
const LONGEST_RODATA: usize = 32 << 20;

/// The number of a release as `PY_VERSION_HEX` has it (Include/patchlevel.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Release {
    pub(super) hexversion: u32,
}

impl Release {
    pub(super) fn numbers(self) -> (u8, u8, u8) {
        let [_, micro, minor, major] = self.hexversion.to_le_bytes();
        (major, minor, micro)
    }

    /// Not an alpha or a beta, whose structs differ from the final release's. Those of a candidate are frozen (PEP 101), and from 3.13 on
    /// it has its own offsets to be held against.
    pub(super) fn is_settled(self) -> bool {
        const CANDIDATE: u32 = 0xc0;
        const FINAL: u32 = 0xf0;
        let level = self.hexversion & 0xf0;
        level == FINAL || level == CANDIDATE && self.numbers().1 >= 13
    }

    fn final_release(minor: u8, micro: u8) -> Release {
        Release { hexversion: u32::from_be_bytes([3, minor, micro, 0xf0]) }
    }
}

/// The release of the interpreter in a file: its own word from 3.11 on, the text in its read-only data before.
pub(super) fn release_of(file: &dyn SymbolSource) -> Option<Release> {
    if let Some((address, _)) = file.symbol("Py_Version") {
        let bytes = file.read_at_address(address, 8)?;
        let hexversion = u32::from_le_bytes(*bytes.first_chunk()?);
        return (hexversion >> 24 == 3).then_some(Release { hexversion });
    }
    let (address, size) = file.section(".rodata")?;
    let length = usize::try_from(size).ok()?.min(LONGEST_RODATA);
    from_read_only_data(&file.read_at_address(address, length)?)
}

/// `PY_VERSION` is a text of its own, or the end of a longer one where the linker merged them (`/opt/python-3.9.18`). Other texts
/// look like it: ends of versions (`13.0.0` of the Unicode database) and prefixes of other releases. The minor is held against
/// `python3.N`, which getpath.c has; among releases of that minor, a text of its own wins.
fn from_read_only_data(data: &[u8]) -> Option<Release> {
    let minors = minors_in_paths(data);
    let mut best: Option<(bool, Release)> = None;
    for (index, _) in data.windows(2).enumerate().filter(|(_, window)| *window == b"3.") {
        let Some((minor, micro)) = release_text(&data[index..]) else { continue };
        let before = index.checked_sub(1).and_then(|before| data.get(before)).copied().unwrap_or(0);
        // 3.2.0 is the Unicode database of unicodedata.ucd_3_2_0; a digit or dot before makes it the end of another number.
        if (minor, micro) == (2, 0) || before.is_ascii_digit() || before == b'.' || !minors.contains(&minor) {
            continue;
        }
        let found = (before == 0, Release::final_release(minor, micro));
        if best.is_none_or(|best| found > best) {
            best = Some(found);
        }
    }
    best.map(|(_, release)| release)
}

/// `3.N.P`, perhaps with the `+` of a build from between releases, and the NUL after it.
fn release_text(text: &[u8]) -> Option<(u8, u8)> {
    let end = text.iter().take(12).position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(&text[..end]).ok()?;
    let (minor, micro) = text.strip_prefix("3.")?.split_once('.')?;
    let micro = micro.strip_suffix('+').unwrap_or(micro);
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    Some((number(minor)?, number(micro)?))
}

/// The N of every `python3.N` that is not followed by more of a number.
fn minors_in_paths(data: &[u8]) -> Vec<u8> {
    const NAME: &[u8] = b"python3.";
    let mut minors = Vec::new();
    for (index, _) in data.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME) {
        let after = &data[index + NAME.len()..];
        let digits = after.iter().take(4).take_while(|byte| byte.is_ascii_digit()).count();
        let number = std::str::from_utf8(&after[..digits]).ok().and_then(|text| text.parse().ok());
        if let Some(minor) = number.filter(|minor| !minors.contains(minor)) {
            minors.push(minor);
        }
    }
    minors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(data: &[u8]) -> Option<(u8, u8, u8)> {
        from_read_only_data(data).map(Release::numbers)
    }

    #[test]
    fn the_text_alone_or_at_the_end_of_a_path() {
        assert_eq!(found(b"\x003.8.10\0x\0lib/python3.8\0"), Some((3, 8, 10)));
        assert_eq!(found(b"/opt/versions/3.9.18\0lib/python3.9\0"), Some((3, 9, 18)));
        assert_eq!(found(b"lib/python3.10\0\x003.10.4+\0"), Some((3, 10, 4)));
        assert!(from_read_only_data(b"3.10.4\0lib/python3.10").unwrap().is_settled());
    }

    #[test]
    fn what_only_looks_like_it() {
        assert_eq!(found(b"\x003.2.0\0\x0013.0.0\0lib/python3.9\0"), None);
        assert_eq!(found(b"\x003.2.0\0\x003.9.5\0lib/python3.9\0/opt/python-3.9.2\0"), Some((3, 9, 5)));
        assert_eq!(found(b"/opt/python-3.11.4\0\x003.9.5\0lib/python3.9\0"), Some((3, 9, 5)));
        assert_eq!(found(b"\x003.9.5rc1\0\x003.9.5.1\0\x003.999.1\0lib/python3.9\0"), None);
        assert_eq!(found(b"\x003.9.5"), None);
        assert_eq!(found(b""), None);
    }
}
