//! A process of a test: started, its memory, its ELF files.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol};

use super::super::code::Memory;
use super::super::discover::{Interpreter, Module, Refusal, SymbolSource, find};

/// A child that ends when its standard input does, which is when this is dropped.
pub(super) struct Process {
    child: Child,
    _input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    memory: fs::File,
}

impl Process {
    pub(super) fn start(program: &Path, arguments: &[&str]) -> Process {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let memory = fs::File::open(format!("/proc/{}/mem", child.id())).unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Process { _input: child.stdin.take(), child, output, memory }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its output.
    pub(super) fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).unwrap() > 0, "the program ended early");
        line.trim_end().to_string()
    }

    /// Runs discovery over the files that are mapped. The memory is opened anew: an exec has replaced the one there was.
    pub(super) fn find(&mut self) -> Result<Option<Interpreter>, Refusal> {
        self.memory = fs::File::open(format!("/proc/{}/mem", self.pid())).unwrap();
        let files = self.mapped_files();
        let modules: Vec<Module<'_>> = files
            .iter()
            .map(|(path, load_bias, file)| Module { path: path.as_path(), load_bias: *load_bias, file })
            .collect();
        find(&modules, Some(self))
    }

    fn mapped_files(&self) -> Vec<(PathBuf, u64, ElfData)> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap();
        let mut starts: BTreeMap<&str, u64> = BTreeMap::new();
        for line in maps.lines() {
            let mut fields = line.split_whitespace();
            let (range, offset, path) =
                (fields.next().unwrap(), fields.nth(1).unwrap(), fields.nth(2).unwrap_or_default());
            if path.starts_with('/') && offset.trim_start_matches('0').is_empty() {
                let start = u64::from_str_radix(range.split('-').next().unwrap(), 16).unwrap();
                starts.entry(path).or_insert(start);
            }
        }
        let files = starts.into_iter().filter_map(|(path, start)| {
            let file = ElfData::open(Path::new(path))?;
            Some((PathBuf::from(path), start.wrapping_sub(file.first_address()), file))
        });
        files.collect()
    }

    /// Waits until `count` of its threads are in `read`: then they are where they said they would be. The state is asked for
    /// again and again; the clock is not.
    pub(super) fn wait_for_readers(&mut self, count: usize) {
        loop {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().flatten();
            // The first word is the number of the system call: read is 0 on x86-64.
            let reading = |task: &fs::DirEntry| {
                fs::read_to_string(task.path().join("syscall")).is_ok_and(|text| text.starts_with("0 "))
            };
            if tasks.filter(reading).count() >= count {
                return;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "the program ended early");
            std::thread::yield_now();
        }
    }
}

impl Memory for Process {
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(buffer, address)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An ELF file as the tests read it.
pub(super) struct ElfData(Vec<u8>);

impl ElfData {
    fn open(path: &Path) -> Option<ElfData> {
        let data = fs::read(path).ok()?;
        object::File::parse(data.as_slice()).ok()?;
        Some(ElfData(data))
    }

    fn file(&self) -> object::File<'_> {
        object::File::parse(self.0.as_slice()).unwrap()
    }

    fn first_address(&self) -> u64 {
        self.file().segments().map(|segment| segment.address() & !0xfff).min().unwrap_or(0)
    }
}

impl SymbolSource for ElfData {
    fn symbol(&self, name: &str) -> Option<(u64, u64)> {
        let file = self.file();
        let symbol = file
            .dynamic_symbols()
            .chain(file.symbols())
            .find(|symbol| symbol.is_definition() && symbol.name() == Ok(name))?;
        Some((symbol.address(), symbol.size()))
    }

    fn section(&self, name: &str) -> Option<(u64, u64)> {
        self.file().section_by_name(name).map(|section| (section.address(), section.size()))
    }

    fn read_at_address(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        let file = self.file();
        let segment = file
            .segments()
            .find(|segment| (segment.address()..segment.address() + segment.size()).contains(&address))?;
        let data = segment.data().ok()?.get(usize::try_from(address - segment.address()).ok()?..)?;
        Some(data[..length.min(data.len())].to_vec())
    }
}
