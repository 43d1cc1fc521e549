//! What is known of machine code and of the files that hold it.

pub mod eval_loop;
