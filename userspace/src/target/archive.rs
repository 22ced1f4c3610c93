//! Files within zip archives, from which Python imports too (`zipimport`).

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use zip::ZipArchive;
use zip::result::ZipError;

/// So much of an archive is read at most, its directory included: the archive is the target's.
const MOST_READ: u64 = 16 << 20;

/// Opens the file `name` within a zip archive and gives `read` its content.
///
/// # Errors
/// Where it is no archive, has no such file, or too much of it would have to be read.
pub fn read_within<T>(archive: File, name: &str, read: impl FnOnce(&mut dyn Read) -> io::Result<T>) -> io::Result<T> {
    let bounded = Bounded { file: archive, left: MOST_READ };
    let mut archive = ZipArchive::new(BufReader::new(bounded)).map_err(to_io)?;
    let mut file = archive.by_name(name).map_err(to_io)?;
    read(&mut file)
}

fn to_io(error: ZipError) -> io::Error {
    match error {
        ZipError::Io(error) => error,
        ZipError::FileNotFound => io::Error::new(io::ErrorKind::NotFound, "not in the archive"),
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}

/// A file of which only so much is read.
struct Bounded {
    file: File,
    left: u64,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "an archive with too much to read"));
        }
        let read = (&self.file).take(self.left).read(buffer)?;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Seek for Bounded {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use zip::write::SimpleFileOptions;
    use zip::{CompressionMethod, ZipWriter};

    use super::*;

    fn archive(files: &[(&str, CompressionMethod, &[u8])]) -> File {
        let mut writer = ZipWriter::new(tempfile::tempfile().unwrap());
        for (name, method, content) in files {
            writer.start_file(*name, SimpleFileOptions::default().compression_method(*method)).unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap()
    }

    fn text(archive: File, name: &str) -> io::Result<Vec<u8>> {
        read_within(archive, name, |file| {
            let mut content = Vec::new();
            file.read_to_end(&mut content).map(|_| content)
        })
    }

    #[test]
    fn stored_and_deflated_files_are_read() {
        let files = [
            ("a.py", CompressionMethod::Stored, &b"x = 1\n"[..]),
            ("deep/b.py", CompressionMethod::Deflated, &b"y = 2\n"[..]),
        ];
        assert_eq!(text(archive(&files), "a.py").unwrap(), b"x = 1\n");
        assert_eq!(text(archive(&files), "deep/b.py").unwrap(), b"y = 2\n");
        assert_eq!(text(archive(&files), "c.py").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_no_archive_or_too_large_is_refused() {
        let mut plain = tempfile::tempfile().unwrap();
        plain.write_all(b"x = 1\n").unwrap();
        assert!(text(plain, "a.py").is_err());
        // More than may be read, and not to be compressed.
        let noise: Vec<u8> = (0..MOST_READ + 1).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
        let large = archive(&[("a.py", CompressionMethod::Stored, &noise)]);
        assert_eq!(text(large, "a.py").unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    proptest::proptest! {
        #[test]
        fn damaged_archives_end_in_an_error_or_in_text(at in 0usize..120, value: u8) {
            let mut content = Vec::new();
            let mut file = archive(&[("a.py", CompressionMethod::Deflated, b"x = 1\n")]);
            file.rewind().unwrap();
            file.read_to_end(&mut content).unwrap();
            let place = at % content.len();
            content[place] = value;
            let mut damaged = tempfile::tempfile().unwrap();
            damaged.write_all(&content).unwrap();
            let _ = text(damaged, "a.py");
        }
    }
}
