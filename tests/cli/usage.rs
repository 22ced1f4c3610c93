//! What was typed wrongly, and what cannot be started.

use crate::common::{Ran, Run, is_root, script, snapshot};

/// Any user but root; nobody's number on Debian and Ubuntu.
const NOBODY: u32 = 65534;

fn run(words: &[&str]) -> Ran {
    Run::new(words).run()
}

#[test]
fn help_is_on_standard_output_and_complete() {
    for word in ["--help", "-h", "help"] {
        let ran = run(&[word]).expect(0).quiet();
        let text = ran.stdout_text();
        for option in [
            "--mode",
            "--output",
            "--format",
            "--columns",
            "--precision",
            "--include",
            "--exclude",
            "--all-files",
            "--top",
        ] {
            assert!(text.contains(option), "{word}: no {option} in\n{text}");
        }
        for word in ["doctor", "--as-root", "EXIT STATUS", "EXAMPLES"] {
            assert!(text.contains(word), "no {word} in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 100), "a line is longer than 100 columns:\n{text}");
    }
}

#[test]
fn version() {
    insta::assert_snapshot!(snapshot(&run(&["--version"])), @"
    status: 0
    ----- stdout -----
    rmprof-bpf [VERSION]

    ----- stderr -----
    ");
}

#[test]
fn without_words_the_help_is_shown_as_an_error() {
    let ran = run(&[]).expect(2);
    assert_eq!(ran.stdout_text(), "");
    assert!(ran.stderr_text().contains("Usage: rmprof-bpf [OPTIONS]"), "{ran}");
}

#[test]
fn an_unknown_format() {
    insta::assert_snapshot!(snapshot(&run(&["--format", "xml", "true"])), @"
    status: 2
    ----- stdout -----

    ----- stderr -----
    error: no format is called 'xml'
    hint: the formats are table, json
    ");
}

#[test]
fn an_unknown_column() {
    insta::assert_snapshot!(snapshot(&run(&["--columns", "increment,occurences", "true"])), @"
    status: 2
    ----- stdout -----

    ----- stderr -----
    error: no column is called 'occurences'
    hint: the columns are mem-usage, increment, error, occurrences, allocated, freed, allocations, frees, peak, live, native; '+occurrences' adds one to the default
    ");
}

#[test]
fn sampling_where_it_cannot_be() {
    for (words, message) in [
        (
            &["--mode", "pages", "--sample", "512K", "true"][..],
            "--sample is of blocks, which the mode pages does not count",
        ),
        (
            &["--no-preload", "--sample", "512K", "true"],
            "--sample needs the preloaded library, which --no-preload and --probes leave out",
        ),
        (&["attach", "--mode", "heap", "--sample", "1M", "1"], "--sample is for programs that rmprof-bpf starts"),
        (&["system", "--sample", "1M"], "--sample is for programs that rmprof-bpf starts"),
        (&["--sample", "512", "true"], "from 1K up to 1G is possible"),
        (&["--sample", "2G", "true"], "from 1K up to 1G is possible"),
        (&["--sample", "many", "true"], "not a number of bytes, as 524288 or 512K"),
    ] {
        let ran = run(words);
        assert_eq!(ran.code(), 2, "{words:?}");
        assert!(ran.stderr_text().contains(message), "{words:?}: {}", ran.stderr_text());
    }
}

#[test]
fn the_debugger_where_it_cannot_be() {
    for (words, message) in [
        (&["attach", "--pdb-mmem-step", "5", "1"][..], "--pdb-mmem <MIB>"),
        (&["attach", "--pdb-mmem", "0", "1"], "more than 0"),
        (&["system", "--pdb-mmem", "5"], "unexpected argument '--pdb-mmem'"),
    ] {
        let ran = run(words);
        assert_eq!(ran.code(), 2, "{words:?}");
        assert!(ran.stderr_text().contains(message), "{words:?}: {}", ran.stderr_text());
    }
}

#[test]
fn columns_of_executions_where_nothing_is_started() {
    insta::assert_snapshot!(snapshot(&run(&["attach", "--columns", "+live,peak", "1"])), @"
    status: 2
    ----- stdout -----

    ----- stderr -----
    error: the column 'peak' is for programs that rmprof-bpf starts
    hint: the beginning of an execution is not seen from outside; leave it out, or start the program with `rmprof-bpf run`: allocated, freed, allocations, frees and live are of lines of processes that run already too
    ");
    let ran = run(&["system", "--columns", "occurrences"]);
    assert_eq!(ran.code(), 2);
    assert!(ran.stderr_text().contains("the column 'occurrences' is for programs that rmprof-bpf starts"));
}

#[test]
fn an_unknown_mode() {
    insta::assert_snapshot!(snapshot(&run(&["--mode", "heaps", "true"])), @"
    status: 2
    ----- stdout -----

    ----- stderr -----
    error: invalid value 'heaps' for '--mode <MODE>'
      [possible values: heap, objects, pages]

      tip: a similar value exists: 'heap'

    For more information, try '--help'.
    ");
}

#[test]
fn usage_errors_end_with_two_and_name_the_word() {
    let wrong: &[(&[&str], &str)] = &[
        (&["--precision", "99", "true"], "99"),
        (&["--precision", "x", "true"], "x"),
        (&["--top", "-1", "true"], "-1"),
        (&["--include", "[", "true"], "["),
        (&["--output"], "--output"),
        (&["--fail-above", "0", "true"], "--fail-above"),
        (&["--fail-line", "app.py:12", "true"], "app.py:12"),
        (&["--fail-growth", "10", "true"], "--baseline"),
        (&["--fail-growth", "-1", "--baseline", "x", "true"], "-1"),
        (&["run"], "PROGRAM"),
    ];
    for (words, named) in wrong {
        let ran = run(words).expect(2);
        assert_eq!(ran.stdout_text(), "", "{words:?}");
        let said = ran.stderr_text();
        assert!(said.starts_with("error: ") && said.contains(named), "{words:?}: {said}");
    }
}

/// Was: taken for the name of a program, "program not found", 127.
#[test]
fn a_misspelt_option_is_a_usage_error_and_no_program() {
    for words in [&["--precison", "3", "true"][..], &["-x", "true"], &["run", "--as-rot", "true"]] {
        let ran = run(words).expect(2);
        let wrong = words.iter().find(|word| word.starts_with('-')).unwrap();
        assert!(ran.stderr_text().contains(wrong), "{ran}");
    }
}

/// The errors of starting, which need the rights to measure.
#[test]
fn root_a_program_that_is_not_there() {
    if !crate::common::root() {
        return;
    }
    insta::assert_snapshot!(snapshot(&run(&["no-such-program", "--flag"])), @"
    status: 127
    ----- stdout -----

    ----- stderr -----
    error: no-such-program: program not found
    hint: check the spelling and PATH (sudo replaces PATH), or give the program's path: ./PROGRAM for one in this folder
    ");
    insta::assert_snapshot!(snapshot(&run(&["--", "./no-such-program"])), @"
    status: 127
    ----- stdout -----

    ----- stderr -----
    error: ./no-such-program: program not found
    hint: check the path
    ");
}

#[test]
fn root_a_program_that_cannot_be_executed() {
    if !crate::common::root() {
        return;
    }
    let folder = script("data.txt", "");
    std::fs::set_permissions(&folder.path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    insta::assert_snapshot!(snapshot(&Run::new(["./data.txt"]).directory(folder.directory()).run()), @"
    status: 126
    ----- stdout -----

    ----- stderr -----
    error: ./data.txt: cannot be executed: Permission denied
    hint: it needs execute permission for the user it runs as (chmod +x); a Python script runs as `python SCRIPT`
    ");
    let orphan = script("orphan", "#!/no/such/interpreter\n");
    insta::assert_snapshot!(snapshot(&Run::new(["./orphan"]).directory(orphan.directory()).run()), @"
    status: 126
    ----- stdout -----

    ----- stderr -----
    error: ./orphan: cannot be executed: No such file or directory
    hint: the interpreter its first line (#!) or its ELF header names is not there
    ");
}

#[test]
fn missing_rights_are_one_error_and_one_hint() {
    let mut run = Run::new(["true"]).directory("/");
    if is_root() {
        run = run.user(NOBODY);
    }
    insta::assert_snapshot!(snapshot(&run.run()), @r#"
    status: 125
    ----- stdout -----

    ----- stderr -----
    error: rmprof-bpf may not measure: it lacks CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH
    hint: run it with sudo, or as the README's section "Without root" says
    "#);
}

#[test]
fn root_the_report_cannot_be_written() {
    if !crate::common::root() {
        return;
    }
    insta::assert_snapshot!(snapshot(&run(&["-o", "/no/such/folder/report.json", "echo", "it ran"])), @"
    status: 125
    ----- stdout -----

    ----- stderr -----
    error: cannot write the report to /no/such/folder/report.json: No such file or directory (os error 2)
    hint: choose a file in a directory you may write to
    ");
}
