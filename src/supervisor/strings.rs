//! Strings in the form that execve(2) takes.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io::Write as _;

use nix::errno::Errno;
use nix::libc::{self, c_char};

/// A list of strings, each of which ends with a NUL.
pub struct Strings {
    strings: Vec<Vec<u8>>,
    /// Allocated beforehand: nothing may be allocated between fork and exec.
    pointers: Vec<*const c_char>,
}

impl Strings {
    pub fn new(strings: Vec<CString>) -> Strings {
        let pointers = Vec::with_capacity(strings.len() + 1);
        let strings = strings.into_iter().map(CString::into_bytes_with_nul).collect();
        Strings { strings, pointers }
    }

    /// Makes room in string `index` for [`Strings::write_number`].
    pub fn reserve_number(&mut self, index: usize) {
        const LONGEST: usize = "-2147483648\0".len();
        self.strings[index].reserve(LONGEST);
    }

    /// Replaces all of string `index` from byte `start` on with a number. Async-signal-safe after
    /// [`Strings::reserve_number`].
    pub fn write_number(&mut self, index: usize, start: usize, number: i32) {
        let string = &mut self.strings[index];
        string.truncate(start);
        write!(string, "{number}\0").expect("a Vec takes everything");
    }

    /// Executes `file` in place of this process, with `self` as its words. Returns only when that
    /// fails. Async-signal-safe.
    pub fn execute(&mut self, file: &CStr, environment: &mut Strings) -> Errno {
        let (words, environment) = (self.array(), environment.array());
        // SAFETY: every string ends with a NUL and both arrays with a null pointer; none of them
        // changes before execve(2) returns.
        unsafe { libc::execve(file.as_ptr(), words, environment) };
        Errno::last()
    }

    /// Pointers to the strings, then a null pointer; valid until `self` changes.
    fn array(&mut self) -> *const *const c_char {
        self.pointers.clear();
        self.pointers.extend(self.strings.iter().map(|string| string.as_ptr().cast::<c_char>()));
        self.pointers.push(std::ptr::null());
        self.pointers.as_ptr()
    }
}

#[cfg(test)]
impl Strings {
    pub fn to_vec(&self) -> Vec<String> {
        let text = |string: &Vec<u8>| String::from_utf8(string.clone()).expect("text");
        let texts = self.strings.iter().map(text);
        texts.map(|text| text.strip_suffix('\0').expect("a NUL").to_owned()).collect()
    }
}
