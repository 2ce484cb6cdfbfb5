//! The `zonemesh` command.

fn main() -> std::process::ExitCode {
    zonemesh::cli::main()
}
