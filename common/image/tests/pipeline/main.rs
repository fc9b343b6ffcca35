//! The pull pipeline against registries: genuine ones, and one that does what a hostile one might.

mod answers;
mod attacks;
mod corruption;
mod disclosure;
mod encryption;
mod inheritance;
mod lifecycle;
mod limits;
mod pulls;
mod signatures;
mod support;
mod trees;
mod whiteouts;
