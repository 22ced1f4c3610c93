//! The functions of an object, and which calls which.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SectionKind, SymbolKind};

use super::frame::deepest;
use super::instruction::{CALL, Instruction, LOAD_WIDE, OF_OBJECT, SIZE};

/// Where libbpf and aya look for what programs call; a function of any other section is a program.
const CALLED: &str = ".text";

#[derive(Debug)]
pub struct Function {
    pub name: String,
    pub is_program: bool,
    pub stack: u32,
    /// As places in the list. A callback is called by the function that has its address: so the verifier sees it.
    pub calls: Vec<usize>,
}

/// Where a function begins: its section and its first byte there.
type Place = (SectionIndex, u64);
/// What the linker is asked to put where. None: a symbol of the kernel's, which the object has not.
type Aims = HashMap<u64, Option<Place>>;

/// The functions of a compiled object.
///
/// # Errors
/// It is no such object, or a call leads to where no function begins.
pub fn read(object: &[u8]) -> Result<Vec<Function>> {
    let file = object::File::parse(object)?;
    let mut sections = HashMap::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let aims = section.relocations().filter_map(|(at, relocation)| match relocation.target() {
            RelocationTarget::Symbol(symbol) => Some((at, file.symbol_by_index(symbol).ok()?)),
            _ => None,
        });
        let aims: Aims =
            aims.map(|(at, symbol)| (at, symbol.section_index().map(|section| (section, symbol.address())))).collect();
        sections.insert(section.index(), (section.name()?, section.data()?, aims));
    }
    let mut found = Vec::new();
    let mut places = HashMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let Some(index) = symbol.section_index() else { continue };
        let Some((section, data, aims)) = sections.get(&index) else { continue };
        let name = symbol.name()?.to_owned();
        let begin = usize::try_from(symbol.address())?;
        let code = data.get(begin..begin + usize::try_from(symbol.size())?);
        let code = Instruction::all(code.with_context(|| format!("{name} is longer than its section"))?);
        let is_text = |section| sections.contains_key(&section);
        let called = called(&code, (index, symbol.address()), aims, is_text);
        places.insert((index, symbol.address()), found.len());
        found.push((Function { name, is_program: *section != CALLED, stack: deepest(&code), calls: vec![] }, called));
    }
    let functions = found.into_iter().map(|(mut function, called)| {
        for place in called {
            let Some(place) = places.get(&place) else { bail!("{}: a call to {place:?}, no function", function.name) };
            function.calls.push(*place);
        }
        Ok(function)
    });
    functions.collect()
}

/// Where the code's calls lead, and the addresses of functions that it takes. As libbpf resolves them (`bpf_object__reloc_code` in
/// its libbpf.c).
fn called(
    code: &[Instruction],
    (section, begin): Place,
    aims: &Aims,
    is_text: impl Fn(SectionIndex) -> bool,
) -> Vec<Place> {
    let mut found = Vec::new();
    for (at, instruction) in (begin..).step_by(SIZE).zip(code) {
        let is_aimed = aims.contains_key(&at);
        let aim = aims.get(&at).copied().flatten().filter(|(section, _)| is_text(*section));
        let forward = i64::from(instruction.immediate);
        let place = match (instruction.code, aim) {
            (CALL, Some((section, symbol))) => (section, symbol.wrapping_add_signed((forward + 1) * SIZE as i64)),
            // Within a section the compiler itself may know where.
            (CALL, None) if instruction.source == OF_OBJECT && !is_aimed => {
                (section, at.wrapping_add_signed((forward + 1) * SIZE as i64))
            }
            (LOAD_WIDE, Some((section, symbol))) => (section, symbol.wrapping_add_signed(forward)),
            _ => continue,
        };
        if !found.contains(&place) {
            found.push(place);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: SectionIndex = SectionIndex(2);
    const PROGRAMS: SectionIndex = SectionIndex(3);
    const DATA: SectionIndex = SectionIndex(4);

    fn one(code: u8, source: u8, immediate: i32) -> Instruction {
        Instruction { code, target: 0, source, offset: 0, immediate }
    }

    fn places(code: &[Instruction], aims: &[(u64, Place)]) -> Vec<Place> {
        let aims = aims.iter().map(|(at, place)| (*at, Some(*place))).collect();
        called(code, (PROGRAMS, 80), &aims, |section| section != DATA)
    }

    #[test]
    fn a_call_by_its_section_says_how_far_in_its_immediate() {
        assert_eq!(places(&[one(CALL, OF_OBJECT, 4)], &[(80, (TEXT, 0))]), [(TEXT, 40)]);
    }

    #[test]
    fn a_call_by_its_symbol_leads_there() {
        assert_eq!(places(&[one(CALL, OF_OBJECT, -1)], &[(80, (TEXT, 240))]), [(TEXT, 240)]);
    }

    #[test]
    fn a_call_without_a_relocation_counts_from_behind_itself() {
        assert_eq!(places(&[one(0, 0, 0), one(CALL, OF_OBJECT, -6)], &[]), [(PROGRAMS, 48)]);
    }

    #[test]
    fn a_callback_is_called_and_data_is_not() {
        let code = [one(LOAD_WIDE, 0, 64), one(0, 0, 0), one(LOAD_WIDE, 0, 16), one(0, 0, 0)];
        assert_eq!(places(&code, &[(80, (TEXT, 0)), (96, (DATA, 0))]), [(TEXT, 64)]);
    }

    #[test]
    fn a_function_of_the_kernel_is_not_of_the_object() {
        let aims = Aims::from([(80, None)]);
        assert_eq!(called(&[one(CALL, OF_OBJECT, -1)], (PROGRAMS, 80), &aims, |_| true), []);
    }

    #[test]
    fn helpers_are_not_of_the_object_and_a_function_counts_once() {
        let code = [one(CALL, 0, 181), one(CALL, OF_OBJECT, -1), one(CALL, OF_OBJECT, -1)];
        assert_eq!(places(&code, &[(88, (TEXT, 8)), (96, (TEXT, 8))]), [(TEXT, 8)]);
    }
}
