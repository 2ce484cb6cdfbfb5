//! The daemon: a WireGuard mesh that you join through a DNS zone.
//!
//! `docs/architecture.md` tells the way of a packet and of a change through these
//! rooms. In short: [`node`] is the one loop that owns the control state; it feeds
//! the pure [`mesh`], makes its [`plan`] so by [`apply`], and publishes what the
//! packet threads of the [`dataplane`] read.

pub mod apply;
pub mod cli;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod demux;
pub mod explain;
pub mod join;
pub mod lab;
pub mod measure;
pub mod mesh;
pub mod netcheck;
pub mod network;
pub mod node;
pub mod ping;
pub mod plan;
pub mod relays;
pub mod rendezvous;
pub mod serve;
pub mod state;
pub mod status;
mod sys;
pub mod tunnel;
