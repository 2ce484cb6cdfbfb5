//! The configuration file, parsed into a type that cannot be wrong.
