//! What of ours a started program is given, and where the probes on it go.

use std::fs::File;
use std::path::PathBuf;

use rmprof_probes::abi;

use crate::kernel::ProbePoint;
use crate::launch::{Shim, Site, site_places};
use crate::tally;

/// The library that lets a process count its blocks itself.
pub(super) struct Library {
    pub path: PathBuf,
    pub file: File,
    pub sites: Vec<ProbePoint>,
}

pub(super) fn library_of(shim: &Shim) -> anyhow::Result<Library> {
    let path = shim.library_path();
    let sites = tally::sites()?.into_iter().map(|(role, offset)| ProbePoint { offset, role, returns: false }).collect();
    Ok(Library { file: File::open(&path)?, path, sites })
}

pub(super) fn launch_points(shim: &Shim) -> anyhow::Result<(File, Vec<ProbePoint>)> {
    let points = site_places()?
        .into_iter()
        .map(|place| ProbePoint {
            offset: place.file_offset,
            role: match place.site {
                Site::Line => abi::RM_LAUNCH_LINE,
                Site::Mark => abi::RM_LAUNCH_MARK,
                Site::Hello => abi::RM_LAUNCH_HELLO,
                Site::Limit => abi::RM_LAUNCH_LIMIT,
            },
            returns: false,
        })
        .collect();
    Ok((File::open(shim.extension_path())?, points))
}
