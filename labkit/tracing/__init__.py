"""One recorded forward pass of any model. `labkit.trace` is the function; a module of that name would hide it."""
