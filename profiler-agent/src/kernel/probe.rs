//! What this kernel offers, probed once and named.
