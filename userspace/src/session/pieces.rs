//! Parts of code objects that travel in pieces, put together until their code object's own record comes.

use std::collections::{BTreeMap, HashMap};

use crate::kernel::event::{Part, Piece, RawCode, RawText};
use crate::ledger::CodeKey;

/// The most code objects whose parts wait. Parts wait for ever only where the record that follows them was lost.
const MOST_WAITING: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Pieces {
    waiting: HashMap<CodeKey, BTreeMap<Part, Whole>>,
}

#[derive(Debug)]
struct Whole {
    kind: u32,
    total: usize,
    bytes: Vec<u8>,
}

impl Pieces {
    /// Takes one piece. Two threads may send the same code object at one time: of the same piece the second is dropped.
    pub fn add(&mut self, key: CodeKey, piece: Piece) {
        if self.waiting.len() >= MOST_WAITING && !self.waiting.contains_key(&key) {
            self.waiting.clear();
        }
        let total = piece.total as usize;
        let parts = self.waiting.entry(key).or_default();
        let whole = parts.entry(piece.part).or_insert_with(|| Whole { kind: piece.kind, total, bytes: Vec::new() });
        if whole.total == total && whole.bytes.len() == piece.offset as usize {
            whole.bytes.extend(piece.bytes);
        }
    }

    /// Fills what `code` lacks with the parts that are whole, and returns the bytecode if it came.
    pub fn complete(&mut self, key: CodeKey, code: &mut RawCode) -> Option<Vec<u8>> {
        let mut parts = self.waiting.remove(&key)?;
        let mut take = |part| parts.remove(&part).filter(|whole| whole.bytes.len() == whole.total);
        for (part, text) in [
            (Part::Filename, &mut code.filename),
            (Part::Name, &mut code.name),
            (Part::QualifiedName, &mut code.qualified_name),
        ] {
            if let Some(whole) = take(part) {
                text.get_or_insert(RawText { kind: whole.kind, bytes: whole.bytes });
            }
        }
        if let Some(whole) = take(Part::LineTable) {
            code.line_table.get_or_insert(whole.bytes);
        }
        take(Part::Bytecode).map(|whole| whole.bytes)
    }

    /// The instructions and handlers that came with a mark, if they are whole.
    pub fn take_instructions(&mut self, key: CodeKey) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut parts = self.waiting.remove(&key)?;
        let is_whole = |whole: &Whole| whole.bytes.len() == whole.total;
        let instructions = parts.remove(&Part::Instructions).filter(is_whole)?;
        let handlers = parts.remove(&Part::Handlers);
        if handlers.as_ref().is_some_and(|handlers| !is_whole(handlers)) {
            return None;
        }
        Some((instructions.bytes, handlers.map(|handlers| handlers.bytes).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: CodeKey = CodeKey { address: 0x7f00, fingerprint: 1 };

    fn piece(part: Part, offset: u32, total: u32, bytes: &[u8]) -> Piece {
        Piece { part, kind: 1, offset, total, bytes: bytes.to_vec() }
    }

    #[test]
    fn pieces_in_order_make_a_whole_and_twice_sent_ones_are_one() {
        let mut pieces = Pieces::default();
        for (offset, bytes) in [(0, b"abc"), (0, b"abc"), (3, b"def"), (3, b"def")] {
            pieces.add(KEY, piece(Part::LineTable, offset, 6, bytes));
        }
        pieces.add(KEY, piece(Part::Name, 0, 1, b"n"));
        pieces.add(KEY, piece(Part::Bytecode, 0, 2, b"\x64\0"));
        let mut code = RawCode::default();
        assert_eq!(pieces.complete(KEY, &mut code).as_deref(), Some(&b"\x64\0"[..]));
        assert_eq!(code.line_table.as_deref(), Some(&b"abcdef"[..]));
        assert_eq!(code.name, Some(RawText { kind: 1, bytes: b"n".to_vec() }));
        assert_eq!(code.filename, None);
        assert!(pieces.waiting.is_empty());
    }

    #[test]
    fn what_lacks_a_piece_is_absent() {
        let mut pieces = Pieces::default();
        pieces.add(KEY, piece(Part::LineTable, 3, 6, b"def"));
        pieces.add(KEY, piece(Part::Bytecode, 0, 6, b"abc"));
        pieces.add(KEY, piece(Part::Bytecode, 3, 6, b""));
        let mut code = RawCode::default();
        assert_eq!(pieces.complete(KEY, &mut code), None);
        assert_eq!(code, RawCode::default());
    }

    #[test]
    fn parts_that_wait_for_ever_are_bounded() {
        let mut pieces = Pieces::default();
        for address in 0..10_000 {
            pieces.add(CodeKey { address, fingerprint: 1 }, piece(Part::Name, 0, 1, b"n"));
        }
        assert!(pieces.waiting.len() <= MOST_WAITING);
    }
}
