//! The opcodes by which the clean-up of a `with` block is told, and those that lead elsewhere than to the next instruction, out of the
//! headers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// How the compilers of some minors write the clean-up (Python/compile.c, compiler_with and compiler_call_exit_with_nones).
struct CleanUp {
    minors: std::ops::RangeInclusive<u32>,
    /// What may load the first `None`; the first name is the compiler's, the others the interpreter's.
    load: &'static [&'static str],
    /// What may load the second and the third.
    again: &'static [&'static str],
    /// The call, and with an underscore after it what the interpreter makes of it.
    call: &'static str,
    argument: u8,
    raised: &'static str,
    /// Opcode and argument.
    before: &'static [(&'static str, u8)],
    line: Option<&'static str>,
}

const CLEAN_UPS: &[CleanUp] = &[
    CleanUp {
        minors: 9..=10,
        load: &["LOAD_CONST"],
        again: &["DUP_TOP"],
        call: "CALL_FUNCTION",
        argument: 3,
        raised: "WITH_EXCEPT_START",
        before: &[("POP_BLOCK", 0), ("ROT_TWO", 0)],
        line: None,
    },
    CleanUp {
        minors: 11..=11,
        load: &["LOAD_CONST"],
        again: &["LOAD_CONST"],
        call: "PRECALL",
        argument: 2,
        raised: "WITH_EXCEPT_START",
        before: &[("PUSH_EXC_INFO", 0), ("SWAP", 2)],
        line: None,
    },
    CleanUp {
        minors: 12..=13,
        load: &["LOAD_CONST"],
        again: &["LOAD_CONST"],
        call: "CALL",
        argument: 2,
        raised: "WITH_EXCEPT_START",
        before: &[("PUSH_EXC_INFO", 0), ("SWAP", 2)],
        line: Some("INSTRUMENTED_LINE"),
    },
    CleanUp {
        minors: 14..=14,
        load: &["LOAD_CONST", "LOAD_CONST_IMMORTAL"],
        again: &["LOAD_CONST", "LOAD_CONST_IMMORTAL"],
        call: "CALL",
        argument: 3,
        raised: "WITH_EXCEPT_START",
        before: &[("PUSH_EXC_INFO", 0), ("SWAP", 3), ("SWAP", 2)],
        line: Some("INSTRUMENTED_LINE"),
    },
    CleanUp {
        minors: 15..=15,
        load: &["LOAD_COMMON_CONSTANT"],
        again: &["LOAD_COMMON_CONSTANT"],
        call: "CALL",
        argument: 3,
        raised: "WITH_EXCEPT_START",
        before: &[("PUSH_EXC_INFO", 0), ("SWAP", 3), ("SWAP", 2)],
        line: Some("INSTRUMENTED_LINE"),
    },
];

/// Begin like the call and are others, with what the interpreter makes of them: different numbers on the stack.
const NOT_THE_CALL: &[&str] = &["CALL_FUNCTION_EX", "CALL_FUNCTION_KW", "CALL_INTRINSIC", "CALL_KW", "CALL_EX"];

/// `clean_up` of a minor's layout; null where the clean-up is on no line of its own.
///
/// # Errors
/// Headers that lack one of the opcodes.
pub fn clean_up(minor: u32, include: &Path) -> Result<Value> {
    let Some(known) = CLEAN_UPS.iter().find(|known| known.minors.contains(&minor)) else { return Ok(Value::Null) };
    let opcodes = read(include)?;
    let number = |name: &str| opcodes.get(name).copied().with_context(|| format!("the headers have no opcode {name}"));
    let instrumented = format!("INSTRUMENTED_{}", known.call);
    let is_of = |name: &str, family: &str| {
        name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    let is_call = |name: &str| {
        name == instrumented || is_of(name, known.call) && !NOT_THE_CALL.iter().any(|other| is_of(name, other))
    };
    let mut calls: Vec<u8> = opcodes.iter().filter(|(name, _)| is_call(name)).map(|(_, number)| *number).collect();
    calls.sort_unstable();
    let numbers = |names: &[&str]| names.iter().map(|name| number(name)).collect::<Result<Vec<_>>>();
    let before =
        known.before.iter().map(|(name, argument)| Ok((number(name)?, *argument))).collect::<Result<Vec<_>>>()?;
    Ok(json!({
        "load": numbers(known.load)?,
        "again": numbers(known.again)?,
        "calls": calls,
        "argument": known.argument,
        "raised": number(known.raised)?,
        "before": before,
        "line": known.line.map(number).transpose()?,
    }))
}

/// The opcodes that jump, in some minors (Lib/opcode.py, hasjrel and hasjabs; Python/compile.c for those that do not go on).
struct Flow {
    minors: std::ops::RangeInclusive<u32>,
    argument_bytes: u8,
    forward: &'static [&'static str],
    backward: &'static [&'static str],
    absolute: &'static [&'static str],
    ends: &'static [&'static str],
    awaits: &'static [&'static str],
}

const ABSOLUTE: &[&str] =
    &["JUMP_ABSOLUTE", "POP_JUMP_IF_FALSE", "POP_JUMP_IF_TRUE", "JUMP_IF_FALSE_OR_POP", "JUMP_IF_TRUE_OR_POP"];
const ABSOLUTE_SINCE_3_9: &[&str] = &[
    "JUMP_ABSOLUTE",
    "POP_JUMP_IF_FALSE",
    "POP_JUMP_IF_TRUE",
    "JUMP_IF_FALSE_OR_POP",
    "JUMP_IF_TRUE_OR_POP",
    "JUMP_IF_NOT_EXC_MATCH",
];
const SET_UP: &[&str] = &["JUMP_FORWARD", "FOR_ITER", "SETUP_FINALLY", "SETUP_WITH", "SETUP_ASYNC_WITH"];
const ENDS: &[&str] = &["JUMP_FORWARD", "JUMP_ABSOLUTE", "RETURN_VALUE", "RAISE_VARARGS", "RERAISE"];
/// And RETURN_CONST, while there was one (3.12, 3.13).
const ENDS_SINCE_3_11: &[&str] =
    &["JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "RETURN_VALUE", "RAISE_VARARGS", "RERAISE"];
const FORWARD: &[&str] = &[
    "JUMP_FORWARD",
    "FOR_ITER",
    "SEND",
    "POP_JUMP_IF_FALSE",
    "POP_JUMP_IF_TRUE",
    "POP_JUMP_IF_NONE",
    "POP_JUMP_IF_NOT_NONE",
];
const BACKWARD: &[&str] = &["JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"];
const AWAITS: &[&str] = &["JUMP_BACKWARD_NO_INTERRUPT"];

const FLOWS: &[Flow] = &[
    Flow {
        minors: 8..=8,
        argument_bytes: 1,
        forward: &["JUMP_FORWARD", "FOR_ITER", "SETUP_FINALLY", "SETUP_WITH", "SETUP_ASYNC_WITH", "CALL_FINALLY"],
        backward: &[],
        absolute: ABSOLUTE,
        ends: &["JUMP_FORWARD", "JUMP_ABSOLUTE", "RETURN_VALUE", "RAISE_VARARGS"],
        awaits: &[],
    },
    Flow {
        minors: 9..=9,
        argument_bytes: 1,
        forward: SET_UP,
        backward: &[],
        absolute: ABSOLUTE_SINCE_3_9,
        ends: ENDS,
        awaits: &[],
    },
    Flow {
        minors: 10..=10,
        argument_bytes: 2,
        forward: SET_UP,
        backward: &[],
        absolute: ABSOLUTE_SINCE_3_9,
        ends: ENDS,
        awaits: &[],
    },
    Flow {
        minors: 11..=11,
        argument_bytes: 2,
        forward: &[
            "JUMP_FORWARD",
            "FOR_ITER",
            "SEND",
            "POP_JUMP_FORWARD_IF_FALSE",
            "POP_JUMP_FORWARD_IF_TRUE",
            "POP_JUMP_FORWARD_IF_NONE",
            "POP_JUMP_FORWARD_IF_NOT_NONE",
            "JUMP_IF_FALSE_OR_POP",
            "JUMP_IF_TRUE_OR_POP",
        ],
        backward: &[
            "JUMP_BACKWARD",
            "JUMP_BACKWARD_NO_INTERRUPT",
            "POP_JUMP_BACKWARD_IF_FALSE",
            "POP_JUMP_BACKWARD_IF_TRUE",
            "POP_JUMP_BACKWARD_IF_NONE",
            "POP_JUMP_BACKWARD_IF_NOT_NONE",
        ],
        absolute: &[],
        ends: ENDS_SINCE_3_11,
        awaits: AWAITS,
    },
    Flow {
        minors: 12..=13,
        argument_bytes: 2,
        forward: FORWARD,
        backward: BACKWARD,
        absolute: &[],
        ends: &[
            "JUMP_FORWARD",
            "JUMP_BACKWARD",
            "JUMP_BACKWARD_NO_INTERRUPT",
            "RETURN_VALUE",
            "RETURN_CONST",
            "RAISE_VARARGS",
            "RERAISE",
        ],
        awaits: AWAITS,
    },
    Flow {
        minors: 14..=15,
        argument_bytes: 2,
        forward: FORWARD,
        backward: BACKWARD,
        absolute: &[],
        ends: ENDS_SINCE_3_11,
        awaits: AWAITS,
    },
];

/// `flow` of a minor's layout; null where a line event is an execution as it is (3.6, 3.7).
///
/// # Errors
/// Headers that lack one of the opcodes.
pub fn flow(minor: u32, include: &Path) -> Result<Value> {
    let Some(known) = FLOWS.iter().find(|known| known.minors.contains(&minor)) else { return Ok(Value::Null) };
    let opcodes = read(include)?;
    let number = |name: &str| opcodes.get(name).copied().with_context(|| format!("the headers have no opcode {name}"));
    let numbers = |names: &[&str]| names.iter().map(|name| number(name)).collect::<Result<Vec<_>>>();
    Ok(json!({
        "argument_bytes": known.argument_bytes,
        "cache": opcodes.get("CACHE"),
        "extended": number("EXTENDED_ARG")?,
        "forward": numbers(known.forward)?,
        "backward": numbers(known.backward)?,
        "absolute": numbers(known.absolute)?,
        "ends": numbers(known.ends)?,
        "awaits": numbers(known.awaits)?,
    }))
}

/// Every opcode by name: `#define NAME NUMBER` in opcode.h, from 3.13 on in opcode_ids.h.
fn read(include: &Path) -> Result<BTreeMap<String, u8>> {
    let newer = include.join("opcode_ids.h");
    let file = if newer.is_file() { newer } else { include.join("opcode.h") };
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("#define ")?.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        })
        .collect())
}
