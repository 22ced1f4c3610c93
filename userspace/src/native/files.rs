//! Files with code that processes map: their unwind tables and their symbols, read once.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{Input, Symbolized, Symbolizer};
use framehop::ExplicitModuleSectionInfo;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::target::Pid;
use crate::target::elf::ElfFile;
use crate::target::maps::{self, Mapping};

/// The longest unwind table that is read.
const LONGEST_TABLE: u64 = 64 << 20;
/// The longest file whose symbols are read.
const LONGEST_FILE: u64 = 1 << 30;
/// How far a symbol without a size may reach: of code in assembler, not of all that comes after it.
const LONGEST_UNSIZED: usize = 4096;
/// The longest name that is believed.
const LONGEST_NAME: usize = 512;

/// A file by its device and its number there.
type Inode = ((u32, u32), u64);

/// A mapping with code, and the file it is of.
#[derive(Debug)]
pub struct CodeMapping {
    /// As the kernel lists it.
    pub mapping: Mapping,
    /// Absent where it could not be opened.
    pub file: Option<File>,
}

/// Everything with code that a process maps, opened. To be called while the process is held, or likely to be there.
///
/// # Errors
/// When its mappings cannot be read.
pub fn code_of(pid: Pid) -> io::Result<Vec<CodeMapping>> {
    let code = code_mappings(pid)?;
    Ok(code.into_iter().map(|mapping| CodeMapping { file: maps::open_file(pid, &mapping).ok(), mapping }).collect())
}

fn code_mappings(pid: Pid) -> io::Result<Vec<Mapping>> {
    let mut mappings = maps::mappings(pid)?;
    mappings.retain(|mapping| mapping.is_file() && mapping.permissions.execute);
    Ok(mappings)
}

/// One file. It stays open, so that its inode's number is not given to another.
#[derive(Debug)]
pub(super) struct CodeFile {
    /// Its name, without the path.
    pub name: String,
    file: File,
    elf: ElfFile,
    eh_frame: Option<(u64, Arc<[u8]>)>,
    eh_frame_hdr: Option<(u64, Arc<[u8]>)>,
    /// Ours, of the whole file: the symbolizer maps what it reads, and the program's own file may be made shorter under it.
    copy: OnceCell<Option<File>>,
    names: RefCell<HashMap<u64, Option<String>>>,
}

/// A file's code in a process.
#[derive(Clone, Debug)]
pub(super) struct Module {
    pub start: u64,
    pub end: u64,
    /// What is to be added to the file's addresses, modulo 2^64.
    pub bias: u64,
    pub file: Rc<CodeFile>,
}

/// All files looked into in a session.
#[derive(Debug)]
pub struct Files {
    known: HashMap<Inode, Option<Rc<CodeFile>>>,
    symbolizer: Symbolizer,
}

impl Default for Files {
    fn default() -> Self {
        let symbolizer = Symbolizer::builder().enable_code_info(false).enable_inlined_fns(false).build();
        Self { known: HashMap::new(), symbolizer }
    }
}

impl Files {
    /// What a process maps now. `None`: it cannot be looked at.
    pub(super) fn live(&mut self, pid: Pid) -> Option<Vec<Module>> {
        let mappings = code_mappings(pid).ok()?;
        Some(
            mappings
                .into_iter()
                .filter_map(|mapping| self.module(&mapping, |m| maps::open_file(pid, m).ok()))
                .collect(),
        )
    }

    /// What somebody has seen a process map.
    pub(super) fn of(&mut self, code: Vec<CodeMapping>) -> Vec<Module> {
        code.into_iter().filter_map(|CodeMapping { mapping, file }| self.module(&mapping, |_| file)).collect()
    }

    fn module(&mut self, mapping: &Mapping, open: impl FnOnce(&Mapping) -> Option<File>) -> Option<Module> {
        let key = (mapping.device, mapping.inode);
        let file = match self.known.get(&key) {
            Some(known) => known.clone()?,
            None => {
                // What cannot be opened now, its process being about to end, may be opened for another.
                let file = open(mapping)?;
                let name = mapping.file_name().to_string_lossy().into_owned();
                let read = CodeFile::read(name, file).map(Rc::new);
                self.known.insert(key, read.clone());
                read?
            }
        };
        let bias = file.elf.load_bias([mapping])?;
        Some(Module { start: mapping.start, end: mapping.end, bias, file })
    }

    /// The name of the function that has the code at an address of the process.
    pub(super) fn function_at(&self, module: &Module, address: u64) -> Option<String> {
        let inside = address.wrapping_sub(module.bias);
        if let Some(known) = module.file.names.borrow().get(&inside) {
            return known.clone();
        }
        let name = self.symbolize(&module.file, inside);
        module.file.names.borrow_mut().insert(inside, name.clone());
        name
    }

    fn symbolize(&self, file: &CodeFile, inside: u64) -> Option<String> {
        let copy = file.copy.get_or_init(|| copy_of(&file.file).ok()).as_ref()?;
        let source = Source::Elf(Elf::new(format!("/proc/self/fd/{}", copy.as_raw_fd())));
        match self.symbolizer.symbolize_single(&source, Input::VirtOffset(inside)).ok()? {
            Symbolized::Sym(symbol) if symbol.offset < symbol.size.unwrap_or(LONGEST_UNSIZED) => {
                Some(symbol.name.chars().take(LONGEST_NAME).collect())
            }
            _ => None,
        }
    }
}

impl CodeFile {
    fn read(name: String, file: File) -> Option<Self> {
        let elf = ElfFile::parse(file.try_clone().ok()?).ok()?;
        let table = |name: &str| {
            let section = elf.section(name).filter(|section| section.size > 0 && section.size <= LONGEST_TABLE)?;
            let bytes = elf.bytes_at(section.address, section.size)?;
            (bytes.len() as u64 == section.size).then(|| (section.address, Arc::from(bytes)))
        };
        let (eh_frame, eh_frame_hdr) = (table(".eh_frame"), table(".eh_frame_hdr"));
        let (copy, names) = (OnceCell::new(), RefCell::default());
        Some(Self { name, file, elf, eh_frame, eh_frame_hdr, copy, names })
    }

    /// Can its frames be left by what it says itself?
    pub(super) fn tells_frames(&self) -> bool {
        self.eh_frame.is_some()
    }

    pub(super) fn unwind_tables(&self) -> ExplicitModuleSectionInfo<Arc<[u8]>> {
        let range = |table: &Option<(u64, Arc<[u8]>)>| table.as_ref().map(|(at, bytes)| *at..*at + bytes.len() as u64);
        let bytes = |table: &Option<(u64, Arc<[u8]>)>| table.as_ref().map(|(_, bytes)| Arc::clone(bytes));
        ExplicitModuleSectionInfo {
            eh_frame_svma: range(&self.eh_frame),
            eh_frame: bytes(&self.eh_frame),
            eh_frame_hdr_svma: range(&self.eh_frame_hdr),
            eh_frame_hdr: bytes(&self.eh_frame_hdr),
            ..Default::default()
        }
    }
}

/// A copy in memory that nobody else has.
fn copy_of(file: &File) -> io::Result<File> {
    let length = file.metadata()?.len();
    if length > LONGEST_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut copy = File::from(memfd_create(c"rmprof-symbols", MFdFlags::MFD_CLOEXEC)?);
    let mut piece = vec![0; 1 << 20];
    let mut at = 0;
    while at < length {
        let count = file.read_at(&mut piece, at)?;
        if count == 0 {
            break;
        }
        copy.write_all(&piece[..count])?;
        at += count as u64;
    }
    Ok(copy)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A process that was about to end when it was looked at says nothing about the next.
    #[test]
    fn what_could_not_be_opened_is_tried_again() {
        let mut files = Files::default();
        let not_opened = code_mappings(Pid::this()).unwrap().into_iter();
        let not_opened = not_opened.map(|mapping| CodeMapping { mapping, file: None }).collect();
        assert!(files.of(not_opened).is_empty());
        assert!(!files.of(code_of(Pid::this()).unwrap()).is_empty());
    }

    #[test]
    fn names_functions_of_our_own() {
        let mut files = Files::default();
        let modules = files.live(Pid::this()).unwrap();
        let address = names_functions_of_our_own as *const () as u64;
        let module = modules.iter().find(|module| (module.start..module.end).contains(&address)).unwrap();
        let name = files.function_at(module, address).unwrap();
        assert!(name.contains("names_functions_of_our_own"), "{name}");
        assert!(module.file.tells_frames());
        assert_eq!(files.function_at(module, module.bias.wrapping_sub(1)), None);
    }
}
