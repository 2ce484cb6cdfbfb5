//! The packet threads and the snapshot that they read.
