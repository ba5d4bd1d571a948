//! Tallies of a recruit: which generations bind, who counts, whose log is best.
