//! Writes the man page and the shell completions into a folder, for `bin/package`.

use std::fs::{self, File};
use std::path::PathBuf;

use clap_complete::{Shell, generate_to};
use start_stunnel::configuration::cli;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).expect("usage: man_and_completions FOLDER");
    let folder = PathBuf::from(folder);
    let completions = folder.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut cli::command(), "start-stunnel", &completions)?;
    }
    // The second line of --version describes this build, not the packaged one.
    let command = cli::command().long_version(env!("CARGO_PKG_VERSION"));
    let page = clap_mangen::Man::new(command)
        .date("")
        .source(concat!("start-stunnel ", env!("CARGO_PKG_VERSION")));
    page.render(&mut File::create(folder.join("start-stunnel.1"))?)
}
