//! Sources that are not plain files of UTF-8, and what their tables look like, to the character.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Command;

use crate::common::{Run, Script, any_python, near_blocks, root, script, supported_pythons};

/// Files of one marked function, written by Python, so that the encodings are its own; and a program that imports them in order.
const WRITER: &str = r##"
import sys, zipfile
folder = sys.argv[1].encode() + b"/"
plain = "@profile\ndef grow():\n    kept = bytearray(1_000_000)\n    return kept  # %s\n"
def write(name, content):
    with open(folder + name, "wb") as file:
        file.write(content)
def coded(name, codec, text):
    write(name, ("# coding: %s\n" % codec + plain % text).encode(codec))

write(b"crlf.py", (plain % "crlf").replace("\n", "\r\n").encode())
write(b"returns.py", (plain % "returns").replace("\n", "\r").encode())
write(b"tabs.py", (plain % "tabs").replace("    ", "\t").encode())
write(b"feeds.py", b"\x0c\n@profile\n\x0cdef grow():\n    kept = bytearray(1_000_000)  # a\x0cb\n\x0c\n    return kept\n\x0c\n  \x0c\n")
write(b"signs.py", (plain % "\x1b[31m \u202e \x7f \x08 \x85 \u2028 z").encode())
write(b"marked.py", b"\xef\xbb\xbf" + (plain % "été").encode())
write(b"letters.py", "@profile\ndef größe():\n    日本 = bytearray(1_000_000)\n    return 日本\ngrow = größe\n".encode())
write(b"open_end.py", (plain % "no line end").rstrip("\n").encode())
coded(b"latin.py", "latin-1", "café")
coded(b"cyrillic.py", "cp1251", "привет")
coded(b"russian.py", "koi8-r", "привет")
coded(b"japanese.py", "shift_jis", "日本")
coded(b"korean.py", "euc-kr", "한국")
coded(b"chinese.py", "gb18030", "中文")
coded(b"code page.py", "cp437", "é")
write(b"strange\x1b[31m\nname.py", (plain % "a name").encode())
write(b"no\xe9text.py", (plain % "a name").encode())
write(b"long.py", (plain % ("x" * 70_000)).encode())
with zipfile.ZipFile(sys.argv[1] + "/archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("zipped.py", plain % "zipped")
"##;

/// Loads each, calls its function, and says nothing. Files whose names no import takes are executed by name.
const LOADER: &str = r#"
import os, sys
here = os.path.dirname(os.path.abspath(__file__))
if sys.argv[1:] == ["unmarked"]:
    import builtins
    builtins.profile = lambda function: function
sys.path.insert(0, os.path.join(here, "archive.zip"))
for name in ("crlf returns tabs feeds signs marked letters open_end latin cyrillic russian japanese korean chinese zipped").split():
    __import__(name).grow()
for name in (b"code page.py", b"strange\x1b[31m\nname.py", b"no\xe9text.py"):
    name = os.path.join(here, os.fsdecode(name))
    with open(name, "rb") as file:
        space = {}
        exec(compile(file.read(), name, "exec"), space)
    space["grow"]()
"#;

fn sources() -> Script {
    let program = script("loader.py", LOADER);
    let written = Command::new(any_python().path).args(["-c", WRITER]).arg(program.directory()).status().unwrap();
    assert!(written.success());
    program
}

#[test]
fn root_tables_of_odd_sources() {
    if !root() {
        return;
    }
    let program = sources();
    for python in supported_pythons() {
        let ran = Run::new(["--columns", "occurrences"]).words([&python.path, &program.path]).run().expect(0).quiet();
        let text = ran.stdout_text().replace(program.directory().to_str().unwrap(), "[FOLDER]");
        // Trailing space would be lost here, and there is none.
        assert!(!text.lines().any(|line| line.ends_with(' ')), "{text}");
        insta::allow_duplicates! { insta::assert_snapshot!(text, @r"
        Filename: [FOLDER]/crlf.py

        Line #  Occurrences   Line Contents
        ===================================
             1                @profile
             2                def grow():
             3            1       kept = bytearray(1_000_000)
             4            1       return kept  # crlf


        Filename: [FOLDER]/returns.py

        Line #  Occurrences   Line Contents
        ===================================
             1                @profile
             2                def grow():
             3            1       kept = bytearray(1_000_000)
             4            1       return kept  # returns


        Filename: [FOLDER]/tabs.py

        Line #  Occurrences   Line Contents
        ===================================
             1                @profile
             2                def grow():
             3            1   	kept = bytearray(1_000_000)
             4            1   	return kept  # tabs


        Filename: [FOLDER]/feeds.py

        Line #  Occurrences   Line Contents
        ===================================
             2                @profile
             3                \x0cdef grow():
             4            1       kept = bytearray(1_000_000)  # a\x0cb
             5
             6            1       return kept


        Filename: [FOLDER]/signs.py

        Line #  Occurrences   Line Contents
        ===================================
             1                @profile
             2                def grow():
             3            1       kept = bytearray(1_000_000)
             4            1       return kept  # \x1b[31m \u202e \x7f \x08 \x85 \u2028 z


        Filename: [FOLDER]/marked.py

        Line #  Occurrences   Line Contents
        ===================================
             1                @profile
             2                def grow():
             3            1       kept = bytearray(1_000_000)
             4            1       return kept  # été


        Filename: [FOLDER]/letters.py

        Line #  Occurrences   Line Contents
        ===================================
             1                @profile
             2                def größe():
             3            1       日本 = bytearray(1_000_000)
             4            1       return 日本


        Filename: [FOLDER]/open_end.py

        Line #  Occurrences   Line Contents
        ===================================
             1                @profile
             2                def grow():
             3            1       kept = bytearray(1_000_000)
             4            1       return kept  # no line end


        Filename: [FOLDER]/latin.py

        Line #  Occurrences   Line Contents
        ===================================
             2                @profile
             3                def grow():
             4            1       kept = bytearray(1_000_000)
             5            1       return kept  # café


        Filename: [FOLDER]/cyrillic.py

        Line #  Occurrences   Line Contents
        ===================================
             2                @profile
             3                def grow():
             4            1       kept = bytearray(1_000_000)
             5            1       return kept  # привет


        Filename: [FOLDER]/russian.py

        Line #  Occurrences   Line Contents
        ===================================
             2                @profile
             3                def grow():
             4            1       kept = bytearray(1_000_000)
             5            1       return kept  # привет


        Filename: [FOLDER]/japanese.py

        Line #  Occurrences   Line Contents
        ===================================
             2                @profile
             3                def grow():
             4            1       kept = bytearray(1_000_000)
             5            1       return kept  # 日本


        Filename: [FOLDER]/korean.py

        Line #  Occurrences   Line Contents
        ===================================
             2                @profile
             3                def grow():
             4            1       kept = bytearray(1_000_000)
             5            1       return kept  # 한국


        Filename: [FOLDER]/chinese.py

        Line #  Occurrences   Line Contents
        ===================================
             2                @profile
             3                def grow():
             4            1       kept = bytearray(1_000_000)
             5            1       return kept  # 中文


        Filename: [FOLDER]/archive.zip/zipped.py

        Line #  Occurrences   Line Contents
        ===================================
             1                @profile
             2                def grow():
             3            1       kept = bytearray(1_000_000)
             4            1       return kept  # zipped


        Filename: [FOLDER]/code page.py

        Line #  Occurrences   Line Contents
        ===================================
             2                @profile
             3                def grow():
             4            1       kept = bytearray(1_000_000)
             5            1       return kept  # �


        Filename: [FOLDER]/strange\x1b[31m\x0aname.py

        Line #  Occurrences   Line Contents
        ===================================
             1                @profile
             2                def grow():
             3            1       kept = bytearray(1_000_000)
             4            1       return kept  # a name


        Filename: [FOLDER]/no�text.py

        Line #  Occurrences   Line Contents
        ===================================
             1                @profile
             2                def grow():
             3            1       kept = bytearray(1_000_000)
             4            1       return kept  # a name
        ") };
    }
}

/// The same files without marks, in JSON: every measured line has its text.
#[test]
fn root_texts_of_odd_sources() {
    if !root() {
        return;
    }
    let program = sources();
    let expected = [
        ("crlf.py", 3, "    kept = bytearray(1_000_000)"),
        ("returns.py", 3, "    kept = bytearray(1_000_000)"),
        ("tabs.py", 3, "\tkept = bytearray(1_000_000)"),
        ("feeds.py", 4, "    kept = bytearray(1_000_000)  # a\u{c}b"),
        ("letters.py", 3, "    日本 = bytearray(1_000_000)"),
        ("chinese.py", 4, "    kept = bytearray(1_000_000)"),
        ("archive.zip/zipped.py", 3, "    kept = bytearray(1_000_000)"),
        ("strange\u{1b}[31m\nname.py", 3, "    kept = bytearray(1_000_000)"),
        ("no\u{fffd}text.py", 3, "    kept = bytearray(1_000_000)"),
    ];
    for python in supported_pythons() {
        let ran = Run::json().words([&python.path, &program.path]).word("unmarked").run().expect(0).quiet();
        let report = ran.report();
        report.check_complete();
        let functions = report.only().0["functions"].as_array().unwrap();
        for (file, number, text) in expected {
            let function = functions.iter().find(|function| {
                let name = function["filename"].as_str().unwrap();
                name.ends_with(&format!("/{file}")) && ["grow", "größe"].contains(&function["name"].as_str().unwrap())
            });
            let lines = function.unwrap_or_else(|| panic!("no {file:?} in {report}"))["lines"].as_array().unwrap();
            let line = lines.iter().find(|line| line["line"] == number).unwrap();
            near_blocks(line["increment_bytes"].as_i64().unwrap(), python.of_bytearray(1_000_000));
            assert_eq!(line["source"], text, "{file:?} on {}", python.version_text());
        }
    }
}

#[test]
fn root_a_very_long_line_is_whole() {
    if !root() {
        return;
    }
    let program = sources();
    let module = program.beside("runs.py", "import long; long.grow()\n");
    let text = Run::new([&any_python().path, &module]).run().expect(0).quiet().stdout_text();
    assert!(text.contains(&format!("return kept  # {}\n", "x".repeat(70_000))));
}

const GROW: &str = "@profile\ndef grow():\n    kept = bytearray(1_000_000)\n    return kept\n";

/// The program's own file is read before the program can remove it, or write something else there.
#[test]
fn root_a_program_whose_file_is_gone() {
    if !root() {
        return;
    }
    for before in ["import os; os.unlink(__file__)", "open(__file__, 'w').write('# other\\n' * 9)"] {
        for python in supported_pythons() {
            let program = script("fleeting.py", &format!("{before}\n{GROW}grow()\n"));
            let ran = Run::json().word(&python.path).word("fleeting.py").directory(program.directory()).run();
            let report = ran.expect(0).quiet().report();
            let line = report.only().line("grow", 4);
            near_blocks(line.increment(), python.of_bytearray(1_000_000));
            assert_eq!(line.source(), Some("    kept = bytearray(1_000_000)"), "{}", python.version_text());
        }
    }
}

/// What cannot be read has a table without text, which says so.
#[test]
fn root_sources_that_cannot_be_read() {
    if !root() {
        return;
    }
    let program = script("compiled.py", &format!("{GROW}grow()\n"));
    let compiled = |python: &crate::common::Python| -> PathBuf {
        let file = program.directory().join("compiled.pyc");
        let text = format!("import py_compile; py_compile.compile('compiled.py', {file:?}, 'gone.py')");
        let mut command = Command::new(&python.path);
        assert!(command.args(["-c", &text]).current_dir(program.directory()).status().unwrap().success());
        file
    };
    let table = |name: &str| {
        format!(
            "Filename: {name}\n\nLine #  Occurrences   Line Contents\n===================================\n\
             {:>22}(source not readable)\n     1\n     2\n     3            1\n     4            1\n\n\n",
            ""
        )
    };
    for python in supported_pythons() {
        let run = || Run::new(["--columns", "occurrences"]).word(&python.path);
        let ran = run().word(compiled(&python)).run().expect(0).quiet();
        assert_eq!(ran.stdout_text(), table("gone.py"), "{}", python.version_text());
        let ran = run().word("-").input(format!("{GROW}\ngrow()\n")).run().expect(0).quiet();
        assert_eq!(ran.stdout_text(), table("<stdin>"), "{}", python.version_text());
        let text = format!("exec({GROW:?} + 'grow()')");
        let executed = script("executes.py", &text);
        let ran = run().word(&executed.path).run().expect(0).quiet();
        assert_eq!(ran.stdout_text(), table("<string>"), "{}", python.version_text());
    }
}

/// Two files of one name are two tables; one name that cannot be text is found all the same.
#[test]
fn root_files_of_one_name() {
    if !root() {
        return;
    }
    let program = script(
        "two.py",
        "
import importlib, os, sys
for folder in (b'a', b'n\\xe9'):
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.fsdecode(folder)))
    sys.modules.pop('same', None)
    importlib.invalidate_caches()
    import same
    same.grow()
",
    );
    for (folder, size) in [(&b"a"[..], 1), (b"n\xe9", 2)] {
        let folder = program.directory().join(OsStr::from_bytes(folder));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("same.py"), GROW.replace("1_", &format!("{size}_"))).unwrap();
    }
    for python in supported_pythons() {
        let report = Run::json().words([&python.path, &program.path]).run().expect(0).quiet().report();
        let functions = report.only().0["functions"].as_array().unwrap();
        let marked: Vec<_> = functions.iter().filter(|function| function["marked"] == true).collect();
        assert_eq!(marked.len(), 2, "{report}");
        for (function, size) in marked.iter().zip(1..) {
            let line = function["lines"].as_array().unwrap().iter().find(|line| line["line"] == 3).unwrap();
            near_blocks(line["increment_bytes"].as_i64().unwrap(), python.of_bytearray(size * 1_000_000));
            assert_eq!(line["source"], format!("    kept = bytearray({size}_000_000)"));
        }
    }
}
