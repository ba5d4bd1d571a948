//! `baton`: one binary, one verb at a time.

#[path = "main/mod.rs"]
mod cli;

fn main() -> std::process::ExitCode {
    #[cfg(feature = "next-format")]
    if let Some(version) = std::env::var("BATON_PLAY_FORMAT").ok().and_then(|text| text.parse().ok()) {
        baton::base::format::play_everywhere(version);
    }
    cli::main()
}
