//! WireGuard sessions, on boringtun: the only file that names it.
