//! Programs by chance, whose every line's bytes are known beforehand: asked for, given back, callees included and without.
//!
//! `make`, `classes`, `shapes` and `statements` make an abstract program of a seed; `write` writes it as Python; `run` and `evaluate` execute it
//! by CPython's rules (`rules`, `world`). A bare interpreter's own word (`witness.py`) checks these rules, to the byte, and the
//! profiler is checked against them (`check`). RMPROF_GENERATED=200 makes it 200 programs, RMPROF_SEED=7 the one of that seed,
//! RMPROF_MINORS=6,15 takes those Pythons alone, as in every live test, RMPROF_KEEP=DIR writes the programs there. A failure names the seed.

mod chance;
mod check;
mod classes;
mod evaluate;
mod make;
mod program;
mod rules;
mod run;
mod shapes;
mod statements;
mod world;
mod write;
