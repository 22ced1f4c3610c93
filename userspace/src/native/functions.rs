//! From a copy of a thread's stack to the function that asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use framehop::{CacheNative, FrameAddress, Module as UnwindModule, UnwindRegsNative, Unwinder, UnwinderNative};

use super::files::{CodeMapping, Files, Module};
use super::wrappers::{is_library, is_wrapper};
use crate::ledger::StackId;
use crate::tally;
use crate::target::Pid;

/// How many frames are looked at for a name.
const MOST_FRAMES: usize = 48;
/// Copies of stacks that wait for their files; the functions of further ones stay unknown.
const MOST_WAITING: usize = 1 << 14;
/// Files of a process are looked for again no sooner than this.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What the kernel side copied of a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Of which stack this is the first sight.
    pub stack: StackId,
    /// The instruction, or where the call returns to.
    pub instruction: u64,
    /// `instruction` is where the call returns to.
    pub returns: bool,
    /// The stack pointer there.
    pub stack_pointer: u64,
    /// The register that may be a frame pointer.
    pub frame_pointer: u64,
    /// What is on the stack from the stack pointer on.
    pub bytes: Vec<u8>,
}

/// A native function.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Function {
    /// Its name; `(in NAME)` where it has none and NAME called it; `FILE+0xOFFSET` where nothing near has one.
    pub function: String,
    /// The name of its file.
    pub module: String,
}

#[derive(Debug)]
enum Waiting {
    Call(Snapshot),
    Thread { stack: StackId, start: u64 },
}

/// The native functions of one process image.
#[derive(Default)]
pub struct Natives {
    modules: Vec<Module>,
    unwinder: UnwinderNative<Arc<[u8]>, framehop::MayAllocateDuringUnwind>,
    cache: CacheNative<framehop::MayAllocateDuringUnwind>,
    looked: Option<Instant>,
    waiting: Vec<Waiting>,
    given_up: u64,
    functions: Vec<Function>,
    numbers: HashMap<Function, u32>,
    calls: HashMap<StackId, u32>,
    threads: HashMap<StackId, u32>,
}

impl std::fmt::Debug for Natives {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Natives").field("functions", &self.functions).finish_non_exhaustive()
    }
}

impl Natives {
    /// A stack is seen for the first time: where it was called from. `process` while it is this image.
    pub fn call(&mut self, snapshot: Snapshot, files: &mut Files, process: Option<Pid>) {
        self.take(Waiting::Call(snapshot), files, process);
    }

    /// A stack without a Python frame is seen for the first time: the function its thread began with.
    pub fn thread(&mut self, stack: StackId, start: u64, files: &mut Files, process: Option<Pid>) {
        self.take(Waiting::Thread { stack, start }, files, process);
    }

    /// What the image maps, or mapped at its end: what waits is looked for there. Without, in the process, while it is there.
    pub fn settle(&mut self, code: Option<Vec<CodeMapping>>, files: &mut Files, process: Option<Pid>) {
        match code {
            Some(code) => {
                let modules = files.of(code);
                self.set_modules(modules);
            }
            None if self.waiting.is_empty() => return,
            None => self.look(files, process),
        }
        for waiting in std::mem::take(&mut self.waiting) {
            self.try_now(&waiting, files);
        }
    }

    /// The function that asked, of a stack.
    pub fn of_call(&self, stack: StackId) -> Option<u32> {
        self.calls.get(&stack).copied()
    }

    /// The function that the thread began with, of a stack.
    pub fn of_thread(&self, stack: StackId) -> Option<u32> {
        self.threads.get(&stack).copied()
    }

    /// How many stacks have no native function since too many waited for their files.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    /// A function by its number.
    pub fn function(&self, number: u32) -> Option<&Function> {
        self.functions.get(number as usize)
    }

    fn take(&mut self, what: Waiting, files: &mut Files, process: Option<Pid>) {
        if self.try_now(&what, files) {
            return;
        }
        let now = Instant::now();
        if process.is_some() && self.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK_AGAIN) {
            self.looked = Some(now);
            self.look(files, process);
            if self.try_now(&what, files) {
                return;
            }
        }
        if self.waiting.len() < MOST_WAITING {
            self.waiting.push(what);
        } else {
            self.given_up += 1;
        }
    }

    fn look(&mut self, files: &mut Files, process: Option<Pid>) {
        if let Some(modules) = process.and_then(|pid| files.live(pid)) {
            self.set_modules(modules);
        }
    }

    fn set_modules(&mut self, modules: Vec<Module>) {
        (self.unwinder, self.cache) = Default::default();
        for module in modules.iter().filter(|module| module.file.tells_frames()) {
            let (range, tables) = (module.start..module.end, module.file.unwind_tables());
            self.unwinder.add_module(UnwindModule::new(module.file.name.clone(), range, module.bias, tables));
        }
        self.modules = modules;
    }

    /// False: code that no known file has is on the way.
    fn try_now(&mut self, what: &Waiting, files: &Files) -> bool {
        match what {
            Waiting::Thread { stack, start } => {
                let Some(module) = self.module_of(*start) else { return false };
                let name = files.function_at(module, *start);
                let function = Function {
                    function: name.unwrap_or_else(|| offset_in(module, *start)),
                    module: module.file.name.clone(),
                };
                let number = self.number_of(function);
                self.threads.insert(*stack, number);
            }
            Waiting::Call(snapshot) => {
                let (frames, known) = self.frames(snapshot);
                let function = choose(&frames, files);
                // The code that asked is near: the rest of the way matters only where nothing has been found.
                let Some(function) = function.filter(|(_, sure)| *sure || known).map(|(function, _)| function) else {
                    return known;
                };
                let number = self.number_of(function);
                self.calls.insert(snapshot.stack, number);
            }
        }
        true
    }

    fn number_of(&mut self, function: Function) -> u32 {
        let next = u32::try_from(self.functions.len()).unwrap_or(u32::MAX);
        *self.numbers.entry(function).or_insert_with_key(|function| {
            self.functions.push(function.clone());
            next
        })
    }

    fn module_of(&self, address: u64) -> Option<&Module> {
        self.modules.iter().find(|module| (module.start..module.end).contains(&address))
    }

    /// The frames from the caller on, as addresses to be looked up. False: they ended at code of no known file.
    fn frames(&mut self, snapshot: &Snapshot) -> (Vec<(u64, Module)>, bool) {
        let mut read = |address: u64| -> Result<u64, ()> {
            let at = usize::try_from(address.wrapping_sub(snapshot.stack_pointer)).map_err(|_| ())?;
            let word = at.checked_add(8).and_then(|end| snapshot.bytes.get(at..end)).ok_or(())?;
            word.try_into().map(u64::from_ne_bytes).map_err(|_| ())
        };
        let first = snapshot.instruction;
        let mut address = if snapshot.returns { FrameAddress::from_return_address(first) } else { None }
            .unwrap_or_else(|| FrameAddress::from_instruction_pointer(first));
        let mut registers = registers(first, snapshot);
        let mut frames = Vec::new();
        while frames.len() < MOST_FRAMES {
            let at = address.address_for_lookup();
            let Some(module) = self.module_of(at) else { return (frames, false) };
            let module = module.clone();
            let goes_on = module.file.tells_frames();
            frames.push((at, module));
            // Where a file does not tell, what comes next would be a guess.
            if !goes_on {
                break;
            }
            match self.unwinder.unwind_frame(address, &mut registers, &mut self.cache, &mut read) {
                Ok(Some(next)) => match FrameAddress::from_return_address(next) {
                    Some(next) => address = next,
                    None => break,
                },
                _ => break,
            }
        }
        (frames, true)
    }
}

/// x86-64: instruction, stack and frame pointer; arm64: link register, stack and frame pointer.
fn registers(instruction: u64, snapshot: &Snapshot) -> UnwindRegsNative {
    UnwindRegsNative::new(instruction, snapshot.stack_pointer, snapshot.frame_pointer)
}

/// The function to name: the first that is neither an allocator's nor the C library's. True: more frames would not change it.
fn choose(frames: &[(u64, Module)], files: &Files) -> Option<(Function, bool)> {
    let mut handed_on = None;
    for (index, (address, module)) in frames.iter().enumerate() {
        if module.file.name == tally::FILE {
            continue;
        }
        let name = files.function_at(module, *address);
        let of = |function: String| Function { function, module: module.file.name.clone() };
        match name {
            Some(name) if is_wrapper(&name) || is_library(&module.file.name) => {
                handed_on = Some(of(name)); // where the stack is read no further, the outermost says most
            }
            None if is_library(&module.file.name) => {}
            Some(name) => return Some((of(name), true)),
            None => {
                // Stripped: the nearest caller in the same file that has a name says where it was.
                let callers = frames[index + 1..].iter();
                let same_file = callers.take_while(|(_, other)| std::rc::Rc::ptr_eq(&other.file, &module.file));
                let mut named = same_file.filter_map(|(address, caller)| files.function_at(caller, *address));
                let caller = named.next();
                let sure = caller.is_some();
                let text = caller.map_or_else(|| offset_in(module, *address), |name| format!("(in {name})"));
                return Some((of(text), sure));
            }
        }
    }
    handed_on.map(|function| (function, false))
}

fn offset_in(module: &Module, address: u64) -> String {
    format!("{}+{:#x}", module.file.name, address.wrapping_sub(module.bias))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_find_no_room_to_wait_are_counted() {
        let (mut natives, mut files) = (Natives::default(), Files::default());
        for number in 0..MOST_WAITING as u64 + 2 {
            natives.thread(StackId(number), 0x1000, &mut files, None);
        }
        assert_eq!(natives.given_up(), 2);
    }
}
