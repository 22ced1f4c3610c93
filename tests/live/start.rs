//! The ways to start a Python program.

use std::os::unix::fs::{PermissionsExt, symlink};

use crate::common::{Python, Report, Run, any_python, near_blocks, root, script, supported_pythons};

/// One marked line of a known size; then it shows its arguments and ends with 5.
const PROGRAM: &str = "
import sys

@profile
def grow():
    kept = bytearray(3_000_000)  # here
    return kept

grow()
print(sys.argv[1:])
sys.exit(5)
";
const SIZE: i64 = 3_000_001;

/// Asserts that the one process's marked line has its bytes.
#[track_caller]
fn check(report: &Report, line: u32) {
    let process = report.only();
    assert_eq!(process.marked(), ["grow"]);
    near_blocks(process.line("grow", line).increment(), SIZE);
    report.check_complete();
}

#[test]
fn root_by_name_path_shebang_and_env() {
    if !root() {
        return;
    }
    let python = any_python().path;
    let program = script("grow.py", PROGRAM);
    let shebang = format!("#!{}\n{}", python.display(), program_text());
    let executable = program.beside("executable", &shebang);
    let through_env = program.beside("through-env", &shebang.replacen("#!", "#!/usr/bin/env ", 1));
    for file in [&executable, &through_env] {
        std::fs::set_permissions(file, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let here = program.line("# here");
    let python = python.to_str().unwrap();
    let arguments = ["one", "--output", "-x", ""];
    let ways: &[(&[&str], u32)] = &[
        (&[python, program.name()], here),
        (&["--", python, program.name()], here),
        (&["env", "A=B", python, program.name()], here),
        (&["nice", python, "-u", "-X", "utf8", program.name()], here),
        (&[executable.to_str().unwrap()], here + 1),
        (&[through_env.to_str().unwrap()], here + 1),
    ];
    for (way, line) in ways {
        let ran = Run::json().words(*way).words(arguments).run().expect(5).quiet();
        assert_eq!(ran.stdout_text(), "['one', '--output', '-x', '']\n", "{way:?}");
        check(&ran.report(), *line);
    }
}

fn program_text() -> &'static str {
    PROGRAM.trim_start_matches('\n')
}

#[test]
fn root_by_the_word_run() {
    if !root() {
        return;
    }
    let program = script("grow.py", PROGRAM);
    let python = any_python().path;
    for dashes in [&[][..], &["--"]] {
        let words = ["run", "--format", "json", "--output", "report.json"];
        let run = Run::new(words).words(dashes).word(&python).word("grow.py").directory(program.directory());
        run.run().expect(5).quiet();
        check(&Report::read(&std::fs::read(program.directory().join("report.json")).unwrap()), program.line("# here"));
    }
}

#[test]
fn root_by_a_shell_that_starts_it() {
    if !root() {
        return;
    }
    let program = script("grow.py", PROGRAM);
    let (python, name) = (any_python().path, program.name());
    let python = python.display();
    for command in
        [format!("exec {python} {name} a"), format!("{python} {name} a"), format!("true; {python} {name} a; exit $?")]
    {
        let ran = Run::json().words(["sh", "-c", &command]).run().expect(5).quiet();
        assert_eq!(ran.stdout_text(), "['a']\n", "{command}");
        check(&ran.report(), program.line("# here"));
    }
}

#[test]
fn root_by_name_on_path() {
    if !root() {
        return;
    }
    let program = script("grow.py", PROGRAM);
    symlink(any_python().path, program.directory().join("some-python")).unwrap();
    let path = format!("{}:/usr/bin:/bin", program.directory().display());
    let ran = Run::json()
        .words(["some-python", "grow.py"])
        .env("PATH", path)
        .directory(program.directory())
        .run()
        .expect(5)
        .quiet();
    check(&ran.report(), program.line("# here"));
}

#[test]
fn root_the_python_of_a_venv() {
    if !root() {
        return;
    }
    let program = script("grow.py", &PROGRAM.replace("sys.argv[1:]", "sys.prefix != sys.base_prefix"));
    for python in supported_pythons() {
        let environment = program.directory().join(format!("venv{}", python.version.0));
        python.bare(&["-m", "venv", "--without-pip", environment.to_str().unwrap()]);
        let ran = Run::json().word(environment.join("bin/python")).word(program.name()).run().expect(5).quiet();
        assert_eq!(ran.stdout_text(), "True\n", "{python:?}");
        check(&ran.report(), program.line("# here"));
    }
}

/// Links as `/etc/alternatives` and uv make them; scripts that stand before an interpreter, with `exec` and without.
#[test]
fn root_a_python_behind_links_and_behind_a_script() {
    if !root() {
        return;
    }
    let program = script("grow.py", PROGRAM);
    for (index, python) in supported_pythons().into_iter().enumerate() {
        let chain = ["first", "second", "python"].map(|name| program.directory().join(format!("{name}{index}")));
        symlink(&python.path, &chain[0]).unwrap();
        symlink(chain[0].file_name().unwrap(), &chain[1]).unwrap();
        symlink(&chain[1], &chain[2]).unwrap();
        let call = format!("'{}' \"$@\"", chain[2].display());
        let replaced = program.beside(&format!("replaced{index}"), &format!("#!/bin/sh\nexec {call}\n"));
        let waiting = program.beside(&format!("waiting{index}"), &format!("#!/bin/sh\n{call}\nexit $?\n"));
        for script in [&replaced, &waiting] {
            std::fs::set_permissions(script, PermissionsExt::from_mode(0o755)).unwrap();
        }
        for start in [&chain[2], &replaced, &waiting] {
            let ran = Run::json().words([start, &program.path]).word("-x").run().expect(5).quiet();
            assert_eq!(ran.stdout_text(), "['-x']\n");
            check(&ran.report(), program.line("# here"));
        }
    }
}

#[test]
fn root_as_a_module_and_as_a_command_text() {
    if !root() {
        return;
    }
    let program = script("grow.py", PROGRAM);
    for python in supported_pythons() {
        let run = || Run::json().word(&python.path).directory(program.directory());
        let ran = run().words(["-m", "grow", "-x"]).run().expect(5).quiet();
        assert_eq!(ran.stdout_text(), "['-x']\n");
        check(&ran.report(), program.line("# here"));
        let ran = run().words(["-c", program_text(), "y"]).run().expect(5).quiet();
        assert_eq!(ran.stdout_text(), "['y']\n");
        let report = ran.report();
        check(&report, program.line("# here"));
        let process = report.only();
        let line = process.line("grow", program.line("# here"));
        // The command line has the text.
        assert_eq!(line.source(), Some("    kept = bytearray(3_000_000)  # here"));
        let ran = run().word("-").input(PROGRAM).run().expect(5).quiet();
        assert_eq!(ran.report().only().marked(), ["grow"]);
    }
}

/// Without our start-up module there is no `profile`: the program must guard it, and is measured whole.
#[test]
fn root_isolated_pythons_are_profiled_whole_and_told_of() {
    if !root() {
        return;
    }
    let guarded = PROGRAM.replace(
        "import sys\n",
        "import sys\nprofile = __builtins__.__dict__.get('profile', lambda function: function)\n",
    );
    let program = script("grow.py", &guarded);
    for python in supported_pythons() {
        for option in ["-I", "-E", "-S"] {
            let ran = Run::json().word(&python.path).words([option, program.name(), "z"]).run().expect(5);
            assert_eq!(ran.stdout_text(), "['z']\n");
            let said = ran.stderr_text();
            assert!(said.contains("marks (@profile) are not available"), "{option} on {python:?}: {said:?}");
            assert_eq!(said.lines().count(), 1, "{said}");
            let report = ran.report();
            assert!(report.only().marked().is_empty());
            near_blocks(report.only().line("grow", program.line("# here")).increment(), SIZE);
        }
    }
}

/// A folder with `copy.py`, as in the first example, and a module that needs the real `copy`.
#[test]
fn root_a_script_called_copy_imports_the_standard_copy() {
    if !root() {
        return;
    }
    let program = script(
        "copy.py",
        "
import sys
if __name__ == '__main__':
    # The script's own folder is first on sys.path: leave it, as a program with this name has to.
    sys.path.pop(0)
    import copy
    assert copy.__file__ != __file__
    copy.copy([])  # 3.6 and 3.7 keep the frame of a function's first call, here one of more than 512 bytes

    @profile
    def grow():
        kept = copy.copy([bytearray(3_000_000)])  # here
        return kept
    grow()
else:
    raise SystemExit('the script was imported in place of the standard module')
",
    );
    for python in supported_pythons() {
        let ran = Run::json().words([&python.path, &program.path]).run().expect(0).quiet();
        check(&ran.report(), program.line("# here"));
    }
}

#[test]
fn root_memory_profiler_is_importable_without_being_installed() {
    if !root() {
        return;
    }
    let program =
        script("grow.py", &PROGRAM.replace("import sys\n", "import sys\nfrom memory_profiler import profile\n"));
    for python in supported_pythons() {
        let installed = is_installed(&python);
        let ran = Run::json().words([&python.path, &program.path]).run().expect(5).quiet();
        println!("{}: memory_profiler installed: {installed}", python.version_text());
        check(&ran.report(), program.line("# here"));
    }
}

fn is_installed(python: &Python) -> bool {
    python.bare(&["-c", "import importlib.util; print(importlib.util.find_spec('memory_profiler') is not None)"]).trim()
        == "True"
}

/// Marks come in the order of their definition, a function that never ran included.
#[test]
fn root_tables_stand_in_the_order_of_definition() {
    if !root() {
        return;
    }
    let program = script(
        "order.py",
        "
@profile
def third(): return bytearray(1_000)
@profile
def never():
    return 1
@profile
def first(): return bytearray(9_000_000)
first(); third()
",
    );
    let ran = Run::json().words([&any_python().path, &program.path]).run().expect(0).quiet();
    assert_eq!(ran.report().only().marked(), ["third", "never", "first"]);
    let text = Run::new([&any_python().path, &program.path]).run().expect(0).quiet().stdout_text();
    let shown: Vec<usize> = ["def third", "def first"].iter().map(|name| text.find(name).unwrap()).collect();
    assert!(shown.is_sorted(), "{text}");
    // What never ran has no table, as with memory_profiler.
    assert!(!text.contains("def never"), "{text}");
}

/// What is no Python runs as without us.
#[test]
fn root_a_program_without_a_python() {
    if !root() {
        return;
    }
    let ran = Run::json().words(["sh", "-c", "echo out; exit 7"]).run().expect(7);
    assert_eq!(ran.stdout_text(), "out\n");
    assert!(ran.report().processes().is_empty());
    assert!(ran.stderr_text().contains("Python"), "nothing says why the report is empty: {ran}");
}
