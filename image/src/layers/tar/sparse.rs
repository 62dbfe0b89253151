//! Files with holes: GNU tar's old format, and its three in extended headers.

use std::io::Read;

use super::header::{BLOCK_LEN, GNU_PIECE_LEN, Header, gnu_piece};
use super::pax::{Sparse, decimal};
use super::{Archive, Entry, MAX_PIECES, TarError};
use crate::erofs::Piece;

impl<R: Read> Archive<R> {
    /// The old format: four pieces in the header, the others in blocks that follow it and that the
    /// entry's size does not count.
    pub(super) fn gnu_sparse(
        &mut self,
        entry: &mut Entry,
        header: &Header<'_>,
    ) -> Result<(), TarError> {
        let (size, first, mut more) = header.gnu_sparse()?;
        let mut pieces = Vec::new();
        collect(first, &mut pieces)?;
        while more {
            let mut block = [0; BLOCK_LEN];
            self.take_exact(&mut block)?;
            collect(&block[..21 * GNU_PIECE_LEN], &mut pieces)?;
            more = block[21 * GNU_PIECE_LEN] != 0;
        }
        entry.pieces = Some(checked(pieces, size, entry.size)?);
        entry.size = size;
        Ok(())
    }

    /// The newer formats: the pieces are in the extended header, or precede the data.
    pub(super) fn pax_sparse(
        &mut self,
        entry: &mut Entry,
        size: u64,
        mut sparse: Sparse,
    ) -> Result<(), TarError> {
        if sparse.in_data {
            self.pieces_before_data(&mut sparse.pieces)?;
        }
        entry.pieces = Some(checked(sparse.pieces, size, self.data)?);
        entry.size = size;
        Ok(())
    }

    /// Decimal numbers, each on a line: how many pieces, then their offsets and lengths; blocks are
    /// filled up.
    fn pieces_before_data(&mut self, pieces: &mut Vec<Piece>) -> Result<(), TarError> {
        let mut lines = Lines {
            archive: self,
            block: [0; BLOCK_LEN],
            at: BLOCK_LEN,
        };
        let count = lines.number()?;
        if count > MAX_PIECES as u64 {
            return Err(TarError::Pieces(MAX_PIECES));
        }
        for _ in 0..count {
            let offset = lines.number()?;
            pieces.push(Piece {
                offset,
                len: lines.number()?,
            });
        }
        Ok(())
    }
}

struct Lines<'a, R> {
    archive: &'a mut Archive<R>,
    block: [u8; BLOCK_LEN],
    at: usize,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> Result<u64, TarError> {
        let mut digits = [0; 20];
        let mut len = 0;
        loop {
            if self.at == BLOCK_LEN {
                self.archive.read_exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            if byte == b'\n' {
                return decimal(&digits[..len]).ok_or(TarError::Sparse);
            }
            *digits.get_mut(len).ok_or(TarError::Sparse)? = byte;
            len += 1;
        }
    }
}

fn collect(list: &[u8], pieces: &mut Vec<Piece>) -> Result<(), TarError> {
    for piece in list.chunks_exact(GNU_PIECE_LEN) {
        match gnu_piece(piece)? {
            Some((offset, len)) => pieces.push(Piece { offset, len }),
            None => break,
        }
    }
    if pieces.len() > MAX_PIECES {
        Err(TarError::Pieces(MAX_PIECES))
    } else {
        Ok(())
    }
}

/// The pieces that have bytes, if they are in order, apart, within the file and together what is stored.
fn checked(mut pieces: Vec<Piece>, size: u64, stored: u64) -> Result<Vec<Piece>, TarError> {
    let mut end = 0;
    let mut sum = 0;
    for piece in &pieces {
        let piece_end = piece
            .offset
            .checked_add(piece.len)
            .ok_or(TarError::Sparse)?;
        if piece.offset < end || piece_end > size {
            return Err(TarError::Sparse);
        }
        end = piece_end;
        sum += piece.len;
    }
    if sum != stored {
        return Err(TarError::Sparse);
    }
    pieces.retain(|piece| piece.len > 0);
    Ok(pieces)
}
