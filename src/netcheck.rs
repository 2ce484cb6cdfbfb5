//! `zonemesh netcheck`: what this network lets through.
