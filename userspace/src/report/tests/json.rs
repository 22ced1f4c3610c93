//! The machine-readable report.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn json_of(report: &Report, options: &Options) -> Value {
    serde_json::from_str(&written(report, "json", options)).unwrap()
}

#[test]
fn a_whole_report() {
    let full = Line {
        occurrences: Some(1),
        allocated_bytes: 10,
        freed_bytes: 4,
        allocations: 2,
        frees: 1,
        peak_bytes: Some(8),
        live_bytes: 6,
        errors: Some(Errors { increment_bytes: 3, allocated_bytes: 4, freed_bytes: 5, live_bytes: 2 }),
        mem_usage_bytes: Some(4096),
        increment_bytes: 6,
        self_bytes: 5,
        growth_bytes: 5,
        growth_live_bytes: 4,
        line: 2,
        approximate: true,
        native: Vec::new(),
    };
    let bare = Line { line: 3, increment_bytes: -9, self_bytes: -9, ..Line::default() };
    let own = Function { marked: true, ..function("a.py", "f", 1, "def f():\n    g()\n", vec![full, bare]) };
    let library =
        function("/usr/lib/python3.11/os.py", "g", 1, "", vec![Line { line: 2, self_bytes: 1, ..Line::default() }]);
    let process = ProcessReport {
        sampling: Some(Sampling {
            interval_bytes: 4096,
            samples: 2,
            allocated_bytes: 11,
            allocations: 3,
            frees: 1,
            net_error_bytes: 7,
        }),
        started: Some(UNIX_EPOCH + Duration::from_millis(1_763_856_000_250)),
        exit_status: Some(0),
        rss_peak_bytes: Some(8192),
        cgroup: Some("/user.slice".into()),
        other: vec![Other { reason: "no Python frame".into(), net_bytes: 100 }],
        net_bytes: 97,
        ..process(vec![own, library])
    };
    let mut report = report(vec![process]);
    report.health = Health {
        events: 7,
        lost: 1,
        approximate_events: 3,
        counters: vec![("sites_full".into(), 1)],
        ..Health::default()
    };

    let errors = json!({"increment_bytes": 3, "allocated_bytes": 4, "freed_bytes": 5, "live_bytes": 2});
    let sampling = json!({"interval_bytes": 4096, "samples": 2, "allocated_bytes": 11, "allocations": 3, "frees": 1,
        "net_standard_error_bytes": 7});
    let expected = json!({
        "schema": "rmprof-bpf/1",
        "tool": {"version": "0.1.0", "mode": "heap", "kernel": "6.18.44"},
        "health": {"events": 7, "lost": 1, "truncated_stacks": 0, "unresolved_frames": 0, "unattributed_bytes": 0,
            "approximate_events": 3, "counters": {"sites_full": 1}},
        "processes": [{
            "pid": 1234, "parent_pid": 1, "command": ["python", "a.py"], "python": "3.11.7", "cgroup": "/user.slice",
            "started": "2025-11-23T00:00:00.250Z", "exit_status": 0, "rss_peak_bytes": 8192, "net_bytes": 97,
            "sampling": sampling,
            "functions": [{
                "filename": "a.py", "name": "f", "qualified_name": "f", "first_line": 1, "marked": true,
                "lines": [
                    {"line": 2, "source": "    g()", "occurrences": 1, "mem_usage_bytes": 4096, "increment_bytes": 6,
                     "self_bytes": 5, "allocated_bytes": 10, "freed_bytes": 4, "allocations": 2, "frees": 1,
                     "peak_bytes": 8, "live_bytes": 6, "approximate": true, "standard_error": errors},
                    {"line": 3, "increment_bytes": -9, "self_bytes": -9, "allocated_bytes": 0, "freed_bytes": 0,
                     "allocations": 0, "frees": 0, "live_bytes": 0},
                ],
            }],
            "other": [{"reason": "no Python frame", "net_bytes": 100}, {"reason": "lines of files not shown", "net_bytes": 1}],
        }],
    });
    assert_eq!(json_of(&report, &Options::default()), expected);
}

#[test]
fn fields_come_in_the_contract_s_order() {
    let report = report(vec![process(vec![function("a.py", "f", 1, "", vec![line(2, 1.0, 1.0)])])]);
    let text = written(&report, "json", &Options::default());
    let keys: Vec<_> =
        text.lines().filter_map(|line| line.trim().strip_prefix('"')?.split_once("\":")).map(|(key, _)| key).collect();
    let expected = "schema tool version mode kernel health events lost truncated_stacks unresolved_frames unattributed_bytes \
        approximate_events counters processes pid parent_pid command python net_bytes functions filename name qualified_name first_line marked \
        lines line mem_usage_bytes increment_bytes self_bytes allocated_bytes freed_bytes allocations frees live_bytes other";
    assert_eq!(keys, expected.split_whitespace().collect::<Vec<_>>());
    assert!(text.ends_with("}\n"));
}

#[test]
fn strings_survive_and_do_not_act_on_terminals() {
    let nasty = "\"\\\0\x1b[2J\u{7f}\u{9b}\u{202e}\u{fffd}\u{1f980}\n";
    let report = report(vec![process(vec![function(nasty, nasty, 1, "", vec![line(2, 1.0, 1.0)])])]);
    let text = written(&report, "json", &Options::default());
    assert!(!text.contains(|c: char| c != '\n' && super::super::escape::is_unprintable(c)));
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["processes"][0]["functions"][0]["name"], nasty);
}

#[test]
fn times_outside_the_calendar_are_absent() {
    let far = UNIX_EPOCH.checked_add(Duration::from_secs(1 << 40)).unwrap();
    for time in [far, UNIX_EPOCH - Duration::from_secs(1)] {
        let process = ProcessReport { started: Some(time), ended: Some(SystemTime::now()), ..process(vec![]) };
        let json = json_of(&report(vec![process]), &Options::default());
        assert!(json["processes"][0].get("started").is_none());
        assert!(json["processes"][0].get("ended").is_some());
    }
}

#[test]
fn top_does_not_shorten_it() {
    let functions =
        (0..30).map(|n| function("a.py", &format!("f{n}"), n + 1, "", vec![line(n + 1, 1.0, 1.0)])).collect();
    let json = json_of(&report(vec![process(functions)]), &Options { top: 2, ..Options::default() });
    assert_eq!(json["processes"][0]["functions"].as_array().unwrap().len(), 30);
}

fn any_function() -> impl Strategy<Value = Function> {
    let file =
        prop::sample::select(vec!["a.py", "b.py", "/usr/lib/python3.11/os.py", "<frozen x>", "/v/site-packages/n.py"]);
    let lines = prop::collection::vec((1u32..6, -1_000_000i64..1_000_000), 0..6);
    (file, 0u32..3, any::<bool>(), lines).prop_map(|(file, first_line, marked, lines)| {
        let lines = lines.into_iter().map(|(line, self_bytes)| Line { line, self_bytes, ..Line::default() }).collect();
        Function { marked, ..function(file, "f", first_line, "", lines) }
    })
}

proptest! {
    #[test]
    fn self_bytes_and_other_are_net_bytes(
        functions in prop::collection::vec(any_function(), 0..8),
        other in -1_000_000i64..1_000_000,
        include in any::<bool>(), exclude in any::<bool>(), all_files in any::<bool>(),
    ) {
        let mut process = process(functions);
        process.other.push(Other { reason: "no Python frame".into(), net_bytes: other });
        process.net_bytes += other;
        let globs = |used: bool, glob: &str| if used { vec![glob.to_owned()] } else { vec![] };
        let selection = Selection::new(&globs(include, "n.py"), &globs(exclude, "a.*"), all_files).unwrap();
        let json = json_of(&report(vec![process]), &Options { selection, ..Options::default() });

        let process = &json["processes"][0];
        let lines = process["functions"].as_array().unwrap().iter().flat_map(|f| f["lines"].as_array().unwrap());
        let on_lines: i64 = lines.map(|line| line["self_bytes"].as_i64().unwrap()).sum();
        let other: i64 = process["other"].as_array().unwrap().iter().map(|other| other["net_bytes"].as_i64().unwrap()).sum();
        prop_assert_eq!(on_lines + other, process["net_bytes"].as_i64().unwrap());
    }
}

#[test]
fn native_functions_where_they_were_asked_for() {
    let mut asked = line(2, 20.0, 10.0);
    asked.native = (0..12)
        .map(|at| NativeBytes { function: format!("f{at}"), module: "libx.so".into(), bytes: 100 - at })
        .collect();
    let report = report(vec![process(vec![function("a.py", "f", 1, "", vec![asked, line(3, 1.0, 0.0)])])]);
    let value: serde_json::Value = serde_json::from_str(&written(&report, "json", &Options::default())).unwrap();
    let lines = &value["processes"][0]["functions"][0]["lines"];
    assert_eq!(lines[0]["native"].as_array().unwrap().len(), 10);
    assert_eq!(lines[0]["native"][1], serde_json::json!({"function": "f1", "module": "libx.so", "bytes": 99}));
    assert_eq!(lines[1].get("native"), None);
}

/// The import system's own bytes are told from those of other files, and shown as lines where all files are asked for.
#[test]
fn what_imports_take_is_told() {
    let of = |bytes| vec![Line { line: 2, self_bytes: bytes, increment_bytes: bytes, ..Line::default() }];
    let report = report(vec![process(vec![
        function("a.py", "<module>", 1, "import os\nimport re\n", of(1)),
        function("<frozen importlib._bootstrap_external>", "get_data", 1, "", of(20)),
        function("<frozen importlib._bootstrap>", "_call_with_frames_removed", 1, "", of(300)),
        function("/usr/lib/python3.11/os.py", "g", 1, "", of(4000)),
    ])]);
    let other = json_of(&report, &Options::default())["processes"][0]["other"].clone();
    let wanted = serde_json::json!([
        {"reason": "import of modules", "net_bytes": 320}, {"reason": "lines of files not shown", "net_bytes": 4000}
    ]);
    assert_eq!(other, wanted);
}
