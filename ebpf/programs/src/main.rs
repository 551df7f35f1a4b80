//! Being built.
#![no_std]
#![no_main]
