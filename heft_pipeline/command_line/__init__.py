"""How every command line begins and ends: streams that do not fail, and one line for each error."""
