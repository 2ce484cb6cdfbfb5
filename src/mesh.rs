//! The mesh, pure: peers, prefixes, paths; joins discovery and punch.
