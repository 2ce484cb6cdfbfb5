//! What a node keeps on disk between two runs: key, port, sequence, last-known peers.
