"""An attributor, run once and written down, in operations that runtimes take."""
