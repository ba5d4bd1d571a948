//! `baton`: one binary, one verb at a time.

#[path = "main/mod.rs"]
mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
