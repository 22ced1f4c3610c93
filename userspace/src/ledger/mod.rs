//! The neutral middle: counts by stack become bytes by line. Pure: reads nothing, writes nothing, imports no other room.

pub mod fold;
pub mod ranges;
pub mod types;

pub use fold::{Folded, LineTotals, Reason, Resolved, Variances, fold};
pub use ranges::{Credit, Mappings};
pub use types::{
    CodeKey, Frame, LineCounts, LinePlace, LinePosition, MapChange, Origin, Pair, ProcessId, SiteCounts, SiteVariances,
    Stack, StackId, StackStatus,
};
