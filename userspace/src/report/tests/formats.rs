//! The table of formats.

use std::path::Path;

use super::*;

#[test]
fn formats_have_names_and_endings_of_their_own() {
    let mut names: Vec<_> = FORMATS.iter().map(|format| format.name).collect();
    let mut endings: Vec<_> = FORMATS.iter().flat_map(|format| format.endings).collect();
    let (all_names, all_endings) = (names.len(), endings.len());
    names.sort_unstable();
    names.dedup();
    endings.sort_unstable();
    endings.dedup();
    assert_eq!((names.len(), endings.len()), (all_names, all_endings));
}

#[test]
fn formats_are_found() {
    assert_eq!(Format::by_ending(Path::new("out/x.JSON")).unwrap().name, "json");
    assert_eq!(Format::by_ending(Path::new("report.txt")).unwrap().name, "table");
    assert!(Format::by_ending(Path::new("json")).is_none());
    let error = Format::by_name("jsn").unwrap_err();
    assert_eq!(error.to_string(), "no format is called 'jsn'");
    assert_eq!(error.hint(), "the formats are table, json");
}

#[test]
fn every_format_writes_an_empty_report() {
    for format in FORMATS {
        assert!(!written(&Report::default(), format.name, &Options::default()).is_empty());
    }
}
