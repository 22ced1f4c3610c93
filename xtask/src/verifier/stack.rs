//! The stack that a program and all it calls take together. Kernels before 6.13 refuse more than a limit; newer ones give some kinds of
//! programs a stack of their own and would not tell us. So it is counted here, in the object, as check_max_stack_depth in
//! kernel/bpf/verifier.c does: each function's part is rounded up, and a callback of `bpf_loop` is called like any other. It is never less
//! than the kernel's own count, which leaves out ways that a constant rules out; what the kernel's log says may be 24 bytes more for a
//! function with `bpf_loop`, which it makes part of the function once the stack is checked.

mod frame;
mod functions;
mod instruction;

use std::fmt;

use anyhow::{Result, bail};
use functions::Function;
use serde::Serialize;

/// The most bytes of a chain of calls (MAX_BPF_STACK in include/linux/filter.h).
pub const BUDGET: u32 = 512;
/// To what a function's part is rounded up: 6.12 with a JIT compiler rounds to 16, older kernels to 32.
const ROUNDED_TO: u32 = 32;
/// The most functions of a chain (MAX_CALL_FRAMES in include/linux/bpf_verifier.h).
const MOST_CALLS: u32 = 8;

/// What one program takes.
#[derive(Debug, Serialize)]
pub struct Stack {
    pub program: String,
    pub bytes: u32,
    /// The calls that take most.
    deepest: Vec<Link>,
    /// As many functions as are in calls of each other.
    calls: u32,
}

#[derive(Debug, Serialize)]
struct Link {
    function: String,
    bytes: u32,
}

impl Stack {
    pub const fn is_over(&self) -> bool {
        self.bytes > BUDGET || self.calls > MOST_CALLS
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {BUDGET} bytes of stack, {} of {MOST_CALLS} calls: ", self.bytes, self.calls)?;
        for (place, Link { function, bytes }) in self.deepest.iter().enumerate() {
            write!(f, "{}{function} {bytes}", if place == 0 { "" } else { " > " })?;
        }
        Ok(())
    }
}

/// The stack of each program of an object, in its order.
///
/// # Errors
/// It is no object of BPF programs, or a function calls itself.
pub fn of(object: &[u8]) -> Result<Vec<Stack>> {
    of_functions(&functions::read(object)?)
}

fn of_functions(functions: &[Function]) -> Result<Vec<Stack>> {
    let bytes = longest(functions, |function| function.stack.max(1).next_multiple_of(ROUNDED_TO))?;
    let calls = longest(functions, |_| 1)?;
    let programs = functions.iter().enumerate().filter(|(_, function)| function.is_program);
    let stacks = programs.map(|(place, program)| {
        let chain = std::iter::successors(Some(place), |place| bytes[*place].next).map(|place| &functions[place]);
        Stack {
            program: program.name.clone(),
            bytes: bytes[place].total,
            deepest: chain.map(|link| Link { function: link.name.clone(), bytes: link.stack }).collect(),
            calls: calls[place].total,
        }
    });
    Ok(stacks.collect())
}

/// Of the ways on from a function, the one that weighs most.
#[derive(Clone, Copy)]
struct Way {
    total: u32,
    next: Option<usize>,
}

enum Seen {
    Not,
    /// Its calls are being looked at.
    Open,
    Done(Way),
}

/// For each function the calls that weigh most together.
fn longest(functions: &[Function], weight: impl Fn(&Function) -> u32) -> Result<Vec<Way>> {
    let mut seen: Vec<Seen> = functions.iter().map(|_| Seen::Not).collect();
    (0..functions.len()).map(|place| longest_from(place, functions, &weight, &mut seen)).collect()
}

fn longest_from(
    place: usize,
    functions: &[Function],
    weight: &impl Fn(&Function) -> u32,
    seen: &mut [Seen],
) -> Result<Way> {
    let function = &functions[place];
    match seen[place] {
        Seen::Done(way) => return Ok(way),
        Seen::Open => bail!("{} calls itself, which no kernel lets it", function.name),
        Seen::Not => seen[place] = Seen::Open,
    }
    let mut best = Way { total: 0, next: None };
    for &called in &function.calls {
        let way = longest_from(called, functions, weight, seen)?;
        if way.total > best.total {
            best = Way { total: way.total, next: Some(called) };
        }
    }
    best.total += weight(function);
    seen[place] = Seen::Done(best);
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str, stack: u32, calls: &[usize]) -> Function {
        Function { name: name.to_owned(), is_program: name.starts_with("program"), stack, calls: calls.to_vec() }
    }

    #[test]
    fn every_program_keeps_within_the_stack_of_kernels_without_private_ones() {
        for object in [rmprof_probes::OBJECT, rmprof_probes::SINGLE_OBJECT] {
            let stacks = of(object).unwrap();
            assert!(stacks.iter().any(|stack| stack.calls > 2), "no program calls anything: {stacks:?}");
            let over: Vec<_> = stacks.iter().filter(|stack| stack.is_over()).map(ToString::to_string).collect();
            assert!(over.is_empty(), "{}", over.join("\n"));
        }
    }

    #[test]
    fn each_function_of_the_deepest_chain_is_rounded_up() {
        let functions = [
            function("program", 33, &[1, 2]),
            function("shallow", 0, &[3]),
            function("deep", 100, &[]),
            function("leaf", 8, &[]),
        ];
        let [stack] = &of_functions(&functions).unwrap()[..] else { panic!("one program") };
        assert_eq!((stack.bytes, stack.calls), (64 + 128, 3));
        assert_eq!(stack.to_string(), "192 of 512 bytes of stack, 3 of 8 calls: program 33 > deep 100");
    }

    #[test]
    fn nothing_of_its_own_takes_the_least_part() {
        assert_eq!(of_functions(&[function("program", 0, &[])]).unwrap()[0].bytes, 32);
    }

    #[test]
    fn over_is_what_takes_more_than_there_is_or_calls_deeper() {
        let exact = of_functions(&[function("program", 256, &[1]), function("leaf", 256, &[])]).unwrap();
        assert!(!exact[0].is_over());
        let more = of_functions(&[function("program", 257, &[1]), function("leaf", 256, &[])]).unwrap();
        assert!(more[0].is_over());
        let chain = |functions: usize| -> Vec<Function> {
            let calls = |place| if place + 1 < functions { vec![place + 1] } else { vec![] };
            (0..functions).map(|place| function(if place == 0 { "program" } else { "f" }, 0, &calls(place))).collect()
        };
        assert!(!of_functions(&chain(8)).unwrap()[0].is_over());
        assert!(of_functions(&chain(9)).unwrap()[0].is_over());
    }

    #[test]
    fn what_calls_itself_is_an_error() {
        let error = of_functions(&[function("program", 0, &[1]), function("f", 0, &[1])]).unwrap_err();
        assert_eq!(error.to_string(), "f calls itself, which no kernel lets it");
    }
}
