//! `cargo xtask verifier`: each program is loaded alone, and the kernel asked how many instructions its verifier walked through. The
//! stack is counted in the object, since newer kernels allow more.

mod stack;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libbpf_rs::{Object, ObjectBuilder, PrintLevel};
use rmprof_probes::abi;
use serde::Serialize;
use stack::Stack;

/// The most instructions that may be walked through for one program: a twentieth of where kernels give up
/// (BPF_COMPLEXITY_LIMIT_INSNS in include/linux/bpf.h), since some walk through many more than others.
const BUDGET: u32 = 50_000;

/// What was typed after `cargo xtask verifier`.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Only the stack of each program, with the calls that take most: of the probes, or of these objects; without root
    #[arg(long, value_name = "OBJECT", num_args = 0.., conflicts_with = "json")]
    stack: Option<Vec<PathBuf>>,
}

/// One program.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    stack: Stack,
    /// Absent: this kernel did not load it.
    loaded: Option<Loaded>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

#[derive(Debug, Serialize)]
struct Loaded {
    verified_instructions: u32,
    milliseconds: f64,
}

/// Loads every program of the probes and prints what it cost.
///
/// # Errors
/// No rights, a program over a budget, or none that could be loaded.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(objects) = &arguments.stack {
        return print_stacks(objects);
    }
    // What libbpf has to say of kernels without some kind of program is in the error too.
    libbpf_rs::set_print(Some((PrintLevel::Warn, |_, _| {})));
    let mut rows = Vec::new();
    for stack in stack::of(rmprof_probes::OBJECT)? {
        rows.push(measure(stack)?);
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(&rows);
    }
    let loaded = || rows.iter().filter_map(|row| Some((&row.name, row.loaded.as_ref()?)));
    if let Some((name, found)) = loaded().find(|(_, loaded)| loaded.verified_instructions > BUDGET) {
        bail!("{name}: {} instructions, over the budget of {BUDGET}", found.verified_instructions);
    }
    for stack in rows.iter().map(|row| &row.stack).chain(&stack::of(rmprof_probes::SINGLE_OBJECT)?) {
        ensure!(!stack.is_over(), "{}: {stack}", stack.program);
    }
    ensure!(loaded().next().is_some(), "no program could be loaded\nhint: run as root");
    Ok(())
}

/// Without loading anything.
fn print_stacks(objects: &[PathBuf]) -> Result<()> {
    let mut stacks = Vec::new();
    if objects.is_empty() {
        for object in [rmprof_probes::OBJECT, rmprof_probes::SINGLE_OBJECT] {
            stacks.extend(stack::of(object)?);
        }
    }
    for object in objects {
        let read = || stack::of(&fs::read(object)?);
        stacks.extend(read().with_context(|| object.display().to_string())?);
    }
    for stack in &stacks {
        println!("{:<24} {stack}", stack.program);
    }
    let over = stacks.iter().filter(|stack| stack.is_over()).count();
    ensure!(over == 0, "{over} programs are over the budget of the stack");
    Ok(())
}

fn measure(stack: Stack) -> Result<Row> {
    let name = stack.program.clone();
    let begin = Instant::now();
    match load(&name) {
        Ok((object, load_time)) => {
            let instructions = verified(&object, &name)
                .with_context(|| format!("{name} is loaded, and the kernel does not describe it"))?;
            let milliseconds = load_time.as_secs_f64() * 1e3;
            Ok(Row {
                name,
                stack,
                loaded: Some(Loaded { verified_instructions: instructions, milliseconds }),
                refused: None,
            })
        }
        Err(error) => {
            let text = format!("{error} (after {:.0} ms)", begin.elapsed().as_secs_f64() * 1e3);
            Ok(Row { name, stack, loaded: None, refused: Some(text) })
        }
    }
}

fn load(name: &str) -> libbpf_rs::Result<(Object, Duration)> {
    let mut open = ObjectBuilder::default().open_memory(rmprof_probes::OBJECT)?;
    for mut program in open.progs_mut() {
        let wanted = program.name() == name;
        program.set_autoload(wanted);
    }
    let constants = everything();
    for mut map in open.maps_mut() {
        // Large tables take time to make, which is not the verifier's.
        if map.name() == "blocks" {
            map.set_max_entries(1)?;
        } else if map.name().to_string_lossy().ends_with(".rodata")
            && let Some(value) = map.initial_value_mut()
            && let Some(value) = value.get_mut(..constants.bytes().len())
        {
            value.copy_from_slice(constants.bytes());
        }
    }
    let begin = Instant::now();
    let object = open.load()?;
    Ok((object, begin.elapsed()))
}

/// All that may be wanted at once, so that nothing is left out.
fn everything() -> abi::rm_constants {
    let mut alarm_bytes = [0; abi::RM_ALARMS as usize];
    alarm_bytes.fill(1 << 30);
    abi::rm_constants { cpus: 1, flags: !0, counter_batch: 32, alarm_bytes, alarms_of_growth: 2, alarms_of_total: 4 }
}

/// What the kernel says of a program that was loaded (`bpf_prog_info.verified_insns`, Linux 5.16).
fn verified(object: &Object, name: &str) -> Result<u32> {
    let program = object.progs().find(|program| program.name() == name).context("it is not in the object")?;
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut bytes = u32::try_from(size_of_val(&info))?;
    // SAFETY: the descriptor is open, and the kernel writes at most `bytes` bytes to a struct that asks for no arrays.
    let result =
        unsafe { libbpf_sys::bpf_prog_get_info_by_fd(program.as_fd().as_raw_fd(), &raw mut info, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result).into());
    }
    Ok(info.verified_insns)
}

fn print(rows: &[Row]) {
    println!("{:<24} {:>12} {:>10} {:>6}", "program", "instructions", "load ms", "stack");
    println!("{:<24} {BUDGET:>12} {:>10} {:>6}", "budget", "", stack::BUDGET);
    for row in rows {
        let bytes = row.stack.bytes;
        match (&row.loaded, &row.refused) {
            (Some(Loaded { verified_instructions, milliseconds }), _) => {
                println!("{:<24} {verified_instructions:>12} {milliseconds:>10.1} {bytes:>6}", row.name);
            }
            (None, refused) => {
                let refused = refused.as_deref().unwrap_or_default();
                println!("{:<24} {:>12} {:>10} {bytes:>6} not loaded: {refused}", row.name, "", "");
            }
        }
        if row.stack.is_over() {
            println!("    {}", row.stack);
        }
    }
    let total: u32 = rows.iter().filter_map(|row| Some(row.loaded.as_ref()?.verified_instructions)).sum();
    println!("{:<24} {total:>12}", "together");
}
