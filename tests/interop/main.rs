//! Against other people's programs, each test in a world of its own. They need root,
//! and the programs that `make test` installs.

mod interfaces;
mod mdns;
mod serve;
mod stun;
mod turn;
mod zone;
