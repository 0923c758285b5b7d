//! Reads from an ELF file which system it needs (elf(5)).

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// `p_type` of the entry that names the dynamic loader.
const PT_INTERP: u64 = 3;
/// Maximum length of a loader's path (PATH_MAX).
const LONGEST_LOADER: u64 = 4096;

/// Processors by `e_machine`, named as in [`std::env::consts::ARCH`].
const MACHINES: [(u64, &str); 7] = [
    (3, "x86"),
    (22, "s390x"),
    (21, "powerpc64"),
    (40, "arm"),
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "riscv64"),
];

/// A program in the ELF format.
pub struct Elf {
    /// The processor that the program is built for.
    pub machine: &'static str,
    /// The dynamic loader that starts the program.
    pub loader: Option<PathBuf>,
}

impl Elf {
    pub const MAGIC: &[u8] = b"\x7fELF";

    /// Reads the header; `None` if `file` is not an ELF file, or is damaged.
    pub fn read(file: &File) -> Option<Elf> {
        let mut ident = [0; 6];
        file.read_exact_at(&mut ident, 0).ok()?;
        if !ident.starts_with(Elf::MAGIC) {
            return None;
        }
        let reader = Reader { file, is_64_bit: ident[4] == 2, is_little_endian: ident[5] == 1 };
        let machine = reader.number(18, 2)?;
        let known = MACHINES.iter().find(|(number, _)| *number == machine);
        let machine = known.map_or("another processor", |(_, name)| *name);
        Some(Elf { machine, loader: reader.loader() })
    }
}

struct Reader<'a> {
    file: &'a File,
    is_64_bit: bool,
    is_little_endian: bool,
}

impl Reader<'_> {
    /// The loader that the program header table names.
    fn loader(&self) -> Option<PathBuf> {
        let table = self.address(32, 28)?;
        let entry_size = self.number(self.either(54, 42), 2)?;
        let entries = self.number(self.either(56, 44), 2)?;
        for index in 0..entries {
            let entry = table.checked_add(index * entry_size)?;
            if self.number(entry, 4)? == PT_INTERP {
                let start = self.address(entry.checked_add(8)?, entry.checked_add(4)?)?;
                let length = self.address(entry.checked_add(32)?, entry.checked_add(16)?)?;
                let mut path = vec![0; length.min(LONGEST_LOADER) as usize];
                self.file.read_exact_at(&mut path, start).ok()?;
                path.truncate(path.iter().position(|byte| *byte == 0).unwrap_or(path.len()));
                return Some(OsString::from_vec(path).into());
            }
        }
        None
    }

    fn either(&self, in_64_bit: u64, in_32_bit: u64) -> u64 {
        if self.is_64_bit { in_64_bit } else { in_32_bit }
    }

    /// An address, at one of these offsets.
    fn address(&self, in_64_bit: u64, in_32_bit: u64) -> Option<u64> {
        self.number(self.either(in_64_bit, in_32_bit), self.either(8, 4) as usize)
    }

    /// The number of `width` bytes at `offset`.
    fn number(&self, offset: u64, width: usize) -> Option<u64> {
        let mut number = [0; 8];
        self.file.read_exact_at(&mut number[..width], offset).ok()?;
        match self.is_little_endian {
            true => Some(u64::from_le_bytes(number)),
            false => Some(u64::from_be_bytes(number) >> (64 - 8 * width)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_big_endian_file_of_32_bits_can_be_read() {
        // A header of 52 bytes, one program header of 32, and the loader's name.
        let mut elf = vec![0; 84];
        elf[..6].copy_from_slice(b"\x7fELF\x01\x02");
        elf[18..20].copy_from_slice(&[0, 22]);
        elf[28..32].copy_from_slice(&[0, 0, 0, 52]);
        elf[42..46].copy_from_slice(&[0, 32, 0, 1]);
        elf[52..60].copy_from_slice(&[0, 0, 0, 3, 0, 0, 0, 84]);
        elf[68..72].copy_from_slice(&[0, 0, 0, 9]);
        elf.extend(b"/lib/ld1\0");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, elf).unwrap();
        let elf = Elf::read(file.as_file()).unwrap();
        assert_eq!((elf.machine, elf.loader.unwrap().to_str()), ("s390x", Some("/lib/ld1")));
    }
}
